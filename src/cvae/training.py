"""One training run, from its archived config to its result."""

import contextlib
import functools
import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from hydra.errors import InstantiationException
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from rich.logging import RichHandler

from cvae import checkpoints, runs, workers
from cvae.callbacks import AtomicCheckpoints
from cvae.data import MNISTDataModule
from cvae.digits import DataError
from cvae.lightning_module import NotFiniteError, VAEModule
from cvae.loggers import MetricsFile, close_wandb
from cvae.preflight import check_model
from cvae.processes import (
    INTERRUPTED,
    check_shared_memory,
    out_of_memory,
    stops_at_once,
)
from cvae.resume import TO_RESUME, LastCheckpoint, best_checkpoint
from cvae.schema import SCHEDULER_SETTINGS, ConfigError, num_cpus

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_LIGHTNING_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")
_CHATTY_LOGGERS = (  # they tell what is usual
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators",
    "lightning.fabric",
)
_KNOWN_WARNINGS = (
    ".*does not have many workers.*",  # batches are gathered in memory
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",  # Lightning's own
    ".*sync_dist=True.* when logging on epoch level.*",  # what is logged is global already
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # ours starts where it did
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*torch.distributed.nn.functional.all_gather.? is deprecated.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
)
_DDP: dict[
    str, dict[str, Any]
] = {  # values of trainer.strategy that become a DDPStrategy, and its arguments
    "auto": {},
    "ddp": {},
    "ddp_find_unused_parameters_true": {"find_unused_parameters": True},
    "ddp_find_unused_parameters_false": {"find_unused_parameters": False},
}


def train(
    module: VAEModule,
    datamodule: MNISTDataModule,
    trainer: lightning.Trainer,
    checkpoint_dir: Path | None = None,
    test: bool = True,
    resume_from: Path | None = None,
) -> dict[str, float]:
    """Fit, then test the best weights. Knows nothing of configs: call it from a notebook.

    The best weights are those that the trainer's first ModelCheckpoint calls best; without one,
    or where training ended before a validation, the last weights are tested.

    Args:
        checkpoint_dir: where to save last.ckpt if training has saved no checkpoint; None for
            nowhere.
        test: whether to score the test set; a search does not look at it.
        resume_from: the checkpoint to go on from.

    Returns:
        The metrics of validation and test, of the weights that were tested.
    """
    datamodule.prepare_data()
    datamodule.setup()
    module.model.initialize_output_bias(datamodule.mean_image)
    # here, as Lightning converts only after EMA and a checkpoint have set the weights in float32
    trainer.precision_plugin.convert_module(module)
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    if (best := best_checkpoint(trainer)) is not None:
        reader = trainer.strategy.checkpoint_io  # whichever has written it
        checkpoint = reader.load_checkpoint(best, weights_only=True)
        module.model.load_state_dict(runs.model_weights(checkpoint))
        module.validation = checkpoint["validation"]
    elif checkpoint_dir is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        last = checkpoint_dir / Path(runs.LAST).name
        if not last.is_file():
            trainer.save_checkpoint(last)
    module.eval()  # also where nothing is tested
    metrics = dict(module.validation)
    if test:
        trainer.test(module, datamodule=datamodule, verbose=False)
        scored = trainer.callback_metrics.items()
        metrics |= {name: float(value) for name, value in scored if name.startswith("test/")}
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise FloatingPointError(
            f"{', '.join(bad)}: not finite; a smaller optimizer.lr or trainer.gradient_clip_val?"
        )
    return metrics


def run(run_dir: Path) -> None:
    """Train what the config in a run folder describes, and write how it went."""
    rank = int(os.environ.get("RANK", 0))
    cfg = runs.load_config(run_dir)
    if not torch.cuda.is_available():
        # Lightning's: AdamW asks for a GPU at each step, and then loads a library to find none
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    with _logging(run_dir, rank), _recorded(run_dir, rank, cfg), stops_at_once():
        start = time.perf_counter()
        checkpoint = _checkpoint_to_go_on_from(run_dir)
        if rank == 0:
            _begin(run_dir, checkpoint)
        log.info("run %s in %s", cfg.name, run_dir)
        module, datamodule, trainer = build(cfg, run_dir, rank, goes_on=checkpoint is not None)
        if checkpoint is not None:
            _check_provenance(module.provenance, runs.load_checkpoint(checkpoint)["provenance"])
        checkpoint_dir = (run_dir / runs.BEST).parent if cfg.trainer.enable_checkpointing else None
        metrics = train(module, datamodule, trainer, checkpoint_dir, cfg.test, checkpoint)
        if rank == 0:
            _finish(cfg, run_dir, module, datamodule, trainer, metrics, time.perf_counter() - start)


