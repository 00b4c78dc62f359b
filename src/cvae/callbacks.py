"""Callbacks of this science: an average of the weights, and pictures while training."""

import logging
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from cvae import figures
from cvae.data import MNISTDataModule
from cvae.lightning_module import VAEModule
from harness.contract import files
from harness.contract.pictures import log_picture
from harness.contract.sampler import Rows

log = logging.getLogger(__name__)


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
            log_picture(trainer.loggers, f"figures/{name}", picture, trainer.global_step)
