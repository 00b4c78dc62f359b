"""Progress display and atomic checkpoint writing during training."""

import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from harness.contract.module import ExactModule
from harness.contract.settings import Names, Natural
from harness.run_folder import checkpoints
from harness.run_folder.reading import BEST

log = logging.getLogger(__name__)

_TRAINING_STATE_KEYS = {
    "optimizer_states",
    "lr_schedulers",
    "current_model_state",
    "averaging_state",
}


class AtomicCheckpoints(CheckpointIO):
    """Trainer plugin that saves and loads with :mod:`harness.run_folder.checkpoints`.

    Args:
        verified: content of checkpoints that are loaded already, by path; each is used once.
    """

    def __init__(self, verified: Mapping[Path, dict[str, Any]] | None = None) -> None:
        self._verified = dict(verified or {})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if Path(path).name == Path(BEST).name:  # weights only; last.ckpt is for resuming
            checkpoint = {k: v for k, v in checkpoint.items() if k not in _TRAINING_STATE_KEYS}
        checkpoints.save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content = self._verified.pop(Path(path), None)
        return checkpoints.load(Path(path)) if content is None else content

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Progress(RichProgressBar):
    """Progress bar in a terminal, and one line in the log for each validation.

    Args:
        refresh_rate: batches between two updates of the bar.
        metrics: validation metrics to show; all of them if None, or if none of these is logged.
    """

    def __init__(self, refresh_rate: Natural = 10, metrics: Names | None = None) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stdout.isatty() else 0, leave=False)
        self._metrics = list(metrics or ())
        self._start, self._first_step = 0.0, 0

    def _validation_metrics(self, trainer: lightning.Trainer) -> dict[str, float]:
        known = trainer.callback_metrics
        names = [name for name in self._metrics if name in known]
        names = names or [name for name in known if name.startswith("val/")]
        return {name: float(known[name]) for name in names}

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        known, shown = trainer.callback_metrics, list(self._validation_metrics(trainer).values())
        loss = [("loss", float(known["train/loss"]))] if "train/loss" in known else []
        return {name: f"{value:.1f}" for name, value in [*loss, *(("val", v) for v in shown[:1])]}

    def configure_columns(self, trainer: lightning.Trainer) -> list[ProgressColumn]:
        # these fit into 80 columns together with the metrics
        text = TextColumn("[progress.description]{task.description}")
        return [text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]

    def _get_train_description(self, current_epoch: int) -> str:
        total = self.trainer.max_epochs or -1
        return f"epoch {current_epoch + 1}" + (f"/{total}" if total > 0 else "")

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        super().on_train_start(trainer, pl_module)
        self._start, self._first_step = time.perf_counter(), trainer.global_step

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        super().on_validation_end(trainer, pl_module)
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and trainer.is_global_zero:
            log.info(self._status_line(trainer, pl_module))

    def _status_line(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> str:
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        parts = [f"epoch {trainer.current_epoch + 1}{epochs}"]
        parts += [
            f"{name} {value:.2f}" for name, value in self._validation_metrics(trainer).items()
        ]
        if isinstance(module, ExactModule) and module.train_seconds:
            rate = module.items_seen / module.train_seconds
            parts.append(f"{rate:,.0f} {module.items}/s")
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        if math.isfinite(total) and done > self._first_step:
            elapsed = time.perf_counter() - self._start
            seconds_left = elapsed * (total - done) / (done - self._first_step)
            parts.append(f"{seconds_left // 60:.0f}:{seconds_left % 60:02.0f} left")
        return "  ".join(parts)
