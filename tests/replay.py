"""Stand-in for CUDA graphs on a CPU: records the operators of a step, and replays them.

As in a CUDA graph, values that Python reads during the recording are constants in the replay, each
result is written to the memory of the recorded result, and reading a tensor value raises an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal")


class _RaiseOnReads(TorchDispatchMode):
    """Raise an error where CUDA would synchronize."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(_READS):
            raise RuntimeError(f"called a synchronizing operation: {func}")
        return func(*args, **(kwargs or {}))


class Graph(_RaiseOnReads):
    """Graph of recorded operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self.num_replays = 0
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        written += [kwargs["out"]] if "out" in kwargs else []
        for tensor in pytree.tree_leaves(written):
            # a recorded step has no effect: its writes are undone when the recording ends
            self._before.append((tensor, tensor.detach().clone()))
        results = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs, pytree.tree_leaves(results)))
        return results

    def undo(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.detach().copy_(before)
        self._before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        self.num_replays += 1
        # a CUDA graph is one launch: hide its operators from modes that count operators
        with _disable_current_modes():
            for func, args, kwargs, recorded in self.calls:
                results = pytree.tree_leaves(func(*args, **kwargs))
                for memory, result in zip(recorded, results, strict=True):
                    is_new = isinstance(result, torch.Tensor) and (
                        result.untyped_storage().data_ptr() != memory.untyped_storage().data_ptr()
                    )
                    if is_new:
                        memory.detach().copy_(result)


@contextmanager
def record_to(graph: Graph) -> Iterator[None]:
    with graph:
        yield
    graph.undo()


def raise_on_synchronization() -> _RaiseOnReads:
    return _RaiseOnReads()
