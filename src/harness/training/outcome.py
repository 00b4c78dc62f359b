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
from harness.config.paths import python_command, shown
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
from harness.training.processes import out_of_memory

log = logging.getLogger(__name__)


@contextmanager
def recorded(folder: RunFolder, rank: int) -> Iterator[None]:
    """Record how the run ends, in its summary and on W&B, and raise with the right exit code."""
    run_dir, cfg = folder.path, folder.config
    try:
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
        remedy = workers.explain(error, cfg.data.get("num_workers") or 0)
        remedy = remedy or out_of_memory(error, science.of_config(reading.plain(cfg)).less_memory)
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        details = {"lacks_data": True} if isinstance(error, DataError) else {}
        reason = remedy or " ".join(f"{kind}{error}".split())[:500]
        with contextlib.suppress(OSError):  # the disk may be full
            if folder.reread().get("status") == "running":  # the first rank to fail
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
        if remedy or isinstance(error, OSError):  # for example a full disk: one line suffices
            log.error("%s", reason)  # the disk may be too full for the summary
            log.debug("the run failed", exc_info=True)
            raise RunFailed(f"{run_dir}: {reason}") from error
        if _is_of_another_rank(error):
            log.error("another process of the run ended; see the error of that rank")
            log.debug("the run failed", exc_info=True)
        else:
            log.exception("the run failed")
        raise RunFailed(f"{run_dir}: {reason}") from error
    close_wandb(0)


def _resume_command(folder: RunFolder) -> str:
    words = (shlex.quote(f"resume={shown(folder.path)}"), reading.trust_needed(folder.config))
    return " ".join((python_command("train"), *filter(None, words)))


def _is_of_another_rank(error: Exception) -> bool:
    """Return whether this process failed only because another rank ended."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return several and (isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error))
