"""State that a training step reads and changes: compare it and restore it."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contract.module import ExactModule

_EXPECTED_CHANGES = frozenset(  # values of ExactModule that a replay or the harness updates
    (
        *("items_seen", "train_seconds", "_logged_step", "_newest_loss", "_bad_step", "_window"),
        *("_clock", "_counters", "_current_fx_name"),
    )
)


class StepState:
    """Tensors and plain values of a module and its submodules.

    Args:
        module: the module that a step trains.
    """

    def __init__(self, module: ExactModule) -> None:
        self._module = module
        self._entries = list(self._iterate_values())
        self._before = self._values_by_name()

    def _iterate_values(self) -> Iterator[tuple[str, dict[str, Any], str, Any]]:
        """Yield the name of each value, the dict that holds it, its key there, and the value."""
        for name, part in self._module.named_modules():
            holders: tuple[Any, ...] = (vars(part), part._buffers, part._parameters)
            for holder in holders:
                for key, value in holder.items():
                    is_compared = isinstance(value, Tensor | int | float | str | None)
                    if is_compared and key not in _EXPECTED_CHANGES:
                        yield f"{name}.{key}".lstrip("."), holder, key, value

    def find_change(self) -> str | None:
        """Return the name of a value that has changed since this object was made, or None.

        A tensor has changed if another tensor is in its place, or if its requires_grad differs.
        """
        return find_difference([self._before], [self._values_by_name()])

    def _values_by_name(self) -> dict[str, Any]:
        values = {}
        for name, _, _, value in self._iterate_values():
            values[name] = value
            if isinstance(value, Tensor):
                values[f"requires_grad of {name}"] = value.requires_grad
        return values

    def restore(self) -> None:
        """Restore all values, but not the content of tensors."""
        for _, holder, key, value in self._entries:
            holder[key] = value


def find_difference(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> str | None:
    """Return the name of a value that has changed, or None; tensors are compared by identity."""
    if len(before) != len(now):
        return "number of groups"
    for old, new in zip(before, now, strict=True):
        for name in {**old, **new}:
            one, other = old.get(name), new.get(name)
            is_tensor = isinstance(one, Tensor) or isinstance(other, Tensor)
            if one is not other and (is_tensor or one != other):
                return name
    return None


class Snapshot:
    """Copy of everything that an optimizer step changes, to undo the step.

    Args:
        module: the module that the step trains.
        optimizer_state: the state of its optimizer.
    """

    def __init__(self, module: ExactModule, optimizer_state: Mapping[Any, Any]) -> None:
        self._module = module
        self._state = StepState(module)
        states = [v for state in optimizer_state.values() for v in state.values()]
        tensors = [*module.parameters(), *module.buffers(), *states, module._window]
        self._copies = [(t, t.detach().clone()) for t in tensors if isinstance(t, Tensor)]
        self._items_seen = module.items_seen
        self._cpu_states: tuple[Any, ...] = random.getstate(), np.random.get_state()
        self._generators = [torch.get_rng_state()]
        self._is_cuda = module.device.type == "cuda"
        if self._is_cuda:
            self._generators.append(torch.cuda.get_rng_state(module.device))

    def find_change(self) -> str | None:
        """Return the name of a value that the step changed and a replay would leave, or None."""
        numpy_state: Any = np.random.get_state()
        has_drawn = (
            random.getstate() != self._cpu_states[0]
            or not np.array_equal(numpy_state[1], self._cpu_states[1][1])
            or numpy_state[2] != self._cpu_states[1][2]
            or not torch.equal(torch.get_rng_state(), self._generators[0])
        )
        return self._state.find_change() or ("a random generator of the CPU" if has_drawn else None)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo the step."""
        self._state.restore()
        for tensor, copy in self._copies:
            tensor.copy_(copy)
        self._module.items_seen = self._items_seen
        random.setstate(self._cpu_states[0])
        np.random.set_state(self._cpu_states[1])
        torch.set_rng_state(self._generators[0])
        if self._is_cuda:
            torch.cuda.set_rng_state(self._generators[1], self._module.device)
