"""LightningModule of autoencoder, VAE and CVAE."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from cvae import noise
from cvae.bounds import score_batch
from cvae.models import Autoencoder
from cvae.trial import check_pixels, trial_loss
from cvae.types import Batch, Terms
from harness.contract.module import ExactModule, frozen_batch_norm
from harness.contract.settings import Fraction

_MAX_BATCH_SIZE = 2**32  # spacing of the image indices that (x, y) batches get
_MEAN_BATCHES = 100  # of a loader of your own, for the mean image


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup_fraction: Fraction) -> LambdaLR:
    """Return a learning-rate schedule of linear warm-up and cosine decay to 0.

    The rate depends on the step only, so a resumed run continues exactly.

    Args:
        optimizer: the optimizer of the schedule.
        total_steps: steps of the run.
        warmup_fraction: fraction of the steps in the warm-up.
    """
    warmup_steps = max(1, round(warmup_fraction * total_steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def as_batch(
    batch: Any, batch_idx: int | Tensor, model: Autoencoder, num_processes: int = 1
) -> Batch:
    """Convert a DataLoader's batch to a :class:`~cvae.types.Batch`.

    A pair (x, y) has no image indices, so the noise of an image is keyed by its row and by the
    index of the batch in the epoch.

    Args:
        batch: a :class:`~cvae.types.Batch`, or (x, y): float images in [0, 1] of the model's shape,
            and integer or one-hot labels.

    Raises:
        ValueError: the batch is neither, or is (x, y) and several processes train.
    """
    if isinstance(batch, Batch):
        return batch
    x: Any
    y: Any
    x, y = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (None, None)
    shape, are_tensors = model.image_shape, isinstance(x, Tensor) and isinstance(y, Tensor)
    if not are_tensors or not x.is_floating_point() or x.shape[1:] != shape:
        raise ValueError(
            "a batch must be cvae.types.Batch, "
            "or (x, y) with float images x in [0, 1] of shape "
            f"(B, {', '.join(map(str, shape))}) and a tensor of labels y"
        )
    if num_processes > 1:
        raise ValueError(
            "a batch must be cvae.types.Batch "
            f"on {num_processes} devices, as (x, y) has no image indices; train on one device"
        )
    rows = torch.arange(len(x), device=x.device) + batch_idx * _MAX_BATCH_SIZE
    return Batch(x, model.condition.encode(y, x) if model.conditional else y, rows, len(x))


def pixel_moments(batches: Iterable[Any], model: Autoencoder) -> tuple[Tensor, Tensor]:
    """Return mean and s.d. of every pixel over up to 100 batches and one grey image.

    Raises:
        ValueError: the likelihood does not fit the pixels.
    """
    total = torch.full(model.image_shape, 0.5)
    squares, count = total.square(), 1
    for number, batch in enumerate(islice(batches, _MEAN_BATCHES)):
        x = as_batch(batch, number, model).x.cpu()
        check_pixels(model, x)
        total, squares, count = total + x.sum(0), squares + x.square().sum(0), count + len(x)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0).sqrt()


class VAEModule(ExactModule):
    """LightningModule that trains an Autoencoder, VAE or CVAE.

    The loss is the mean over the global batch, in nats per image. The noise of an image is keyed by
    (seed, epoch, image), so training takes the same steps on any number of devices. BatchNorm is an
    exception: it uses the rows of its own process.

    Batches are :class:`~cvae.types.Batch`, or (x, y) from your own DataLoader on one device, see
    :func:`as_batch`.

    Example::

        module = VAEModule(model, functools.partial(torch.optim.AdamW, lr=1e-3))
        cvae.train(module, data, lightning.Trainer(max_epochs=5))

    Args:
        model: the model to train.
        optimizer: constructor of the optimizer; takes the parameter groups.
        scheduler: constructor of the learning-rate schedule; takes the optimizer, see
            :class:`~harness.contract.module.ExactModule`.
        scheduler_settings: Lightning's ``interval``, ``frequency`` and ``monitor`` of the schedule.
        seed: seed of the noise.
        test_num_samples: K of test/nll_kK, the importance-weighted bound; 0 to skip it.
        compile: mode of torch.compile for the terms of the bound in training; None not to compile.
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
        test_num_samples: Annotated[int, Interval(ge=0, le=1_000_000)] = 100,
        compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None,
    ) -> None:
        super().__init__(model, optimizer, scheduler, scheduler_settings, seed)
        self.test_num_samples = test_num_samples
        self.compile_mode = compile
        self.has_own_graphs = compile in ("reduce-overhead", "max-autotune")
        self._terms = model.terms

    def initialize(self, datamodule: Any) -> None:
        """Initialize the output bias to the training images."""
        if hasattr(datamodule, "mean_image"):
            moments = datamodule.mean_image, datamodule.std_image
        else:  # a data module of your own
            moments = pixel_moments(datamodule.train_dataloader(), self.model)
        self.model.initialize_output_bias(*moments)

    def fit_statistics(self, datamodule: Any) -> None:
        """Fit the condition to y of the training images."""
        conditions = getattr(getattr(datamodule, "train", None), "conditions", None)
        if isinstance(conditions, Tensor):
            self.model.condition.fit(conditions)

    def trial_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Autoencoder)
        return trial_loss(model, batch)

    def decays(self, parameter: nn.Parameter) -> bool:
        return super().decays(parameter) and parameter is not self.model.output_bias

    def on_train_start(self) -> None:
        if self.compile_mode is not None:  # not earlier: weight averaging copies the module
            self._terms = torch.compile(self.model.terms, mode=self.compile_mode)

    def training_step(self, batch: Any, batch_idx: int | Tensor) -> Tensor:
        batch = self._to_batch(batch, batch_idx)
        num_rows = len(batch.x)
        if num_rows:
            terms = self._compute_terms(batch)
        else:  # a loss without images, so that this process takes part in averaging gradients
            with frozen_batch_norm(self.model):
                terms = self._compute_terms(batch.or_placeholder()).first(num_rows)
        losses = self.model.loss(terms, self.global_step)
        return self.training_loss({"loss": losses, **self.model.metrics(terms)}, batch.global_size)

    def _compute_terms(self, batch: Batch) -> Terms:
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
        self._score("val", self._to_batch(batch, batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._score("test", self._to_batch(batch, batch_idx), self.test_num_samples)

    def _score(self, split: str, batch: Batch, num_samples: int = 0) -> None:
        """Score in the precision of the weights, also under mixed-precision training."""
        with torch.autocast(self.device.type, enabled=False):
            self.score(split, score_batch(self.model, batch, num_samples))

    def _to_batch(self, batch: Any, batch_idx: int | Tensor) -> Batch:
        return as_batch(batch, batch_idx, self.model, self.trainer.world_size)
