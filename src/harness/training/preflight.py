"""Checks a module before training, by trial steps on a copy of its model."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from harness.contract.data import ExactDataModule
from harness.contract.errors import ConfigError
from harness.contract.module import ExactModule
from harness.contract.sampler import Rows

log = logging.getLogger(__name__)

_TRIAL_ROWS = 8  # rows of a trial step, because a full batch can take seconds on a CPU

# errors of a network that does not fit its model; other errors keep their traceback
_MODEL_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_module(module: ExactModule, data: ExactDataModule, trainer: lightning.Trainer) -> None:
    """Check a module by steps on a copy of its model, on a few rows and on a small last batch.

    The model, its buffers and the random generators do not change.

    Raises:
        ConfigError: the model cannot be copied for weight averaging, fails on a batch, returns a
            wrong shape, or has parameters without a gradient on several devices.
    """
    model = module.model
    _check_sizes_are_known(model)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    averaging_callback = next(
        (type(c).__name__ for c in callbacks if isinstance(c, WeightAveraging)), None
    )
    trial = _copy_model(model, averaging_callback)
    if trial is None:
        return
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    precision.convert_module(trial.to(device))

    def first_rows(count: int) -> Any:
        assert data.train is not None
        batch = data.train[Rows(0, torch.arange(count), count)]
        return precision.convert_input(move_data_to_device(batch, device))

    owner = _owner(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        message = f"{owner}: fails on 1 {_row_noun(module, 1)}"
        with _raise_config_error(message), torch.no_grad(), precision.forward_context():
            if module.trial_loss(trial.eval(), first_rows(1)) is None:
                return
        for rows, remedy in _batch_sizes(data, trainer):
            message = f"{owner}: fails on {rows} {_row_noun(module, rows)} in training"
            with _raise_config_error(message, remedy):
                with precision.forward_context():
                    loss = module.trial_loss(trial.train(), first_rows(rows))
                assert loss is not None
                loss.backward()
    _check_gradients(trial, trainer)
    _check_sync_batchnorm(trial, data, trainer)


def _row_noun(module: ExactModule, count: int) -> str:
    return module.items.removesuffix("s") if count == 1 else module.items


@contextmanager
def _raise_config_error(message: str, remedy: str = "") -> Iterator[None]:
    """Raise a one-line ConfigError for the error of a network that does not fit its model."""
    try:
        yield
    except _MODEL_ERRORS as error:
        raise ConfigError(f"{message}: {_one_line(error)}{remedy and f'; {remedy}'}") from error


def _check_sizes_are_known(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(is_lazy(p) for p in module.parameters(recurse=False)):
            raise ConfigError(
                f"{_owner(model, name)}: {name} is a {type(module).__name__} without a size: give "
                "it one, or call it once in the constructor"
            )


def _copy_model(model: nn.Module, averaging: str | None) -> nn.Module | None:
    """Return a copy of the model, or None if that fails; raise if ``averaging`` needs one."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        if averaging is None:
            log.warning("%s: cannot be copied, so it is not checked before training", _owner(model))
            return None
        remedy = f"train without {averaging}"
        if "deepcopy protocol" in str(error):
            remedy = (
                "do not store tensors computed from parameters, use torch.nn.utils."
                f"parametrizations.weight_norm instead of torch.nn.utils.weight_norm, or {remedy}"
            )
        raise ConfigError(
            f"{_owner(model)}: cannot be copied for {averaging}: {_one_line(error)}; {remedy}"
        ) from error


def _batch_sizes(data: ExactDataModule, trainer: lightning.Trainer) -> Iterator[tuple[int, str]]:
    """Yield the number of rows of each trial step, and the remedy if the model needs more rows.

    The first step has the rows of a full batch on one process, at most 8. The second has those of
    the last batch, if there are fewer.
    """
    assert data.train is not None
    size, count, processes = data.batch_size, len(data.train), trainer.world_size
    rows = min(_TRIAL_ROWS, max(1, min(size, count) // processes))
    yield rows, f"data.batch_size={size}"
    last, num_batches = _last_batch(count, size), -(-count // size)
    limit = trainer.limit_train_batches  # type: ignore[attr-defined]
    num_trained = int(limit * num_batches) if isinstance(limit, float) else limit
    if trainer.max_steps != -1:
        num_trained = min(num_trained, trainer.max_steps * trainer.accumulate_grad_batches)
    fewest = max(1, last // processes)  # rows of the smallest non-empty part of the last batch
    if fewest < rows and num_trained >= num_batches:
        yield fewest, _larger_last_batch(data, processes)


def _last_batch(count: int, size: int) -> int:
    return count % size or size


def _larger_last_batch(data: ExactDataModule, processes: int) -> str:
    """Return the remedy for a small last batch: the next batch size that leaves more rows."""
    assert data.train is not None
    count, size = len(data.train), data.batch_size
    last = _last_batch(count, size)
    larger = range(size + processes, count, processes)
    better = (s for s in larger if _last_batch(count, s) > max(last, 2 * processes))
    hint = "".join(f"; {s} leaves {_last_batch(count, s)}" for s in islice(better, 1))
    return f"data.batch_size={size} leaves {last} of {count} rows for the last batch{hint}"


def _check_gradients(trial: nn.Module, trainer: lightning.Trainer) -> None:
    unused = [n for n, p in trial.named_parameters() if p.requires_grad and p.grad is None]
    if not unused:
        return
    shown = ", ".join(unused[:3]) + f" and {len(unused) - 3} others" * (len(unused) > 3)
    text = f"{_owner(trial, unused[0])}: no gradient reaches {shown}"
    strategy = trainer.strategy
    finds_unused = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get(
        "find_unused_parameters"
    )
    if trainer.world_size > 1 and not finds_unused:
        raise ConfigError(
            f"{text}: with {trainer.world_size} devices, remove or freeze them, or set "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    if trainer.is_global_zero:
        log.warning("%s", text)


def _check_sync_batchnorm(
    trial: nn.Module, data: ExactDataModule, trainer: lightning.Trainer
) -> None:
    """Raise ConfigError for SyncBatchNorm on a CPU, or over a process without rows."""
    is_synced = getattr(trainer.strategy, "_layer_sync", None) and trainer.world_size > 1
    if not is_synced or not any(isinstance(m, _BatchNorm) for m in trial.modules()):
        return
    if trainer.strategy.root_device.type == "cpu":
        raise ConfigError("trainer.sync_batchnorm=true: must be false on a CPU")
    assert data.train is not None
    if _last_batch(len(data.train), data.batch_size) < trainer.world_size:
        remedy = _larger_last_batch(data, trainer.world_size)
        raise ConfigError(f"trainer.sync_batchnorm=true: needs rows on each device; {remedy}")


def _owner(model: nn.Module, name: str = "") -> str:
    """Return the config node and class of a part of the model, to name it in a message."""
    parts = dict(model.named_children())
    own_package = type(model).__module__.partition(".")[0]
    other_parts = (
        n for n, m in parts.items() if type(m).__module__.partition(".")[0] != own_package
    )
    part = name.partition(".")[0] or next(other_parts, "") or next(iter(parts), "")
    part_class = type(getattr(model, part) if part else model)
    key = ".".join(filter(None, ("model", part)))
    return f"{key}={part_class.__module__}.{part_class.__qualname__}"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
