"""Builds the LightningModule, the data, the callbacks and the Trainer of a run."""

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import lightning
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf

from harness.config import instantiation
from harness.config.machine import num_cpus
from harness.config.run_settings import SCHEDULER_SETTINGS
from harness.contract.data import ExactDataModule
from harness.contract.errors import ConfigError
from harness.contract.module import ExactModule
from harness.run_folder import reading
from harness.run_folder.folder import RunFolder
from harness.run_folder.metrics_file import MetricsFile
from harness.run_folder.reading import METRICS
from harness.tracking.wandb import WANDB_LOGGER
from harness.training.callbacks import AtomicCheckpoints
from harness.training.preflight import check_module
from harness.training.processes import check_shared_memory
from harness.training.resume import LastCheckpoint

_KNOWN_WARNINGS = (
    ".*does not have many workers.*",  # batches are gathered in memory
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",  # from Lightning itself
    ".*sync_dist=True.* when logging on epoch level.*",  # logged values are global already
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # by LastCheckpoint
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*torch.distributed.nn.functional.all_gather.? is deprecated.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
)


# values of trainer.strategy that become a DDPStrategy, with its arguments
_DDP_ARGUMENTS: dict[str, dict[str, Any]] = {
    "auto": {},
    "ddp": {},
    "ddp_find_unused_parameters_true": {"find_unused_parameters": True},
    "ddp_find_unused_parameters_false": {"find_unused_parameters": False},
}


class Parts(NamedTuple):
    """The three objects that a run trains with."""

    module: ExactModule
    datamodule: ExactDataModule
    trainer: lightning.Trainer


