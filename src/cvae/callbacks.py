"""What Lightning lacks: pictures while training, a moving average, progress in figures, and
checkpoints that a kill or a full disk cannot spoil."""

import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Callback, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from cvae import checkpoints, figures, files, runs
from cvae.data import MNISTDataModule, Rows
from cvae.lightning_module import VAEModule

log = logging.getLogger(__name__)

_TO_GO_ON = {"optimizer_states", "lr_schedulers", "current_model_state", "averaging_state"}


class EMA(WeightAveraging):
    """An exponential moving average of the weights; validation, checkpoints and test use it.

    The n-th update keeps at most (1 + n) / (10 + n), so that a short run is averaged over its own
    length and not over its initial weights.

    Args:
        decay: share of the average kept at each optimizer step.
        every_n_steps: steps between updates; each then keeps decay ** every_n_steps, which gives
            the same average to within its own lag at a fraction of the memory traffic.
    """

    def __init__(self, decay: float, every_n_steps: int = 1) -> None:
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay**every_n_steps
        self.every_n_steps = every_n_steps

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, num_averaged: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # counts and masks in buffers: as they are
            torch._foreach_copy_(averages, weights)
            return
        assert self._average_model is not None
        n = int(self._average_model.n_averaged)  # on the host, unlike the copy that is given
        kept = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averages, weights, 1 - kept)

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Follow the model to its device, but for the count, which is read at every update."""
        assert self._average_model is not None
        count = self._average_model.n_averaged.cpu()
        self._average_model.to(pl_module.device)
        self._average_model.n_averaged = count

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None:
            return False
        return step_idx < self.every_n_steps or (step_idx + 1) % self.every_n_steps == 0


class Figures(Callback):
    """Draws the pictures of :mod:`cvae.figures` into a folder and into the loggers.

    It must come before :class:`EMA` in the list, to see the averaged weights.

    Args:
        folder: where the PNG files go; each drawing replaces the last.
        every_n_epochs: how often while training; 0 for the end alone.
        num_test_images: how many the latent plane and the traversals are drawn from.
    """

    def __init__(
        self, folder: str | Path, every_n_epochs: int = 10, num_test_images: int = 2000
    ) -> None:
        self.folder = Path(folder)
        self.every_n_epochs = every_n_epochs
        self.num_test_images = num_test_images

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module)

    def on_test_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._draw(trainer, pl_module)

    @rank_zero_only
    def _draw(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, MNISTDataModule) or not isinstance(module, VAEModule):
            raise TypeError("Figures draws a VAEModule on an MNISTDataModule")
        assert data.test is not None
        index = torch.arange(min(self.num_test_images, len(data.test)))
        batches = data.examples(), data.test[Rows(0, index, len(index))]
        weight = module.model.output_bias
        examples, many = (b._replace(x=b.x.to(weight), y=b.y.to(weight)) for b in batches)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, picture in figures.draw(module.model, examples, many, data.classes).items():
            with files.replacing(self.folder / f"{name}.png") as file:
                picture.save(file, format="PNG", optimize=True)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"figures/{name}", [picture], step=trainer.global_step)
                elif isinstance(logger, TensorBoardLogger):
                    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
                    logger.experiment.add_image(
                        f"figures/{name}", pixels, trainer.global_step, dataformats="HWC"
                    )


class AtomicCheckpoints(CheckpointIO):
    """Has the Trainer write and read checkpoints by :mod:`cvae.checkpoints`; rank 0 writes."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if Path(path).name == Path(runs.BEST).name:  # for its model; last.ckpt is to go on from
            checkpoint = {k: v for k, v in checkpoint.items() if k not in _TO_GO_ON}
        checkpoints.save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return checkpoints.load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Progress(RichProgressBar):
    """A bar with the figures that matter in a terminal; a line an epoch in every log."""

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stdout.isatty() else 0, leave=False)
        self._start, self._first_step = 0.0, 0

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        known = trainer.callback_metrics
        shown = {"loss": "train/loss", "val": "val/elbo"}
        if "val/elbo" not in known:
            shown["val"] = "val/reconstruction"
        return {name: f"{float(known[k]):.1f}" for name, k in shown.items() if k in known}

    def configure_columns(self, trainer: lightning.Trainer) -> list[ProgressColumn]:
        # what fits into 80 columns beside the metrics
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
            log.info(self._line(trainer, pl_module))

    def _line(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> str:
        known = trainer.callback_metrics
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        parts = [f"epoch {trainer.current_epoch + 1}{epochs}"]
        parts += [
            f"{key} {float(known[key]):.2f}"
            for key in (("val/elbo", "val/kl") if "val/elbo" in known else ("val/reconstruction",))
            if key in known
        ]
        if isinstance(module, VAEModule) and module.train_seconds:
            parts.append(f"{module.images_seen / module.train_seconds:,.0f} images/s")
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        if math.isfinite(total) and done > self._first_step:
            elapsed = time.perf_counter() - self._start
            left = elapsed * (total - done) / (done - self._first_step)
            parts.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
        return "  ".join(parts)


class Pruning(Callback):
    """Reports each validation to the study of a search, and ends a run that falls behind in it.

    Runs are compared validation by validation, whatever their batch size.

    Args:
        journal: file of the study.
        study: its name.
        trial: number of this run in it.
        monitor: the metric that selects a run.
        pruner: Optuna's, that decides.
    """

    def __init__(self, journal: str, study: str, trial: int, monitor: str, pruner: Any) -> None:
        self.journal, self.study, self.trial = Path(journal), study, trial
        self.monitor, self.pruner = monitor, pruner
        self._num_validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_validations = state_dict["num_validations"]

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        from cvae.search import is_behind  # needs the extra "search"

        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        number, self._num_validations = self._num_validations, self._num_validations + 1
        ends = False
        if trainer.is_global_zero:
            value = float(trainer.callback_metrics[self.monitor])
            ends = is_behind(self.journal, self.study, self.trial, value, number, self.pruner)
        if trainer.strategy.broadcast(ends):
            raise runs.RunPruned(f"{self.monitor} fell behind that of other trials")
