"""Checks of a model before training: a step on a copy turns errors into one line."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import cast

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from cvae.data import MNISTDataModule, Rows
from cvae.models import Autoencoder
from cvae.schema import ConfigError
from cvae.types import Batch

log = logging.getLogger(__name__)

_FEW = 8  # rows of a trial step: a full batch can take seconds on a CPU

# errors that mean that the network does not fit its model; others keep their traceback
_MISFITS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_model(model: Autoencoder, data: MNISTDataModule, trainer: lightning.Trainer) -> None:
    """Check a model by steps on a copy: on a few images, and on as few as the last batch has.

    The model, its buffers and the random generators do not change.

    Raises:
        ConfigError: the model cannot be copied, fails on a batch, gives a wrong shape, or has
            parameters without a gradient on several devices.
    """
    _check_sizes_are_known(model)
    averages = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
    trial = _copy(model, is_needed=averages)
    if trial is None:
        return
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    precision.convert_module(trial.to(device))

    def first_images(count: int) -> Batch:
        assert data.train is not None
        batch = data.train[Rows(0, torch.arange(count), count)]
        on_device = batch._replace(x=batch.x.to(device), y=batch.y.to(device))
        return cast(Batch, precision.convert_input(on_device))

    owner = _owner(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with _explained(f"{owner}: fails on 1 image"), precision.forward_context():
            _check_shapes(trial.eval(), first_images(1))
        for rows, remedy in _batch_sizes(data, trainer):
            images = f"{rows} image{'s' * (rows > 1)}"
            with _explained(f"{owner}: fails on {images} in training", remedy):
                with precision.forward_context():
                    loss = _loss(trial.train(), first_images(rows))
                loss.backward()  # type: ignore[no-untyped-call]
    _check_gradients(trial, trainer)
    _check_sync_batchnorm(trial, data, trainer)


@contextmanager
def _explained(fault: str, remedy: str = "") -> Iterator[None]:
    """Turn an error that means that the network does not fit into a ConfigError of one line."""
    try:
        yield
    except _MISFITS as error:
        raise ConfigError(f"{fault}: {_line(error)}{remedy and f'; {remedy}'}") from error


def _check_sizes_are_known(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(is_lazy(p) for p in module.parameters(recurse=False)):
            raise ConfigError(
                f"{_owner(model, name)}: {name} is a {type(module).__name__} without a size: give "
                "it one, or call it once in the constructor"
            )


def _copy(model: Autoencoder, is_needed: bool) -> Autoencoder | None:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        if not is_needed:
            log.warning("%s: cannot be copied, so it is not checked before training", _owner(model))
            return None
        remedy = "set callbacks.ema=null to train without averaged weights"
        if "deepcopy protocol" in str(error):
            remedy = (
                "do not store tensors computed from parameters, use torch.nn.utils."
                f"parametrizations.weight_norm instead of torch.nn.utils.weight_norm, or {remedy}"
            )
        raise ConfigError(
            f"{_owner(model)}: cannot be copied for callbacks.ema: {_line(error)}; {remedy}"
        ) from error


def _batch_sizes(data: MNISTDataModule, trainer: lightning.Trainer) -> Iterator[tuple[int, str]]:
    """Yield numbers of rows to try a step on, each with the remedy if they are too few.

    First the rows of a full batch on one process, at most 8; then those of the last, if fewer.
    """
    assert data.train is not None
    size, count, processes = data.batch_size, len(data.train), trainer.world_size
    rows = min(_FEW, max(1, min(size, count) // processes))
    yield rows, f"data.batch_size={size}"
    last, num_batches = _last_batch(count, size), -(-count // size)
    limit = trainer.limit_train_batches  # type: ignore[attr-defined]
    seen = int(limit * num_batches) if isinstance(limit, float) else limit
    if trainer.max_steps != -1:
        seen = min(seen, trainer.max_steps * trainer.accumulate_grad_batches)
    fewest = max(1, last // processes)  # on a process that has any
    if fewest < rows and seen >= num_batches:
        yield fewest, _larger_last_batch(data, processes)


def _last_batch(count: int, size: int) -> int:
    return count % size or size


def _larger_last_batch(data: MNISTDataModule, processes: int) -> str:
    """Return the remedy for a small last batch: the next batch size that leaves more images."""
    assert data.train is not None
    count, size = len(data.train), data.batch_size
    last = _last_batch(count, size)
    larger = range(size + processes, count, processes)
    better = (s for s in larger if _last_batch(count, s) > max(last, 2 * processes))
    hint = "".join(f"; {s} leaves {_last_batch(count, s)}" for s in islice(better, 1))
    return f"data.batch_size={size} leaves {last} of {count} images for the last batch{hint}"


def _loss(model: Autoencoder, batch: Batch) -> Tensor:
    rows = len(batch.x)
    label = batch.y if model.conditional else None
    terms = model.terms(batch.x, label, batch.x.new_zeros(rows, model.latent_dim))
    for name, values in terms._asdict().items():
        if isinstance(values, Tensor):
            _expect(name, values, (rows,))
    return model.loss(terms, 0).sum()


@torch.no_grad()
def _check_shapes(model: Autoencoder, batch: Batch) -> None:
    """Raise if a shape is wrong: broadcasting could hide it in training."""
    rows = len(batch.x)
    label = batch.y if model.conditional else None
    if type(model).__module__ == Autoencoder.__module__:  # a user's model may call other methods
        statistics = model.network.encode(batch.x, label)
        size, dtype = model.num_statistics * model.latent_dim, model.output_bias.dtype
        _expect("encode(x, y)", statistics, (rows, size), dtype)
        z = batch.x.new_zeros(rows, model.latent_dim)
        _expect("decode(z, y)", model.network.decode(z, label), (rows, *model.image_shape), dtype)
    _loss(model, batch)


def _expect(
    name: str, values: object, shape: tuple[int, ...], widest: torch.dtype = torch.float64
) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} gives a {type(values).__name__}, not a tensor")
    if values.dtype.itemsize > widest.itemsize:
        raise TypeError(f"{name} gives {values.dtype}, expected {widest}")
    if values.shape != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected {shape}")


def _check_gradients(trial: Autoencoder, trainer: lightning.Trainer) -> None:
    unused = [n for n, p in trial.named_parameters() if p.requires_grad and p.grad is None]
    if not unused:
        return
    shown = ", ".join(unused[:3]) + f" and {len(unused) - 3} others" * (len(unused) > 3)
    text = f"{_owner(trial, unused[0])}: no gradient reaches {shown}"
    strategy = trainer.strategy
    finds = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters")
    if trainer.world_size > 1 and not finds:
        raise ConfigError(
            f"{text}: with {trainer.world_size} devices, remove or freeze them, or set "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    if trainer.is_global_zero:
        log.warning("%s", text)


def _check_sync_batchnorm(
    trial: Autoencoder, data: MNISTDataModule, trainer: lightning.Trainer
) -> None:
    """Raise if a process without rows would join the reductions of SyncBatchNorm."""
    is_synced = getattr(trainer.strategy, "_layer_sync", None) and trainer.world_size > 1
    if not is_synced or not any(isinstance(m, _BatchNorm) for m in trial.modules()):
        return
    if trainer.strategy.root_device.type == "cpu":
        raise ConfigError("trainer.sync_batchnorm=true: must be false on a CPU")
    assert data.train is not None
    if _last_batch(len(data.train), data.batch_size) < trainer.world_size:
        remedy = _larger_last_batch(data, trainer.world_size)
        raise ConfigError(f"trainer.sync_batchnorm=true: needs images on each device; {remedy}")


def _owner(model: nn.Module, name: str = "") -> str:
    """Return the config node of a module, or of the model's first part from outside cvae."""
    parts = dict(model.named_children())
    foreign = (n for n, m in parts.items() if not type(m).__module__.startswith("cvae."))
    part = name.partition(".")[0] or next(foreign, "network")
    kind = type(getattr(model, part, model))
    return f"model.{part}={kind.__module__}.{kind.__qualname__}"


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
