"""LightningModule of autoencoder, VAE and CVAE: training steps, noise and scores."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from cvae import noise
from cvae.bounds import score_batch
from cvae.models import Autoencoder, one_hot
from cvae.trial import trial_loss
from cvae.types import Batch, Terms
from harness.contract.module import ExactModule, frozen_batch_norm

_MAX_BATCH_SIZE = 2**32  # spacing of the noise keys of two plain batches


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup_fraction: float) -> LambdaLR:
    """Return a schedule of linear warm-up and cosine decay to 0.

    The rate is a function of the step alone, so that a resumed run continues exactly.

    Args:
        optimizer: the optimizer whose rate it scales.
        total_steps: steps of the run.
        warmup_fraction: share of the steps that warm up.
    """
    warmup_steps = max(1, round(warmup_fraction * total_steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def as_batch(batch: Any, batch_idx: int, model: Autoencoder, num_processes: int = 1) -> Batch:
    """Convert a DataLoader's batch to a :class:`~cvae.types.Batch`.

    A plain (x, y) has no image indices, so the noise of an image is keyed by its row and by the
    number of its batch in the epoch.

    Args:
        batch: a :class:`~cvae.types.Batch`, or (x, y): float images in [0, 1] of the model's shape,
            and integer or one-hot labels.

    Raises:
        ValueError: the batch is neither, or is (x, y) although several processes share it.
    """
    if isinstance(batch, Batch):
        return batch
    x: Any
    y: Any
    x, y = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (None, None)
    shape, are_tensors = model.image_shape, isinstance(x, Tensor) and isinstance(y, Tensor)
    if not are_tensors or not x.is_floating_point() or x.shape[1:] != shape:
        raise ValueError(
            "a batch must be cvae.types.Batch, or (x, y) with float images x in [0, 1] of shape "
            f"(B, {', '.join(map(str, shape))}) and a tensor of labels y"
        )
    if num_processes > 1:
        raise ValueError(
            f"a batch must be cvae.types.Batch on {num_processes} devices: (x, y) does not say "
            "which images it holds; train on one device"
        )
    rows = torch.arange(len(x), device=x.device) + batch_idx * _MAX_BATCH_SIZE
    return Batch(x, one_hot(y, model.num_classes, x) if model.conditional else y, rows, len(x))


class VAEModule(ExactModule):
    """Trains an :class:`~cvae.models.Autoencoder`, :class:`~cvae.models.VAE` or CVAE.

    The noise of an image is keyed by (seed, epoch, image), so any number of devices takes the same
    steps. A process without rows in the last batch computes the loss of a stand-in image times 0,
    so that it takes part in the reduction of gradients. BatchNorm layers use the rows of their own
    process, so with them the steps depend on the number of devices.

    Batches are :class:`~cvae.types.Batch`, or (x, y) from your own DataLoader on one device, see
    :func:`as_batch`.

    Args:
        model: the model to train.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes the learning-rate schedule from the optimizer, see
            :class:`~harness.contract.module.ExactModule`.
        scheduler_settings: Lightning's ``interval``, ``frequency`` and ``monitor`` of the schedule.
        seed: seed of the noise.
        test_num_samples: K of test/nll_kK, the importance-weighted bound; 0 to leave it out.
        compile: mode of torch.compile for the terms of the bound while training; None for eager
            steps.
    """

    model: Autoencoder
    monitor = "val/elbo"
    items = "images"

    def __init__(
        self,
        model: Autoencoder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler | ReduceLROnPlateau] | None = None,
        scheduler_settings: Mapping[str, Any] | None = None,
        seed: int = 1,
        test_num_samples: int = 100,
        compile: str | None = None,
    ) -> None:
        super().__init__(model, optimizer, scheduler, scheduler_settings, seed)
        self.test_num_samples = test_num_samples
        self.compile_mode = compile
        self._terms = model.terms

    def initialize(self, datamodule: Any) -> None:
        self.model.initialize_output_bias(datamodule.mean_image)

    def trial_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Autoencoder)
        return trial_loss(model, batch)

    def decays(self, parameter: nn.Parameter) -> bool:
        return super().decays(parameter) and parameter is not self.model.output_bias

    def on_train_start(self) -> None:
        if self.compile_mode is not None:  # not earlier, because weight averaging copies the module
            self._terms = torch.compile(self.model.terms, mode=self.compile_mode)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self._batch(batch, batch_idx)
        num_rows = len(batch.x)
        if num_rows:
            terms = self._terms_of(batch)
        else:
            with frozen_batch_norm(self.model):
                terms = self._terms_of(batch.with_stand_in()).first(num_rows)
        losses = self.model.loss(terms, self.global_step)
        return self.training_loss({"loss": losses, **self.model.metrics(terms)}, batch.global_size)

    def _terms_of(self, batch: Batch) -> Terms:
        eps = noise.standard_normal(
            batch.indices,
            (self.model.latent_dim,),
            seed=self.seed,
            stream=noise.Stream.POSTERIOR,
            epoch=self.current_epoch,
        )
        label = batch.y if self.model.conditional else None
        return self._terms(batch.x, label, eps)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._score("val", self._batch(batch, batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._score("test", self._batch(batch, batch_idx), self.test_num_samples)

    def _score(self, split: str, batch: Batch, num_samples: int = 0) -> None:
        """Score in the precision of the weights, also under mixed-precision training."""
        with torch.autocast(self.device.type, enabled=False):
            self.score(split, score_batch(self.model, batch, num_samples))

    def _batch(self, batch: Any, batch_idx: int) -> Batch:
        return as_batch(batch, batch_idx, self.model, self.trainer.world_size)
