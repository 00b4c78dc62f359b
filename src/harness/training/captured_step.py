"""Training steps that are recorded as a CUDA graph once and then replayed.

A replayed step launches its hundreds of kernels at once and skips the Python of ``training_step``.
The graph reads everything that changes from step to step from device memory: the batch, the
learning rate, and :class:`~harness.contract.counters.Counters`.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from harness.contract.counters import Counters
from harness.contract.module import ExactModule
from harness.training.step_state import Snapshot, StepState, find_difference

log = logging.getLogger(__name__)

Outputs = dict[str, Any]  # the loss, and what else training_step returned
Step = Callable[[Any, int | Tensor], Outputs]  # takes the arguments of training_step

_NUM_EAGER = 2  # steps before a recording, in which libraries and the optimizer allocate memory
_MAX_SHAPES = 20  # batch shapes; with more, all steps stay eager
_MAX_GRAPHS = 2  # full batches, and the smaller last batch of an epoch
DEVICE_TYPE = "cuda"  # type of the devices that have graphs


class Recording(NamedTuple):
    """A recorded step and the memory that it reads and writes."""

    graph: Any
    inputs: list[Any]
    outputs: Outputs
    num_items: int


class NotRecordableError(Exception):
    """A CUDA graph would not repeat the step; the message is the reason."""


class CapturedStep:
    """Takes optimizer steps by replaying a CUDA graph.

    For each batch shape, two steps run eagerly. The third reads its counters as tensors, and a
    synchronization is an error. The fourth is recorded, and it and all later ones are replayed. Two
    shapes are recorded; steps of other shapes run eagerly. If the third step or the recording
    fails, or the third changes Python values, all steps stay eager, because a graph would not
    repeat what Python does.

    Args:
        step: takes one eager optimizer step with the arguments of ``training_step``.
        module: the module that the step trains.
        optimizer: its optimizer.
    """

    def __init__(self, step: Step, module: ExactModule, optimizer: Optimizer) -> None:
        self._step = step
        self._module = module
        self._counters = Counters.zeros(module.device)
        self._optimizer = DeviceSettings(optimizer, module.device)
        self._recordings: dict[Any, Recording] = {}
        self._num_seen: dict[Any, int] = {}
        self._state: StepState | None = None  # at the recordings
        self.reason = ""  # why steps stay eager
        if not is_recordable(optimizer):
            self._stay_eager(f"{type(optimizer).__name__} keeps values on the CPU")

    def __call__(self, batch: Any, batch_idx: int) -> Outputs:
        """Take a step, and return the loss and what else the training step returned."""
        if not self.reason:
            try:
                return self._take_step(batch, batch_idx)
            except NotRecordableError as reason:
                self._stay_eager(str(reason))
        return self._step(batch, batch_idx)

    def _take_step(self, batch: Any, batch_idx: int) -> Outputs:
        leaves, structure = pytree.tree_flatten(batch)
        key = (structure, *(_part_key(leaf, self._module.device) for leaf in leaves))
        self._check_state(batch_idx)
        self._optimizer.update()
        recording = self._recordings.get(key)
        if recording is not None:
            self._counters.copy_from(self._module, batch_idx)
            for memory, leaf in zip(recording.inputs, leaves, strict=True):
                if isinstance(memory, Tensor):
                    memory.copy_(leaf)
            self._module.items_seen += recording.num_items
            return self._replay(recording)
        self._num_seen[key] = seen = self._num_seen.get(key, 0) + 1
        if len(self._num_seen) > _MAX_SHAPES:
            raise NotRecordableError(f"batches have more than {_MAX_SHAPES} shapes")
        if seen <= _NUM_EAGER or len(self._recordings) == _MAX_GRAPHS:
            with self._optimizer.on_device():
                return self._step(batch, batch_idx)
        self._counters.copy_from(self._module, batch_idx)
        if seen == _NUM_EAGER + 1:
            return self._rehearse(batch)
        self._recordings[key] = recording = self._record(leaves, structure)
        return self._replay(recording)

    def _replay(self, recording: Recording) -> Outputs:
        recording.graph.replay()
        # copies, because the next replay writes to the same memory
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in recording.outputs.items()}

    def _rehearse(self, batch: Any) -> Outputs:
        """Take a step with tensors as counters, as when it is recorded.

        Raises:
            NotRecordableError: a graph would not repeat the step, which is undone.
        """
        before = Snapshot(self._module, self._optimizer.state)
        try:
            with self._state_on_device(), raise_on_synchronization():
                outputs = self._step(batch, self._counters.batch)
        except Exception as error:  # if the step itself is wrong, the eager step fails too
            before.restore()
            raise NotRecordableError(" ".join(str(error).split())[:200]) from error
        if (change := before.find_change()) is not None:
            before.restore()
            raise NotRecordableError(f"the training step changes {change}")
        return outputs

    def _record(self, leaves: list[Any], structure: Any) -> Recording:
        """Record a step without taking it."""
        inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        graph, before = new_graph(), self._module.items_seen
        try:
            with self._state_on_device(), record_to(graph):
                outputs = self._step(pytree.tree_unflatten(inputs, structure), self._counters.batch)
        except Exception as error:
            self._module.items_seen = before
            raise NotRecordableError(" ".join(str(error).split())[:200]) from error
        self._state = StepState(self._module)
        return Recording(graph, inputs, outputs, self._module.items_seen - before)

    @contextmanager
    def _state_on_device(self) -> Iterator[None]:
        with self._module.counters_as_tensors(self._counters), self._optimizer.on_device():
            yield

    def _check_state(self, batch_idx: int) -> None:
        """Drop the recordings at the start of an epoch if the module has changed."""
        if batch_idx == 0 and self._state is not None and self._state.find_change() is not None:
            self._recordings.clear()
            self._num_seen.clear()
            self._state = None

    def _stay_eager(self, reason: str) -> None:
        self.reason = reason
        self._recordings.clear()
        self._optimizer.restore_step_counts()
        log.warning(
            "steps run without a CUDA graph (%s); to hide this, set cuda_graph=false", reason
        )


def _part_key(leaf: Any, device: torch.device) -> Any:
    """Return a key of one part of a batch; a graph takes only parts with the same key.

    Raises:
        NotRecordableError: a graph cannot read it.
    """
    if isinstance(leaf, Tensor):
        if leaf.device != device:
            raise NotRecordableError(f"a batch has a tensor on the device {leaf.device}")
        return (leaf.shape, leaf.dtype)
    if not isinstance(leaf, int | float | str | None):
        raise NotRecordableError(f"a batch has a {type(leaf).__name__}")
    return leaf


def is_recordable(optimizer: Optimizer) -> bool:
    """Return whether an optimizer can take a step with all its values on the device."""
    groups = optimizer.param_groups
    is_fused_sgd = type(optimizer) is torch.optim.SGD and all(g.get("fused") for g in groups)
    return is_fused_sgd or all("capturable" in g for g in groups)


class DeviceSettings:
    """Optimizer settings that are on the device while a step is taken, for a graph to read.

    Between steps, schedules and callbacks find the learning rate as they left it.

    Args:
        optimizer: the optimizer.
        device: device of its parameters.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._groups = optimizer.param_groups
        self.state = optimizer.state
        self._rates = [torch.zeros((), device=device) for _ in self._groups]
        self._other_settings = self._read_other_settings()
        self._device = device

    def _read_other_settings(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in self._groups]

    def update(self) -> None:
        """Copy the learning rate to the device.

        Raises:
            NotRecordableError: another setting has changed.
        """
        change = find_difference(self._other_settings, self._read_other_settings())
        if change is not None:
            raise NotRecordableError(f"the optimizer's {change} has changed")
        for group, rate in zip(self._groups, self._rates, strict=True):
            rate.fill_(group["lr"])

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Keep learning rate and step count on the device within this block."""
        before = [group["lr"] for group in self._groups]
        for state in self.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(self._device)
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = self._device.type == "cuda"
        try:
            yield
        finally:
            for group, rate, other in zip(self._groups, before, self._other_settings, strict=True):
                group["lr"] = rate
                group.update({k: v for k, v in other.items() if k == "capturable"})

    def restore_step_counts(self) -> None:
        """Move the step counts to the CPU if eager steps of the optimizer expect them there."""
        for group in self._groups:
            if not group.get("fused") and not group.get("capturable"):
                for parameter in group["params"]:
                    if isinstance(step := self.state.get(parameter, {}).get("step"), Tensor):
                        self.state[parameter]["step"] = step.cpu()


def new_graph() -> Any:
    return torch.cuda.CUDAGraph()


@contextmanager
def record_to(graph: Any) -> Iterator[None]:
    """Record operators instead of running them."""
    stream = torch.cuda.current_stream()
    try:
        # thread_local: the thread that pins memory for data workers may call CUDA meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            yield
    finally:
        torch.cuda.set_stream(stream)  # torch leaves its own if the recording fails


@contextmanager
def raise_on_synchronization() -> Iterator[None]:
    """Raise RuntimeError where Python would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # it warns that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
