"""Counters of a training step, which are tensors while the step is recorded as a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import lightning
import torch
from torch import Tensor


class Counter(Tensor):
    """Tensor that cannot be a dict key or a set member: a lookup would ignore its value."""

    # results are plain tensors
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __hash__(self) -> int:
        raise TypeError("a counter of a recorded step cannot be looked up in a dict or a set")


class Counters(NamedTuple):
    """Counters of a step on the device, each an integer tensor of shape ()."""

    step: Tensor
    epoch: Tensor
    batch: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> "Counters":
        """Return counters of 0 on a device."""
        zeros = torch.zeros(3, dtype=torch.int64, device=device)
        return cls(*(zero.as_subclass(Counter) for zero in zeros))

    def copy_from(self, module: lightning.LightningModule, batch_idx: int) -> None:
        """Set the counters to those of a module, without waiting for the device."""
        self.step.fill_(module.global_step)
        self.epoch.fill_(module.current_epoch)
        self.batch.fill_(batch_idx)


class _CountedTrainer:
    """A trainer whose counters are tensors."""

    def __init__(self, trainer: lightning.Trainer, counters: Counters) -> None:
        self._trainer = trainer
        self.global_step, self.current_epoch = counters.step, counters.epoch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class CountedModule(lightning.LightningModule):
    """A LightningModule whose steps can be recorded once and replayed with other counters."""

    has_own_graphs = False  # whether the steps already use CUDA graphs of their own
    _counters: Counters | None = None

    @property
    def global_step(self) -> int:
        """Optimizer steps so far; a tensor of shape () while a step is recorded."""
        counters = self._counters
        return super().global_step if counters is None else cast(int, counters.step)

    @property
    def current_epoch(self) -> int:
        """Epochs so far; a tensor of shape () while a step is recorded."""
        counters = self._counters
        return super().current_epoch if counters is None else cast(int, counters.epoch)

    @property
    def trainer(self) -> lightning.Trainer:
        """The trainer; its counters are tensors while a step is recorded."""
        trainer, counters = super().trainer, self._counters
        if counters is None:
            return trainer
        return cast(lightning.Trainer, _CountedTrainer(trainer, counters))

    @trainer.setter
    def trainer(self, trainer: lightning.Trainer | None) -> None:
        lightning.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]

    @contextmanager
    def counters_as_tensors(self, counters: Counters) -> Iterator[None]:
        """Give a step these counters in place of its Python integers."""
        self._counters = counters
        try:
            yield
        finally:
            self._counters = None

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self._counters is not None:
            raise RuntimeError(f"the training step logs {name}; pass it to training_loss instead")
        super().log(name, *args, **kwargs)
