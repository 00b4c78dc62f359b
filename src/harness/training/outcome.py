"""Records why a run did not finish: in its summary, on W&B, and as an exit code."""

import contextlib
import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException

from harness.config import science
from harness.config.paths import display_path, python_command
from harness.contract import workers
from harness.contract.errors import (
    INTERRUPTED,
    ConfigError,
    DataError,
    Diverged,
    NotFiniteError,
    RunFailed,
    RunPruned,
    Stopped,
)
from harness.run_folder import reading
from harness.run_folder.folder import RunFolder
from harness.tracking.wandb import close_wandb
from harness.training.processes import explain_out_of_memory

log = logging.getLogger(__name__)


@contextmanager
def record_outcome(folder: RunFolder, rank: int) -> Iterator[None]:
    """Record in the summary and on W&B how the run ended, and raise the matching exception.

    Raises:
        SystemExit: the run was stopped; it carries the exit code.
        ConfigError: a setting, a file or the machine is invalid.
        InstantiationException: Hydra could not make an object of the config.
        RunFailed: any other error.
    """
    run_dir, cfg = folder.path, folder.config
    try:
        with raise_hidden_stop():
            yield
    except Stopped as error:
        log.info("%s; to resume: %s", error, _resume_command(folder))
        folder.update(status="interrupted")
        close_wandb(error.exit_code)
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into exit code 1
        log.info("interrupted; run folder: %s", folder.path)
        folder.update(status="interrupted")
        close_wandb(INTERRUPTED)
        raise SystemExit(INTERRUPTED) from None
    except RunPruned as error:
        log.info("pruned: %s", error)
        folder.update(status="pruned")
    except Exception as error:
        remedy = workers.explain_failure(error, cfg.data.get("num_workers") or 0)
        remedy = remedy or explain_out_of_memory(
            error, science.of_config(reading.to_plain(cfg)).less_memory
        )
        type_prefix = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        details = {"lacks_data": True} if isinstance(error, DataError) else {}
        reason = remedy or " ".join(f"{type_prefix}{error}".split())[:500]
        with contextlib.suppress(OSError):  # the disk may be full
            if folder.reread().get("status") == "running":  # no other rank has failed yet
                folder.update(status="failed", error=reason, rank=rank, **details)
        close_wandb(1)
        if isinstance(error, NotFiniteError):
            log.error("%s", reason)
            raise Diverged(f"{run_dir}: {reason}") from error
        if isinstance(error, MisconfigurationException):  # Lightning rejects a setting
            error = ConfigError(f"trainer: {' '.join(str(error).split())}")
        if isinstance(error, ConfigError | InstantiationException) and not remedy:
            log.debug("the run failed", exc_info=True)  # the terminal shows one line
            raise error
        if remedy or isinstance(error, OSError):  # for example a full disk: no traceback
            log.error("%s", reason)  # the summary may lack it if the disk is full
            log.debug("the run failed", exc_info=True)
            raise RunFailed(f"{run_dir}: {reason}") from error
        if _is_of_another_rank(error):
            log.error("another process of the run ended; see the error of that rank")
            log.debug("the run failed", exc_info=True)
        else:
            log.exception("the run failed")
        raise RunFailed(f"{run_dir}: {reason}") from error
    close_wandb(0)


@contextmanager
def raise_hidden_stop() -> Iterator[None]:
    """Raise ``Stopped`` if another error hides it.

    Lightning's teardown fails if a signal stops the run before its first batch.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Stopped):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        raise


def _resume_command(folder: RunFolder) -> str:
    overrides = (
        shlex.quote(f"resume={display_path(folder.path)}"),
        reading.trust_override(folder.config),
    )
    return " ".join((python_command("train"), *filter(None, overrides)))


def _is_of_another_rank(error: Exception) -> bool:
    """Return whether this process failed only because another rank ended."""
    has_other_ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    return has_other_ranks and (
        isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)
    )
