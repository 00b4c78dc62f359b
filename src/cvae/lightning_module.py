"""The LightningModule around any of the three systems: it turns the bound into steps."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torchmetrics import MeanMetric

from cvae import noise
from cvae.evaluation.likelihood import score_batch
from cvae.models import Autoencoder, one_hot
from cvae.types import Batch, Nats, Terms

_MAX_BATCH_SIZE = 2**32  # spacing of the noise keys of two plain batches
_HOST = "cpu"  # the device whose numbers are at hand; to read one of another is to wait for it


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup_fraction: float) -> LambdaLR:
    """A linear rise over the first share of the steps, then half a cosine down to 0.

    A pure function of the step, so that a resumed run goes on exactly where it stopped.
    """
    warmup_steps = max(1, round(warmup_fraction * total_steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


@contextmanager
def _frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers use their running statistics without updating them."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


class NotFiniteError(FloatingPointError):
    """A loss or gradient that is not finite.

    Args:
        step: optimizer steps taken before it.
    """

    def __init__(self, step: int) -> None:
        super().__init__(
            f"loss or gradient not finite at step {step}, which was not taken; a smaller "
            "optimizer.lr or trainer.gradient_clip_val, or trainer.precision=32-true?"
        )


def as_batch(batch: Any, batch_idx: int, model: Autoencoder, num_processes: int = 1) -> Batch:
    """Convert a DataLoader's batch to a :class:`~cvae.types.Batch`.

    A plain (x, y) does not say which images it holds, so the noise of an image is keyed by the
    number of its batch in the epoch and its row.

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


