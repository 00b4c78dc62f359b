"""One optimizer step of the Trainer, without the calls that have no effect.

Lightning calls about 20 hooks in each step, and most are not overridden. For a small model, these
calls are a measurable share of a step (docs/measured/speed.md).
"""

from collections import OrderedDict
from functools import partial
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from harness.contract.module import ExactModule
from harness.training import captured_step

_HOOKS = (  # of callbacks and of the module
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
_METHODS = (*_HOOKS, "backward", "optimizer_step", "optimizer_zero_grad")


class LeanOptimization(_AutomaticOptimization):
    """Lightning's automatic optimization, with fewer calls in each step.

    The steps are bit for bit those of Lightning. Lightning's own code takes the steps of a run that
    needs more: several devices, accumulated gradients, a gradient scaler, 64-bit precision, a
    profiler, an optimizer that is not of torch.optim or calls a closure, or a hook that is skipped
    here.

    Args:
        trainer: the trainer, whose callbacks are set.
        cuda_graph: whether to replay the steps as a CUDA graph if the module is on a GPU.
    """

    def __init__(self, trainer: lightning.Trainer, cuda_graph: bool = True) -> None:
        super().__init__(trainer)
        self._cuda_graph = cuda_graph
        self.forget_steps()

    def forget_steps(self) -> None:
        """Release recorded steps and their memory; a later fit records its own."""
        self._optimizer: Optimizer | None = None
        self._take_step: Any = None
        self._is_lean = False

    def run(
        self, optimizer: Optimizer, batch_idx: int, kwargs: "OrderedDict[str, Any]"
    ) -> dict[str, Any]:
        trainer = self.trainer
        if optimizer is not self._optimizer:
            self._optimizer = optimizer
            self._is_lean = can_skip_hooks(trainer, optimizer) and len(kwargs) == 2
            self._take_step = partial(take_step, trainer, optimizer)
            if self._is_lean and self._cuda_graph and can_record(trainer.lightning_module):
                module = cast(ExactModule, trainer.lightning_module)
                self._take_step = captured_step.CapturedStep(self._take_step, module, optimizer)
        if not self._is_lean or trainer.accumulate_grad_batches > 1:
            return super().run(optimizer, batch_idx, kwargs)
        progress = self.optim_progress.optimizer
        progress.step.increment_ready()
        progress.zero_grad.increment_ready()
        progress.zero_grad.increment_started()
        outputs: dict[str, Any] = self._take_step(*kwargs.values())
        progress.zero_grad.increment_completed()
        progress.step.increment_completed()
        return outputs


def take_step(
    trainer: lightning.Trainer, optimizer: Optimizer, batch: Any, batch_idx: int | Tensor
) -> dict[str, Any]:
    """Take one optimizer step, and return the output of the training step."""
    module = trainer.lightning_module
    module._current_fx_name = "training_step"  # for self.log
    with trainer.precision_plugin.train_step_context():
        result = ClosureResult.from_training_step_output(module.training_step(batch, batch_idx))
    optimizer.zero_grad()
    if result.closure_loss is not None:
        result.closure_loss.backward()
    module.configure_gradient_clipping(
        optimizer,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
    )
    optimizer.step()
    module._current_fx_name = None
    return {} if result.loss is None else result.asdict()


def can_record(module: Any) -> bool:
    """Return whether a module is on a CUDA device and uses no CUDA graphs of its own."""
    return module.device.type == captured_step.DEVICE_TYPE and not module.has_own_graphs


def can_skip_hooks(trainer: lightning.Trainer, optimizer: Optimizer) -> bool:
    """Return whether the calls that a lean step leaves out would have no effect."""
    module, plugin = trainer.lightning_module, trainer.precision_plugin
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    overridden = [
        *(_is_overridden(module, name, lightning.LightningModule) for name in _METHODS),
        *(_is_overridden(callback, name, Callback) for callback in callbacks for name in _HOOKS),
    ]
    return (
        isinstance(module, ExactModule)
        and not any(overridden)
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(plugin) in (Precision, MixedPrecision)
        and getattr(plugin, "scaler", None) is None
        and isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
        and type(optimizer).__module__.startswith("torch.optim.")
        and not isinstance(optimizer, torch.optim.LBFGS)
    )


def _is_overridden(instance: Any, method: str, base: type) -> bool:
    """Return whether a class or an instance has another method than the base class."""
    attribute = getattr(instance, method)
    return getattr(attribute, "__func__", attribute) is not getattr(base, method)
