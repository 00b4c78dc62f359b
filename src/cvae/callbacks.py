"""Callbacks: an average of the weights, and figures during training."""

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
from harness.contract.curves import draw_curves
from harness.contract.pictures import log_picture
from harness.contract.sampler import Rows
from harness.contract.settings import Count, Fraction, Name, Natural

log = logging.getLogger(__name__)

_TERMS = ("elbo", "elbo_density", "reconstruction", "reconstruction_density", "kl", "penalty")
_UNITS = dict.fromkeys(_TERMS, "nats per image")  # of the curves; the panels have this order


class EMA(WeightAveraging):
    r"""Exponential moving average of the weights, used in validation, checkpoints and test.

    .. math:: \bar w_{n+1} = d_n \bar w_n + (1 - d_n) w, \quad
        d_n = \min(\mathrm{decay}^{k}, (1 + n) / (10 + n))

    at each of the first k = ``every_n_steps`` steps and every k steps after. The second term of the
    minimum limits the share of the initial weights in a short run.

    Example, in conf/callbacks/::

        ema: {_target_: cvae.callbacks.EMA, decay: 0.998, every_n_steps: 4}

    Args:
        decay: weight of the previous average at each optimizer step.
        every_n_steps: steps between updates. An update keeps decay ** every_n_steps of the
            average, so the time constant stays the same and memory traffic falls.
    """

    def __init__(self, decay: Fraction, every_n_steps: Count = 4) -> None:
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay**every_n_steps
        self.every_n_steps = every_n_steps

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, num_averaged: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # counts and masks are not averaged
            torch._foreach_copy_(averages, weights)
            return
        assert self._average_model is not None
        n = int(self._average_model.n_averaged)  # on the CPU, unlike num_averaged
        kept = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averages, weights, 1 - kept)

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Move the average to the model's device, but keep its count on the CPU."""
        assert self._average_model is not None
        count = self._average_model.n_averaged.cpu()
        self._average_model.to(pl_module.device)
        self._average_model.n_averaged = count

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None:
            return False
        return step_idx < self.every_n_steps or (step_idx + 1) % self.every_n_steps == 0


class Figures(Callback):
    """Save the figures of :mod:`cvae.figures` in a folder and log them.

    After the test, it also draws ``curves.png`` from metrics.csv, which is next to the folder.

    List it before :class:`EMA`, so that it draws with the averaged weights.

    Example, in conf/callbacks/::

        figures: {_target_: cvae.callbacks.Figures, folder: "${run_dir}/figures"}

    Args:
        folder: folder of the PNG files; new figures replace earlier ones.
        every_n_epochs: epochs between figures during training; 0 for figures only after the test.
        num_test_images: test images for the latent plane and the traversals.
    """

    def __init__(
        self, folder: Name | Path, every_n_epochs: Natural = 10, num_test_images: Count = 2000
    ) -> None:
        self.folder = Path(folder)
        self.every_n_epochs = every_n_epochs
        self.num_test_images = num_test_images

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, at_end=False)

    def on_test_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._draw(trainer, pl_module, at_end=True)

    @rank_zero_only
    def _draw(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, at_end: bool
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, MNISTDataModule) or not isinstance(module, VAEModule):
            raise TypeError(
                f"Figures on a {type(module).__name__} and a {type(data).__name__}: "
                "must be a VAEModule and an MNISTDataModule; set callbacks.figures=null"
            )
        assert data.test is not None
        index = torch.arange(min(self.num_test_images, len(data.test)))
        batches = data.examples(), data.test[Rows(0, index, len(index))]
        weight = module.model.output_bias
        examples, test_batch = (b._replace(x=b.x.to(weight), y=b.y.to(weight)) for b in batches)
        self.folder.mkdir(parents=True, exist_ok=True)
        names = data.class_names
        pictures = figures.draw(module.model, examples, test_batch, data.classes, names, at_end)
        if at_end and (curves := draw_curves(self.folder.parent / "metrics.csv", _UNITS)):
            pictures["curves"] = figures.to_picture(curves)
        for name, picture in pictures.items():
            with files.atomic_write(self.folder / f"{name}.png") as file:
                picture.save(file, format="PNG", optimize=True)
            log_picture(trainer.loggers, f"figures/{name}", picture, trainer.global_step)