def _checkpoint_to_go_on_from(run_dir: Path) -> Path | None:
    if runs.read_summary(run_dir).get("status") == "pending":
        return None
    folder = (run_dir / runs.LAST).parent
    found, skipped = checkpoints.newest_good(folder, "last*.ckpt", TO_RESUME)
    if found is None and skipped:
        raise ConfigError(f"{run_dir}: no checkpoint can be read; {skipped[0]}")
    return found


def _begin(run_dir: Path, checkpoint: Path | None) -> None:
    summary = runs.read_summary(run_dir)
    if checkpoint is None:
        if summary.get("status") != "pending":
            log.info("no checkpoint yet: the run starts over")
        runs.begin(run_dir, None)
        return
    step = int(runs.load_checkpoint(checkpoint)["global_step"])
    log.info("going on at step %d, from %s", step, checkpoint.name)
    MetricsFile(run_dir / runs.METRICS).rewind(step)
    runs.begin(run_dir, step)


def _check_provenance(now: dict[str, Any], then: dict[str, Any]) -> None:
    """Hold a run that goes on to what it began with.

    Raises:
        ConfigError: the data are others, or trainer.precision=auto means another here.
    """
    if now["data"] != then["data"]:
        raise ConfigError("the training data are not those that this run began with")
    if now["validation"] != then.get("validation"):  # of other images, or drawn by other noise
        raise ConfigError("the validation images are not those that this run began with")
    if (began := then.get("precision", now["precision"])) != now["precision"]:
        raise ConfigError(
            f"trainer.precision=auto: was {began} when this run began and is "
            f"{now['precision']} here"
        )
    changed = [f"{k} {then.get(k)}, now {now[k]}" for k in now if now[k] != then.get(k)]
    if changed:
        log.warning("equal up to rounding only: %s", "; ".join(changed))


def build(
    cfg: DictConfig, run_dir: Path, rank: int = 0, goes_on: bool = False
) -> tuple[VAEModule, MNISTDataModule, lightning.Trainer]:
    """The three objects of a run, from its config."""
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # srun binds its tasks to cores itself
    if processes > 1:
        torch.set_num_threads(max(1, num_cpus() // processes))
    lightning.seed_everything(cfg.seed, verbose=False)
    check_shared_memory(cfg.data)
    datamodule: MNISTDataModule = runs.instantiate(cfg.data, seed=cfg.seed)
    # below rank_timeout, so that this rank reports the cause before the others give up
    datamodule.batch_timeout = 0.9 * (cfg.get("rank_timeout") or 60)
    datamodule.prepare_data()  # first: without digits there is nothing to track
    datamodule.setup()
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg))
    schedule = dict(plain.get("scheduler") or {})
    settings = {k: schedule.pop(k) for k in SCHEDULER_SETTINGS if k in schedule}
    module = VAEModule(
        runs.build_model(cfg),
        optimizer=_factory("optimizer", plain["optimizer"]),
        scheduler=_factory("scheduler", schedule) if schedule else None,
        scheduler_settings=settings,
        seed=cfg.seed,
        test_num_samples=cfg.test_num_samples,
        config=plain,
        compile_mode=cfg.get("compile"),
    )
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
    arguments["default_root_dir"] = arguments["default_root_dir"] or str(run_dir)
    if arguments["precision"] == "auto":
        arguments["precision"] = _native_precision(arguments["accelerator"])
    module.provenance["precision"] = arguments["precision"]
    arguments["plugins"] = [AtomicCheckpoints(), *_cluster_environment()]
    if module.provenance["processes"] > 1 and arguments["strategy"] in _DDP:
        arguments["strategy"] = DDPStrategy(
            timeout=timedelta(seconds=cfg.rank_timeout), **_DDP[arguments["strategy"]]
        )
    callbacks = _callbacks(cfg)
    if not any(isinstance(c, Checkpoint) for c in callbacks):
        arguments["enable_checkpointing"] = False  # or Lightning would add one of its own
    try:
        trainer = lightning.Trainer(logger=False, callbacks=callbacks, **arguments)
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    check_model(module.model, datamodule, trainer)
    if rank == 0:
        trainer.loggers = _loggers(cfg, run_dir, goes_on)
    # Lightning's handler would talk to other ranks from within whatever they were saying
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return module, datamodule, trainer