class VAEModule(lightning.LightningModule):
    """Trains an :class:`~cvae.models.Autoencoder`, :class:`~cvae.models.VAE` or CVAE.

    The loss of a process is its sum over rows divided by the size of the global batch, and the
    noise of an image is keyed by (seed, epoch, image): any number of devices takes the same steps.
    A process without rows in the last batch computes the loss of a stand-in with weight 0, so that
    it takes part in the reduction of gradients. BatchNorm layers use the statistics of each
    process's own rows, so with them the steps depend on the number of devices.

    Batches are :class:`~cvae.types.Batch`, or (x, y) from your own DataLoader on one device, see
    :func:`as_batch`.

    Args:
        model: the system to train.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes the learning-rate schedule from the optimizer, stepped every batch; it is
            given ``total_steps`` where it takes them. None for a constant rate.
        scheduler_settings: Lightning's ``interval``, ``frequency`` and ``monitor`` of the schedule.
            The default is every step; for ReduceLROnPlateau it is every epoch, by val/elbo.
        seed: seed of the noise.
        test_num_samples: K of test/nll_kK, the importance-weighted bound; 0 to leave it out.
        config: plain data kept in every checkpoint, from which the model can be built again.
        compile_mode: mode of torch.compile for the terms of the bound while training; None for
            eager steps.
    """

    def __init__(
        self,
        model: Autoencoder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler | ReduceLROnPlateau] | None = None,
        scheduler_settings: Mapping[str, Any] | None = None,
        seed: int = 1,
        test_num_samples: int = 100,
        config: dict[str, Any] | None = None,
        compile_mode: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.test_num_samples = test_num_samples
        self.config = config
        self.compile_mode = compile_mode
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._scheduler_settings = scheduler_settings or {}
        self._means: dict[str, MeanMetric] = {}
        self._window: Tensor | None = None  # sums over the images since the last logged step
        self._window_names: list[str] = []
        self._logged_step = 0
        self.validation: dict[str, float] = {}  # the newest metrics of validation
        self.images_seen = 0  # over all devices, since the run began
        self.train_seconds = 0.0  # spent on training batches by this process
        self._terms = model.terms
        self._newest_loss = torch.zeros(())
        self._bad_step = torch.full((), -1)  # the first whose loss or gradient was not finite
        self.provenance: dict[str, Any] = {}  # kept in every checkpoint, for a run that goes on
        self._clock: tuple[int, float] | None = None  # images seen and seconds, while it runs

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [p for p in self.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim > 1 and p is not self.model.output_bias]
        chosen = {id(p) for p in matrices}
        vectors = [p for p in parameters if id(p) not in chosen]  # biases and gains: not decayed
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = self._make_optimizer(groups)
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
            settings = {"interval": "epoch", "monitor": "val/elbo"}
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
        # not by Lightning, which refuses fused optimizers under any mixed precision
        # those of the optimizer: to walk through all modules at each step takes its time
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # a loss or gradient that is not finite never reaches the weights
        is_long = True
        if scaler is not None:
            pass  # it skips a step whose gradients are not finite and lowers its scale
        elif norm.device.type == _HOST:
            length = float(norm)
            if not math.isfinite(length + float(self._newest_loss)):
                raise NotFiniteError(self.global_step)
            is_long = length > (gradient_clip_val or math.inf)
        else:
            self._note_if_bad(norm, gradients)
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val and is_long:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def _note_if_bad(self, norm: Tensor, gradients: list[Tensor]) -> None:
        """Note a step that is not finite on the device, and zero its gradients there.

        To ask would wait for the device: :meth:`check_finite` does, now and then.
        """
        is_bad = ~torch.isfinite(norm + self._newest_loss)
        step = torch.full((), self.global_step, device=is_bad.device)
        noted = self._bad_step.to(is_bad.device)
        self._bad_step = torch.where(is_bad & (noted < 0), step, noted)
        for gradient in gradients:
            gradient.masked_fill_(is_bad, 0.0)

    def check_finite(self) -> None:
        """Stop a run whose loss or gradient was not finite.

        Raises:
            NotFiniteError: it was; the weights are those of the step before.
        """
        if (step := int(self._bad_step)) >= 0:
            raise NotFiniteError(step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        checkpoint["provenance"] = self.provenance
        checkpoint["images_seen"] = self.images_seen
        checkpoint["train_seconds"] = self.train_seconds
        checkpoint["validation"] = self.validation
        windows = self._window
        if windows is not None:  # of all processes: each goes on with its own
            windows = self.trainer.strategy.all_gather(windows).view(-1, len(windows))
        checkpoint["window"] = (self._window_names, windows, self._logged_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]
        self.train_seconds = checkpoint["train_seconds"]
        self.validation = checkpoint["validation"]
        self._window_names, windows, self._logged_step = checkpoint["window"]
        if windows is not None:
            if len(windows) != self.trainer.world_size:
                windows = windows.sum(0, keepdim=True)
            rank = self.global_rank
            self._window = windows[rank].to(self.device) if rank < len(windows) else None

    # training

    def on_train_start(self) -> None:
        if self.compile_mode is not None:  # not before: the average of the weights copies this
            self._terms = torch.compile(self.model.terms, mode=self.compile_mode)

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
        """Count training time from here: validation and pictures are none."""
        self._clock = (self.images_seen, time.perf_counter())

    def _stop_clock(self) -> float:
        """Images per second since the clock was started."""
        if self._clock is None:
            return 0.0
        (images, start), self._clock = self._clock, None
        seconds = time.perf_counter() - start
        self.train_seconds += seconds
        return (self.images_seen - images) / max(seconds, 1e-9)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._clock is None:  # a run that goes on within an epoch
            self._start_clock()
        # layers that draw, such as dropout in a network of your own: by rank, and resumable
        seed = noise.derive_seed(
            self.seed, noise.Stream.LAYERS, self.current_epoch, batch_idx, self.global_rank
        )
        generator = torch.default_generator
        if self.device.type == "cuda":
            generator = torch.cuda.default_generators[self.device.index or 0]
        generator.manual_seed(seed)

    def _batch(self, batch: Any, batch_idx: int) -> Batch:
        return as_batch(batch, batch_idx, self.model, self.trainer.world_size)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self._batch(batch, batch_idx)
        num_rows = len(batch.x)
        if num_rows:
            terms = self._terms_of(batch)
        else:
            with _frozen_batch_norm(self.model):
                terms = self._terms_of(batch.with_stand_in()).first(num_rows)
        losses = self.model.loss(terms, self.global_step)
        self._add_to_window({"loss": losses, **self.model.metrics(terms)})
        self.images_seen += batch.global_size
        # the strategy averages gradients over processes, hence the factor
        loss = losses.sum() * (self.trainer.world_size / batch.global_size)
        self._newest_loss = loss.detach()
        return loss

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

    def _add_to_window(self, values: dict[str, Nats]) -> None:
        self._window_names = list(values)
        count = torch.ones_like(values["loss"])
        sums = torch.stack((*values.values(), count)).detach().sum(dim=1)
        self._window = sums if self._window is None else self._window + sums

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = every and self.global_step % every == 0 and self.global_step > self._logged_step
        if not due or self._window is None:
            return
        window = self.trainer.strategy.reduce(self._window, reduce_op="sum")
        assert isinstance(window, Tensor)
        *sums, count = window.tolist()
        self._window, self._logged_step = None, self.global_step
        row = {f"train/{name}": s / count for name, s in zip(self._window_names, sums, strict=True)}
        row["train/images_per_second"] = self._stop_clock()
        row["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._start_clock()
        self._log(row)

    def _log(self, row: dict[str, float]) -> None:
        axes = {
            "epoch": self.current_epoch,
            "images_seen": self.images_seen,
            "step": self.global_step,
        }
        # double: a float32 counts images up to 16.7 million; not synchronized: it is global already
        exact = {k: torch.tensor(v, dtype=torch.float64) for k, v in {**row, **axes}.items()}
        self.log_dict(exact, sync_dist=False)

    # validation and test

    def _update_means(self, split: str, values: dict[str, Nats]) -> None:
        for name, value in values.items():
            key = f"{split}/{name}"
            if key not in self._means:
                self._means[key] = MeanMetric().to(self.device)
            self._means[key].update(value)

    def _log_means(self) -> dict[str, float]:
        means = {key: float(mean.compute()) for key, mean in self._means.items()}
        self._means = {}
        self._log(means)
        return means

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._score("val", self._batch(batch, batch_idx))

    def on_validation_epoch_end(self) -> None:
        ours = self._log_means()
        logged = self.trainer.callback_metrics  # includes metrics of user callbacks
        others = {k: float(v) for k, v in logged.items() if k.startswith("val/") and k not in ours}
        self.validation = {**ours, **others}

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._score("test", self._batch(batch, batch_idx), self.test_num_samples)

    def _score(self, split: str, batch: Batch, num_samples: int = 0) -> None:
        """In the precision of the weights, whatever the steps are taken in."""
        with torch.autocast(self.device.type, enabled=False):
            self._update_means(split, score_batch(self.model, batch, num_samples))

    def on_test_epoch_end(self) -> None:
        self._log_means()