def build_parts(folder: RunFolder, rank: int = 0) -> Parts:
    """Build the objects of a run from its config.

    Args:
        folder: the folder of the run.
        rank: rank of this process; rank zero logs metrics.

    Raises:
        ConfigError: the objects do not fit each other or this machine.
    """
    cfg = folder.config
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # not set by srun, which binds its tasks to cores itself
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if num_processes > 1:
        torch.set_num_threads(max(1, num_cpus() // num_processes))
    lightning.seed_everything(cfg.seed, verbose=False)
    plain = reading.to_plain(cfg)
    check_shared_memory(plain)
    datamodule = _require_type(
        instantiation.instantiate(cfg.data, seed=cfg.seed), "data", ExactDataModule
    )
    # below rank_timeout, so that this rank reports the cause before the others give up
    datamodule.batch_timeout = 0.9 * (cfg.get("rank_timeout") or 60)
    datamodule.prepare_data()  # before the loggers, so that a run without data is not tracked
    datamodule.setup()
    module = _build_module(plain)
    assert datamodule.train is not None
    assert datamodule.validation is not None
    module.provenance = {
        "data": datamodule.train.digest(),
        "validation": datamodule.validation.digest(),
        "torch": str(torch.__version__),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "threads": torch.get_num_threads(),
        "compile": cfg.get("compile"),
    }
    arguments: dict[str, Any] = dict(plain["trainer"])
    arguments["default_root_dir"] = arguments["default_root_dir"] or str(folder.path)
    if arguments["precision"] == "auto":
        arguments["precision"] = _native_precision(arguments["accelerator"])
    module.provenance["precision"] = arguments["precision"]
    verified = dict([folder.checkpoint] if folder.checkpoint else [])
    arguments["plugins"] = [AtomicCheckpoints(verified), *_cluster_environment()]
    if module.provenance["processes"] > 1 and arguments["strategy"] in _DDP_ARGUMENTS:
        arguments["strategy"] = DDPStrategy(
            timeout=timedelta(seconds=cfg.rank_timeout),
            gradient_as_bucket_view=True,  # avoids a copy of the gradients
            **_DDP_ARGUMENTS[arguments["strategy"]],
        )
    callbacks = _build_callbacks(cfg)
    if not any(isinstance(c, Checkpoint) for c in callbacks):
        arguments["enable_checkpointing"] = False  # else Lightning adds a callback
    try:
        trainer = lightning.Trainer(logger=False, callbacks=callbacks, **arguments)
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    check_module(module, datamodule, trainer)
    if rank == 0:
        trainer.loggers = _build_loggers(folder)
    # Lightning's handler communicates with other ranks, possibly within another collective
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return Parts(module, datamodule, trainer)


T = TypeVar("T")


def _require_type(instance: Any, key: str, required_type: type[T]) -> T:
    if not isinstance(instance, required_type):
        raise ConfigError(
            f"{key}._target_: {type(instance).__name__} must be a subclass of "
            f"{required_type.__module__}.{required_type.__qualname__}"
        )
    return instance


def _build_module(plain: dict[str, Any]) -> ExactModule:
    """Build the LightningModule, with the top-level settings that its constructor names."""
    schedule = dict(plain.get("scheduler") or {})
    settings = {k: schedule.pop(k) for k in SCHEDULER_SETTINGS if k in schedule}
    make = _build_factory("module", {**plain["module"], "_partial_": True})
    arguments = {
        "model": instantiation.instantiate(plain["model"]),
        "optimizer": _build_factory("optimizer", plain["optimizer"]),
        "scheduler": _build_factory("scheduler", schedule) if schedule else None,
        "scheduler_settings": settings,
        "seed": plain["seed"],
    }
    parameters = inspect.signature(make).parameters
    extra = {
        k: plain[k] for k in parameters if k in plain and k not in (*arguments, *plain["module"])
    }
    module = _require_type(make(**arguments, **extra), "module", ExactModule)
    module.config = plain
    return module


def _build_factory(key: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the factory of a ``_partial_`` node, which raises ConfigError on wrong arguments."""
    make = instantiation.instantiate(node)

    @functools.wraps(make)  # keeps its signature
    def make_or_explain(*arguments: Any, **named: Any) -> Any:
        try:
            return make(*arguments, **named)
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{key}._target_={node['_target_']}: {reason}") from error

    return make_or_explain


def _native_precision(accelerator: str) -> str:
    """Return bf16-mixed if the device multiplies matrices faster in bfloat16, else 32-true."""
    if accelerator != "cpu" and torch.cuda.is_available():
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # avx512_bf16 alone trained at 0.62 of the rate of float32
        # older versions of torch lack it
        capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
        is_native = bool(capabilities().get("amx_bf16"))
    return "bf16-mixed" if is_native else "32-true"


def _cluster_environment() -> list[ClusterEnvironment]:
    """Return the plugin for SLURM, where Lightning assumes that srun started all processes."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    is_from_srun = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return [SLURMEnvironment(auto_requeue=False) if is_from_srun else LightningEnvironment()]


def is_smoke(cfg: DictConfig) -> bool:
    """Return whether a run is a smoke run: left out of W&B, comparisons and logs/latest."""
    return bool(cfg.get("smoke") or cfg.trainer.fast_dev_run or cfg.trainer.overfit_batches)


def _build_loggers(folder: RunFolder) -> list[Logger]:
    cfg = folder.config
    hyperparameters = reading.short_keys(OmegaConf.masked_copy(cfg, _logged_keys(cfg)))
    hyperparameters["git_commit"] = folder.summary.get("git_commit")
    loggers: list[Logger] = [MetricsFile(folder.path / METRICS)]
    tracking = {} if is_smoke(cfg) else cfg.get("logger") or {}
    for node in filter(None, tracking.values()):
        if node._target_ != WANDB_LOGGER:
            loggers.append(instantiation.instantiate(node))
            continue
        resume = {"resume": "allow"} if folder.checkpoint is not None else {}
        make_logger = instantiation.instantiate(node, _partial_=True, **resume)
        loggers.append(make_logger(config=hyperparameters))
    for logger in loggers:
        logger.log_hyperparams(hyperparameters)
    return loggers


def _logged_keys(cfg: DictConfig) -> list[str]:
    """Return all keys but ``module``: its settings are at the top level already."""
    return [str(key) for key in cfg if key != "module"]


def _build_callbacks(cfg: DictConfig) -> list[Callback]:
    callbacks = [
        _require_type(instantiation.instantiate(node), f"callbacks.{name}", Callback)
        for name, node in (cfg.get("callbacks") or {}).items()
        if node
    ]
    enabled = {
        ModelCheckpoint: cfg.trainer.enable_checkpointing,
        LastCheckpoint: cfg.trainer.enable_checkpointing,
        lightning.pytorch.callbacks.ProgressBar: cfg.trainer.enable_progress_bar,
    }
    disabled = tuple(kind for kind, wanted in enabled.items() if wanted is False)
    return [c for c in callbacks if not isinstance(c, disabled)]
