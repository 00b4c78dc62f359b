"""Training steps that are recorded as a CUDA graph once and then replayed.

A replayed step launches its hundreds of kernels at once and skips the Python of ``training_step``.
The graph reads from memory of the device all that changes from step to step: the batch, the
learning rate, and :class:`~harness.contract.counters.Counters`.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.utils import _pytree as pytree

from harness.contract.counters import Counters
from harness.contract.module import ExactModule

log = logging.getLogger(__name__)

Outputs = dict[str, Any]  # the loss, and what else training_step returned
Step = Callable[[Any, int | Tensor], Outputs]  # takes the arguments of training_step

_NUM_EAGER = 2  # steps before a recording, in which libraries and the optimizer allocate memory
_MAX_GRAPHS = 2  # full batches, and the smaller last batch of an epoch
DEVICE = "cuda"  # type of the devices that have graphs


class Recording(NamedTuple):
    """A recorded step and the memory that it reads and writes."""

    graph: Any
    inputs: list[Any]
    outputs: Outputs
    num_items: int


class CapturedStep:
    """Takes optimizer steps by replaying a CUDA graph.

    For each batch shape, two steps run eagerly. The third reads its counters as tensors, and a
    synchronization is an error. The fourth is recorded, and it and all later ones are replayed. If
    the third fails, all steps stay eager, because a graph would repeat the value that Python read.

    Args:
        step: takes one eager optimizer step with the arguments of ``training_step``.
        module: the module that the step trains.
        optimizer: its optimizer.
    """

    def __init__(self, step: Step, module: ExactModule, optimizer: Optimizer) -> None:
        self._step = step
        self._module = module
        self._counters = Counters(*torch.zeros(3, dtype=torch.int64, device=module.device))
        self._recordings: dict[Any, Recording] = {}
        self._num_seen: dict[Any, int] = {}
        self.reason = ""  # why steps stay eager
        if _is_capturable(optimizer):
            move_state_to_device(optimizer, module.device)
        else:
            self._stay_eager(f"{type(optimizer).__name__} counts on the CPU")

    def __call__(self, batch: Any, batch_idx: int) -> Outputs:
        """Take a step, and return the loss and what else the training step returned."""
        if self.reason:
            return self._step(batch, batch_idx)
        leaves, structure = pytree.tree_flatten(batch)
        key = (structure, *map(_describe, leaves))
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) == _MAX_GRAPHS:
                return self._step(batch, batch_idx)
            self._num_seen[key] = seen = self._num_seen.get(key, 0) + 1
            if seen <= _NUM_EAGER:
                return self._step(batch, batch_idx)
            self._set_counters(batch_idx)
            if seen == _NUM_EAGER + 1:
                return self._rehearse(batch, batch_idx)
            recording = self._recordings[key] = self._record(leaves, structure)
        else:
            self._set_counters(batch_idx)
            for memory, leaf in zip(recording.inputs, leaves, strict=True):
                if isinstance(memory, Tensor):
                    memory.copy_(leaf)
            self._module.items_seen += recording.num_items
        recording.graph.replay()
        return recording.outputs

    def _set_counters(self, batch_idx: int) -> None:
        module = self._module
        values = (module.global_step, module.current_epoch, batch_idx)
        for counter, value in zip(self._counters, values, strict=True):
            counter.fill_(value)

    def _rehearse(self, batch: Any, batch_idx: int) -> Outputs:
        """Take a step that reads the counters; on an error, take it again without."""
        module = self._module
        before = module.items_seen, module._window
        window = None if module._window is None else module._window.clone()
        try:
            with module.counters_as_tensors(self._counters), raise_on_synchronization():
                return self._step(batch, self._counters.batch)
        except RuntimeError as error:
            self._stay_eager(" ".join(str(error).split())[:200])
        module.items_seen, module._window = before
        if module._window is not None and window is not None:
            module._window.copy_(window)
        return self._step(batch, batch_idx)

    def _record(self, leaves: list[Any], structure: Any) -> Recording:
        """Record a step without taking it."""
        inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        graph, before = new_graph(), self._module.items_seen
        with self._module.counters_as_tensors(self._counters), recording_to(graph):
            outputs = self._step(pytree.tree_unflatten(inputs, structure), self._counters.batch)
        return Recording(graph, inputs, outputs, self._module.items_seen - before)

    def _stay_eager(self, reason: str) -> None:
        self.reason = reason
        log.warning(
            "cuda_graph=true: steps run without a graph (%s); to hide this, cuda_graph=false",
            reason,
        )


def _describe(leaf: Any) -> Any:
    """Return what must be equal for a graph to take this part of a batch."""
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _is_capturable(optimizer: Optimizer) -> bool:
    """Return whether an optimizer keeps its step count on the device, or has none."""
    return type(optimizer) is SGD or all("capturable" in g for g in optimizer.param_groups)


def move_state_to_device(optimizer: Optimizer, device: torch.device) -> None:
    """Keep learning rate and step count in memory of the device, where a graph reads them."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device)


def new_graph() -> Any:
    return torch.cuda.CUDAGraph()


def recording_to(graph: Any) -> Any:
    """Return a context in which operators are recorded instead of run."""
    # thread_local: the thread that pins memory for data workers may call CUDA meanwhile
    return torch.cuda.graph(graph, capture_error_mode="thread_local")


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