def _factory(key: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the factory of a ``_partial_`` node; wrong arguments of a call raise ConfigError."""
    make = runs.instantiate(node)

    @functools.wraps(make)  # keeps its signature
    def make_or_explain(*arguments: Any, **named: Any) -> Any:
        try:
            return make(*arguments, **named)
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{key}._target_={node['_target_']}: {reason}") from error

    return make_or_explain


def _native_precision(accelerator: str) -> str:
    """bf16-mixed where the device multiplies matrices in bfloat16 faster than in float32."""
    if accelerator != "cpu" and torch.cuda.is_available():
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # avx512_bf16 alone trained at 0.62 of the rate of float32
        # older versions tell none
        capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
        is_native = bool(capabilities().get("amx_bf16"))
    return "bf16-mixed" if is_native else "32-true"


def _cluster_environment() -> list[ClusterEnvironment]:
    """Where ranks meet on SLURM: Lightning takes every process there for one that srun started."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    by_srun = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return [SLURMEnvironment(auto_requeue=False) if by_srun else LightningEnvironment()]


def is_smoke(cfg: DictConfig) -> bool:
    """Return whether a run is a smoke run, which W&B, comparisons and logs/latest leave out."""
    return bool(cfg.get("smoke") or cfg.trainer.fast_dev_run or cfg.trainer.overfit_batches)


def _loggers(cfg: DictConfig, run_dir: Path, goes_on: bool) -> list[Logger]:
    loggers: list[Logger] = [MetricsFile(run_dir / runs.METRICS)]
    tracking = {} if is_smoke(cfg) else cfg.get("logger") or {}
    for node in filter(None, tracking.values()):
        of_wandb = node._target_ == "cvae.loggers.wandb_logger"
        loggers.append(
            runs.instantiate(node, **({"resume": "allow"} if goes_on and of_wandb else {}))
        )
    commit = runs.read_summary(run_dir).get("git_commit")
    hyperparameters = {**runs.short_keys(cfg), "git_commit": commit}
    for logger in loggers:
        logger.log_hyperparams(hyperparameters)
    return loggers


def _callbacks(cfg: DictConfig) -> list[Callback]:
    callbacks = [runs.instantiate(node) for node in (cfg.get("callbacks") or {}).values() if node]
    off = {
        ModelCheckpoint: cfg.trainer.enable_checkpointing,
        LastCheckpoint: cfg.trainer.enable_checkpointing,
        lightning.pytorch.callbacks.ProgressBar: cfg.trainer.enable_progress_bar,
    }
    unwanted = tuple(kind for kind, wanted in off.items() if wanted is False)
    return [c for c in callbacks if not isinstance(c, unwanted)]


def _finish(
    cfg: DictConfig,
    run_dir: Path,
    module: VAEModule,
    datamodule: MNISTDataModule,
    trainer: lightning.Trainer,
    metrics: dict[str, float],
    seconds: float,
) -> None:
    callback = trainer.checkpoint_callback  # the first, which selects the run
    score = getattr(callback, "best_model_score", None)
    checkpoint = best_checkpoint(trainer) or run_dir / runs.LAST
    assert datamodule.validation is not None
    assert datamodule.test is not None
    runs.update_summary(
        run_dir,
        status="smoke" if is_smoke(cfg) else "finished",
        checkpoint=runs.name_in(run_dir, checkpoint) if checkpoint.is_file() else None,
        objective=None if score is None else float(score),
        monitor=getattr(callback, "monitor", None) or cfg.monitor,
        mode=getattr(callback, "mode", "max"),
        metrics=metrics,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        images_seen=module.images_seen,
        seconds=round(seconds, 2),
        train_seconds=round(module.train_seconds, 2),
        images_per_second=round(module.images_seen / max(1e-9, module.train_seconds), 1),
        peak_memory_bytes=_peak_memory(),
        device=_device_name(trainer.strategy.root_device),
        devices=trainer.world_size,
        precision=trainer.precision,
        num_parameters=sum(p.numel() for p in module.model.parameters()),
        validation_digest=datamodule.validation.digest(),
        test_digest=datamodule.test.digest(),
    )
    if best_checkpoint(trainer) is None:
        log.info("no best checkpoint was saved: the last weights stand for this run")
    if is_smoke(cfg):
        log.info("a smoke run: not tracked on W&B, not compared, logs/latest does not change")
    else:
        runs.point_latest(run_dir)
    if shown := "  ".join(f"{k} {v:.2f}" for k, v in metrics.items() if k.startswith("test/")):
        log.info("test set %s: %s", datamodule.test.digest(), shown)


def _peak_memory() -> int | None:
    """Return the peak memory of this process in bytes, or None if it is not known."""
    if resource is None:
        return None
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes there, KiB elsewhere
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'' if threads == 1 else 's'}"


