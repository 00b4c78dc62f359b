"""Base class of your LightningModule: optimizer, finite gradients, metrics, exact resume."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MeanMetric

from harness.contract.counters import CountedModule
from harness.contract.errors import NotFiniteError
from harness.contract.seeds import LAYERS, derive_seed

_NO_SYNC_DEVICE = "cpu"  # reading a scalar there does not synchronize; on a GPU it does


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers use their running statistics without updating them."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


class ExactModule(CountedModule):
    """A LightningModule whose steps are the same after a kill and on any number of devices.

    Override ``training_step``, ``validation_step`` and ``test_step``. A training step returns
    :meth:`training_loss`, the others call :meth:`score`; both take one value per row. A loss or
    gradient that is not finite never reaches the weights. A process without rows in the last batch
    must still return a loss that reaches every parameter, such as the loss of one row times 0::

        def training_step(self, batch, batch_idx):
            losses = F.cross_entropy(self.model(batch.x), batch.y, reduction="none")
            return self.training_loss({"loss": losses}, batch.global_size)

    On one GPU, most steps replay a CUDA graph and do not run ``training_step``. ``batch_idx``,
    ``self.global_step`` and ``self.current_epoch`` are integers, but tensors of shape () while the
    graph is recorded. A step that branches on their values, or logs, is not recorded.

    Args:
        model: the model to train; checkpoints hold its weights.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes the learning-rate schedule from the optimizer, and gets ``total_steps`` if
            it has that argument. None for a constant rate.
        scheduler_settings: Lightning's ``interval``, ``frequency`` and ``monitor`` of the schedule.
            The default is every step; for ReduceLROnPlateau, every epoch on ``monitor``.
        seed: seed of random layers, such as dropout.
    """

    monitor: str | None = None  # validation metric that ReduceLROnPlateau monitors
    items = "rows"  # word for the rows in metric names: rows_seen, rows_per_second

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler | ReduceLROnPlateau] | None = None,
        scheduler_settings: Mapping[str, Any] | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.config: dict[str, Any] | None = None  # plain data, saved in every checkpoint
        self.provenance: dict[str, Any] = {}  # saved in every checkpoint, compared on resume
        self.validation: dict[str, float] = {}  # the latest validation metrics
        self.items_seen = 0  # rows over all devices, since the run started
        self.train_seconds = 0.0  # spent on training batches by this process
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._scheduler_settings = scheduler_settings or {}
        self._means: dict[str, MeanMetric] = {}
        self._window: Tensor | None = None  # sums over the rows since the last logged step
        self._window_names: list[str] = []
        self._logged_step = 0
        self._newest_loss = torch.zeros(())
        self._bad_step = torch.full((), -1)  # first step with a value that is not finite, or -1
        self._clock: tuple[int, float] | None = None  # items_seen and time at its start

    # override these if you like

    def initialize(self, datamodule: Any) -> None:
        """Initialize weights from the data. Called before training, after ``setup``."""

    def fit_statistics(self, datamodule: Any) -> None:
        """Set buffers that describe the data, such as ranges.

        Called before training, after ``initialize`` and after ``weights=RUN`` is loaded.
        """

    def trial_loss(self, model: nn.Module, batch: Any) -> Tensor | None:
        """Return the loss of a copy of the model on a few rows, or None for no trial step.

        Called before training, with the model in evaluation mode and in training mode. An error
        ends the run with one line.
        """
        return None

    def decays(self, parameter: nn.Parameter) -> bool:
        """Return whether weight decay applies to a parameter: to all but biases and gains."""
        return parameter.ndim > 1

    # call these in your steps

    def training_loss(self, values: Mapping[str, Tensor], global_size: int) -> Tensor:
        """Return the loss to minimize, and record the values for the next row of metrics.

        Args:
            values: one value per row, by name; ``loss`` is minimized. Each has shape (rows,).
            global_size: rows of the batch over all processes; the sum of losses is divided by it.
        """
        self._add_to_window(values)
        self.items_seen += global_size
        # the strategy averages gradients over processes, hence the factor
        loss = values["loss"].sum() * (self.trainer.world_size / global_size)
        self._newest_loss = loss.detach()
        return loss

    def score(self, split: str, values: Mapping[str, Tensor]) -> None:
        """Add one value per row to the means of an epoch, which are logged as split/name."""
        for name, value in values.items():
            key = f"{split}/{name}"
            if key not in self._means:
                self._means[key] = MeanMetric().to(self.device)
            self._means[key].update(value)

    # optimizer and gradients

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [p for p in self.parameters() if p.requires_grad]
        decayed = [p for p in parameters if self.decays(p)]
        decayed_ids = {id(p) for p in decayed}
        others = [p for p in parameters if id(p) not in decayed_ids]
        optimizer = self._make_optimizer(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        )
        if self._make_scheduler is None:
            return optimizer
        arguments = {}
        if "total_steps" in inspect.signature(self._make_scheduler).parameters:
            total_steps = self.trainer.estimated_stepping_batches
            if not math.isfinite(total_steps):
                raise ValueError("the schedule needs an end: set trainer.max_epochs or max_steps")
            arguments["total_steps"] = int(total_steps)
        scheduler = self._make_scheduler(optimizer, **arguments)
        settings: dict[str, Any] = {"interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            settings = {"interval": "epoch", "monitor": self.monitor}
        settings |= {"scheduler": scheduler, **self._scheduler_settings}
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": settings})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # None unless 16-mixed
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning does it for optimizers that are not fused
        # clip here: Lightning's own clipping rejects fused optimizers under mixed precision
        # use the optimizer's parameters: collecting them from all modules at every step is slow
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # a loss or gradient that is not finite never reaches the weights
        exceeds_limit = True
        if scaler is not None:
            pass  # the scaler skips such a step and lowers its scale
        elif norm.device.type == _NO_SYNC_DEVICE:
            norm_value = float(norm)
            if not math.isfinite(norm_value + float(self._newest_loss)):
                raise NotFiniteError(self.global_step)
            exceeds_limit = norm_value > (gradient_clip_val or math.inf)
        else:
            self._mark_not_finite(norm, gradients)
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val and exceeds_limit:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def _mark_not_finite(self, norm: Tensor, gradients: list[Tensor]) -> None:
        """Record on the device whether the step is not finite, and zero its gradients if so.

        Reading the result would synchronize with the device, so only :meth:`check_finite` reads it.
        """
        is_bad = ~torch.isfinite(norm + self._newest_loss)
        step: int | Tensor = self.global_step
        if not isinstance(step, Tensor):
            step = torch.full((), step, device=is_bad.device)
        self._bad_step = self._bad_step.to(is_bad.device)
        # in place, because a replayed step reads and writes the same memory
        self._bad_step.copy_(torch.where(is_bad & (self._bad_step < 0), step, self._bad_step))
        for gradient in gradients:
            gradient.masked_fill_(is_bad, 0.0)

    def check_finite(self) -> None:
        """Raise if a loss or gradient was not finite since training started.

        Raises:
            NotFiniteError: one was not; the weights were not updated with it.
        """
        if (step := int(self._bad_step)) >= 0:
            raise NotFiniteError(step)

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        checkpoint["provenance"] = self.provenance
        checkpoint[f"{self.items}_seen"] = self.items_seen
        checkpoint["train_seconds"] = self.train_seconds
        checkpoint["validation"] = self.validation
        windows = self._window
        if windows is not None:  # save those of all processes, so that each can restore its own
            windows = self.trainer.strategy.all_gather(windows).view(-1, len(windows))
        checkpoint["window"] = (self._window_names, windows, self._logged_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.items_seen = checkpoint[f"{self.items}_seen"]
        self.train_seconds = checkpoint["train_seconds"]
        self.validation = checkpoint["validation"]
        self._window_names, windows, self._logged_step = checkpoint["window"]
        if windows is not None:
            if len(windows) != self.trainer.world_size:
                windows = windows.sum(0, keepdim=True)
            rank = self.global_rank
            self._window = windows[rank].to(self.device) if rank < len(windows) else None

    # training time, and the seed of each step

    def on_train_epoch_start(self) -> None:
        self._start_clock()

    def on_train_epoch_end(self) -> None:
        self._stop_clock()

    def on_validation_start(self) -> None:
        self._stop_clock()
        self.check_finite()

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._start_clock()

    def _start_clock(self) -> None:
        """Count training time from here; validation and pictures do not count."""
        self._clock = (self.items_seen, time.perf_counter())

    def _stop_clock(self) -> float:
        """Stop counting, and return the rows per second since the start."""
        if self._clock is None:
            return 0.0
        (seen, start), self._clock = self._clock, None
        seconds = time.perf_counter() - start
        self.train_seconds += seconds
        return (self.items_seen - seen) / max(seconds, 1e-9)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._clock is None:  # a run that resumes within an epoch
            self._start_clock()
        # seed random layers, such as dropout, by step and rank, so that they resume exactly
        seed = derive_seed(self.seed, LAYERS, self.current_epoch, batch_idx, self.global_rank)
        generator = torch.default_generator
        if self.device.type == "cuda":
            generator = torch.cuda.default_generators[self.device.index or 0]
        generator.manual_seed(seed)

    # logged metrics

    def _add_to_window(self, values: Mapping[str, Tensor]) -> None:
        self._window_names = list(values)
        count = torch.ones_like(values["loss"])
        sums = torch.stack((*values.values(), count)).detach().sum(dim=1)
        if self._window is None:
            self._window = torch.zeros_like(sums)
        self._window = self._window.to(sums.device)  # a checkpoint is loaded to the CPU
        self._window.add_(sums)  # in place, because a replayed step adds to the same memory

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_due = every and self.global_step % every == 0 and self.global_step > self._logged_step
        if not is_due or self._window is None:
            return
        window = self.trainer.strategy.reduce(self._window, reduce_op="sum")
        assert isinstance(window, Tensor)
        *sums, count = window.tolist()
        self._window.zero_()
        self._logged_step = self.trainer.global_step
        row = {f"train/{name}": s / count for name, s in zip(self._window_names, sums, strict=True)}
        row[f"train/{self.items}_per_second"] = self._stop_clock()
        row["train/learning_rate"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self._start_clock()
        self._log_row(row)

    def _log_row(self, row: dict[str, float]) -> None:
        axes = {
            "epoch": self.current_epoch,
            f"{self.items}_seen": self.items_seen,
            "step": self.global_step,
        }
        # float32 counts only to 16.7 million; no sync, because the values are global already
        exact = {k: torch.tensor(v, dtype=torch.float64) for k, v in {**row, **axes}.items()}
        self.log_dict(exact, sync_dist=False)

    def _log_means(self) -> dict[str, float]:
        means = {key: float(mean.compute()) for key, mean in self._means.items()}
        self._means = {}
        self._log_row(means)
        return means

    def on_validation_epoch_end(self) -> None:
        means = self._log_means()
        logged = self.trainer.callback_metrics  # includes metrics of user callbacks
        others = {k: float(v) for k, v in logged.items() if k.startswith("val/") and k not in means}
        self.validation = {**means, **others}

    def on_test_epoch_end(self) -> None:
        self._log_means()
