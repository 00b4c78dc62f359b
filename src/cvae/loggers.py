"""Where metrics go: the file that is the record of a run, and Weights & Biases that mirrors it."""

import csv
import errno
import io
import logging
import netrc
import os
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from cvae import files

log = logging.getLogger(__name__)

_FIRST_COLUMNS = ("step", "epoch", "images_seen")
_WANDB_TIMEOUT = 8  # seconds to wait for a server before going on offline


class MetricsFile(Logger):
    """metrics.csv: a line for every row logged, on disk before the next step.

    A row with new columns rewrites the file, atomically, with a longer header.

    Args:
        path: the file; rows are added to one that exists.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        axes = {"step": step, **{k: metrics[k] for k in _FIRST_COLUMNS if k in metrics}}
        row = {**metrics, **{k: int(v) for k, v in axes.items() if v is not None}}
        if new := sorted(set(row) - set(self._columns)):
            self._widen(new)
        line = io.StringIO(newline="")
        csv.DictWriter(line, self._columns).writerow(row)
        size = self.path.stat().st_size
        try:
            with self.path.open("ab", buffering=0) as file:
                content = line.getvalue().encode()
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.truncate(self.path, size)  # no half a line
            raise files.unwritten(self.path, error) from error

    def _widen(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self._columns:
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        first = [c for c in _FIRST_COLUMNS if c in new]
        self._columns = self._columns + first + [c for c in new if c not in first]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        with files.replacing(self.path) as file:
            file.write(table.getvalue().encode())

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: config.yaml beside the file has them all."""


def has_wandb_account(host: str = "api.wandb.ai") -> bool:
    """Whether a key is at hand, by the environment or by ``wandb login``."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(
    save_dir: str | Path,
    run_id: str,
    *,
    name: str,
    project: str,
    entity: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    group: str | None = None,
    job_type: str | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
    log_model: bool = False,
) -> WandbLogger:
    """A run on Weights & Biases that never asks and never waits long.

    Online when an account is configured, offline otherwise or when the server does not answer.

    Args:
        save_dir: the run folder; the files lie in its wandb/.
        run_id: of the run on the server.
        mode: auto, online, offline or disabled; WANDB_MODE in the environment decides over auto.
        log_model: whether the best checkpoint becomes an artifact.
    """
    # its reports about itself: where a server hangs, they would hold up the end by half a minute
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    if mode == "auto":
        found = "online" if has_wandb_account() else "offline"
        mode = cast(Literal["online", "offline", "disabled"], os.environ.get("WANDB_MODE", found))
    arguments: dict[str, Any] = {
        "dir": str(save_dir),
        "id": run_id,
        "name": name,
        "project": project,
        "entity": entity,
        "group": group,
        "job_type": job_type,
        "tags": tags,
        "notes": notes,
    }
    settings = wandb.Settings(init_timeout=_WANDB_TIMEOUT, silent=True, console="off")
    run = None
    if mode == "online":
        try:
            run = wandb.init(mode="online", settings=settings, **arguments)
        except (wandb.errors.Error, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            log.warning("W&B does not answer (%s); this run is tracked offline", reason)
            mode = "offline"
            wandb.teardown()  # or the id would count as in use
    if run is None:
        run = wandb.init(mode=mode, settings=settings, **arguments)
    if mode == "offline":
        log.info(
            "W&B is offline; to upload this run: wandb sync %s",
            shlex.quote(str(Path(run.dir).parent)),
        )
    run.define_metric("images_seen")
    run.define_metric("epoch")
    for split in ("train", "val", "test"):
        run.define_metric(f"{split}/*", step_metric="trainer/global_step")
    for metric in ("val/elbo", "val/reconstruction"):
        run.define_metric(metric, step_metric="trainer/global_step", summary="max,last")
    return WandbLogger(experiment=run, log_model=log_model)