@contextmanager
def _recorded(run_dir: Path, rank: int, cfg: DictConfig) -> Iterator[None]:
    """Write into the summary, and tell W&B, how a run ended that did not finish."""
    try:
        yield
    except runs.Stopped as error:
        log.info("%s; to resume: %s", error, _resume_command(run_dir))
        runs.update_summary(run_dir, status="interrupted")
        close_wandb(error.exit_code)
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into exit code 1
        log.info("interrupted; what there is lies in %s", run_dir)
        runs.update_summary(run_dir, status="interrupted")
        close_wandb(INTERRUPTED)
        raise SystemExit(INTERRUPTED) from None
    except runs.RunPruned as error:
        log.info("pruned: %s", error)
        runs.update_summary(run_dir, status="pruned")
    except Exception as error:
        remedy = workers.explain(error, cfg.data.get("num_workers") or 0)
        remedy = remedy or out_of_memory(error, "train")
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        details = {"lacks_data": True} if isinstance(error, DataError) else {}
        reason = remedy or " ".join(f"{kind}{error}".split())[:500]
        with contextlib.suppress(OSError):  # where even that finds no room
            if runs.read_summary(run_dir).get("status") == "running":  # the first to fail tells
                runs.update_summary(run_dir, status="failed", error=reason, rank=rank, **details)
        close_wandb(1)
        if isinstance(error, NotFiniteError):
            log.error("%s", reason)
            raise runs.Diverged(f"{run_dir}: {reason}") from error
        if isinstance(error, MisconfigurationException):  # of Lightning's, about what a person set
            error = ConfigError(f"trainer: {' '.join(str(error).split())}")
        if isinstance(error, ConfigError | InstantiationException) and not remedy:
            log.debug("the run failed", exc_info=True)  # the terminal gets a line
            raise error
        if remedy or isinstance(error, OSError):  # a full disk, say: a line tells it all
            log.error("%s", reason)  # the summary may not have found room for it
            log.debug("the run failed", exc_info=True)
            raise runs.RunFailed(f"{run_dir}: {reason}") from error
        if _is_of_another_rank(error):
            log.error("another process has left the run")
            log.debug("the run failed", exc_info=True)
        else:
            log.exception("the run failed")
        raise runs.RunFailed(f"{run_dir}: {reason}") from error
    close_wandb(0)


def _resume_command(run_dir: Path) -> str:
    words = (shlex.quote(f"resume={runs.shown(run_dir)}"), runs.trust_needed(run_dir))
    return " ".join((runs.python_command("train"), *filter(None, words)))


def _is_of_another_rank(error: Exception) -> bool:
    """Whether a process failed because it waited for one that is gone."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return several and (isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error))


class _LogFile(logging.FileHandler):
    """train.log; a full disk costs it lines, and the run ends at its next row of metrics.csv."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name there
        """Not the traceback on the terminal that is usual."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextmanager
def _logging(run_dir: Path, rank: int) -> Iterator[None]:
    """Messages to the terminal and to train.log, from one process; warnings from all."""
    file = _LogFile(run_dir / "train.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    handlers: list[logging.Handler] = [file]
    if rank == 0:
        if sys.stdout.isatty():
            handlers.append(RichHandler(show_path=False, show_level=False, show_time=False))
        else:
            handlers.append(logging.StreamHandler(sys.stdout))
        handlers[1].setLevel(logging.INFO)
    names = dict.fromkeys(("", "cvae", *_LIGHTNING_LOGGERS, *_CHATTY_LOGGERS))
    loggers = {name: logging.getLogger(name) for name in names}
    before = {k: (g.handlers, g.level, g.propagate) for k, g in loggers.items()}
    for name, logger in loggers.items():
        logger.handlers, logger.propagate = ([] if name else handlers), True
    loggers[""].setLevel(logging.INFO if rank == 0 else logging.WARNING)
    loggers["cvae"].setLevel(logging.DEBUG if rank == 0 else logging.WARNING)
    for name in _CHATTY_LOGGERS:
        loggers[name].setLevel(logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for name, (handlers_before, level, propagate) in before.items():
            logger = loggers[name]
            logger.handlers, logger.propagate = handlers_before, propagate
            logger.setLevel(level)
        file.close()
