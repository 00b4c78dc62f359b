"""Fake GPU that detects tensors on the wrong device on a machine without a GPU.

Within ``with FakeGPU():``, a tensor on ``device="cuda"`` stays on the CPU and is marked as being on
the GPU. Functions of torch raise an error where CUDA would, and mark their results.

Not covered: functions that are not called from Python, lists of 0-dimensional tensors on both
devices, kernels that only exist on the CPU, numerical differences, speed, and memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

_CPU, _GPU = torch.device("cpu"), torch.device("cuda", 0)
_TO_NUMPY = (Tensor.numpy, Tensor.__array__)
_FACTORIES = (torch.tensor, torch.as_tensor, torch.asarray)  # they copy from any device
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
_COPIES = (  # between devices; the target keeps its device
    Tensor.copy_,
    Tensor.data.__set__,  # type: ignore[attr-defined]
    Tensor.grad.__set__,  # type: ignore[union-attr]
    torch._has_compatible_shallow_copy_type,
)
_DEVICE, _IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__  # type: ignore[attr-defined]


class FakeGPU(TorchFunctionMode):
    """Pretend that there is a GPU within a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        # keyed by storage, as views share it; the reference keeps the key from being reused
        self._on_gpu: dict[int, StorageWeakRef] = {}

    def is_on_gpu(self, tensor: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata in self._on_gpu

    def _mark(self, results: Any) -> Any:
        for tensor in _find_tensors(results):
            reference = StorageWeakRef(tensor.untyped_storage())
            self._on_gpu[reference.cdata] = reference
        return results

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = list(_find_tensors(args if not kwargs else (args, kwargs)))
        any_on_gpu = any(map(self.is_on_gpu, tensors))
        if func == _DEVICE:
            return _GPU if any_on_gpu else _CPU
        if func == _IS_CUDA:
            return any_on_gpu
        if func in _TO_NUMPY and any_on_gpu:
            raise TypeError("can't convert cuda:0 device type tensor to numpy: call .cpu() first")
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._move(func, args, kwargs)
        if func in _COPIES:
            return func(*args, **kwargs)
        on_gpu = any_on_gpu
        if kwargs.get("device") is not None:
            on_gpu = torch.device(kwargs.pop("device")).type == "cuda"
        if func not in _FACTORIES and any_on_gpu:
            self._check_devices(func, args, tensors)
        generator = kwargs.get("generator")
        if on_gpu and isinstance(generator, torch.Generator):
            raise RuntimeError(f"{func.__name__}: expected a 'cuda' generator but found 'cpu'")
        results = func(*args, **kwargs)
        if func is Tensor.__iter__:
            results = iter(self._mark(list(results)) if on_gpu else list(results))
        if func in _FACTORIES and any_on_gpu and not on_gpu:
            results = results.clone()
        return self._mark(results) if on_gpu else results

    def _check_devices(
        self, func: Callable[..., Any], args: tuple[Any, ...], tensors: list[Tensor]
    ) -> None:
        """Raise if CPU and GPU tensors are mixed; 0-dimensional CPU tensors are allowed."""
        if func in _INDEXING and self.is_on_gpu(args[0]):
            tensors = list(_find_tensors(args[2:]))  # indices may be on the CPU
        for tensor in tensors:
            if tensor.ndim and not self.is_on_gpu(tensor):
                raise RuntimeError(
                    f"{getattr(func, '__name__', func)}: expected all tensors to be on the same "
                    "device, but found at least two devices, cuda:0 and cpu"
                )

    def _move(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source, *options = args
        if func is not Tensor.to:
            options, kwargs = [_CPU if func is Tensor.cpu else _GPU], {}
        device, dtype, _, _ = torch._C._nn._parse_to(*options, **kwargs)
        for other in _find_tensors((options, kwargs)):
            device = _GPU if self.is_on_gpu(other) else _CPU
        was_on_gpu = self.is_on_gpu(source)
        is_on_gpu = was_on_gpu if device is None else device.type == "cuda"
        moved = source if dtype is None else source.to(dtype)
        moved = moved.clone() if is_on_gpu != was_on_gpu else moved  # a storage of its own
        return self._mark(moved) if is_on_gpu else moved


def _find_tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings; pytree is three times as slow."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _find_tensors(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _find_tensors(value)
