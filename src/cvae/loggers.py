"""Where metrics go: the file that is the record of a run, and Weights & Biases that mirrors it."""

import csv
import errno
import io
import logging
import netrc
import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from cvae import files

log = logging.getLogger(__name__)

_FIRST_COLUMNS = ("step", "epoch", "images_seen")
_WANDB_TIMEOUT = 8  # seconds to wait for a server before going on offline
_WANDB_FINISH_TIMEOUT = 60  # seconds at the end for what is not uploaded yet


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
            with self.path.open(newline="", encoding="utf-8") as file:
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

    def rewind(self, step: int) -> None:
        """Drop the rows that a run which goes on at a step will write again.

        These are the later ones, those of the test set, and a last line that a kill has cut.
        """
        if not self._columns:
            return
        whole = self.path.read_bytes().rpartition(b"\n")[0].decode()
        rows = [row for row in csv.DictReader(io.StringIO(whole)) if None not in row.values()]
        kept = [row for row in rows if int(row["step"]) <= step and not _is_of_test(row)]
        with files.replacing(self.path) as file:
            writer = csv.DictWriter(lines := io.StringIO(newline=""), self._columns)
            writer.writeheader()
            writer.writerows(kept)
            file.write(lines.getvalue().encode())

    def _widen(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self._columns:
            with self.path.open(newline="", encoding="utf-8") as file:
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


def _is_of_test(row: Mapping[str, str]) -> bool:
    return any(value and column.startswith("test/") for column, value in row.items())


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
    resume: Literal["allow"] | None = None,
) -> WandbLogger:
    """A run on Weights & Biases that never asks and never waits long.

    Online when an account is configured, offline otherwise or when the server does not answer.

    Args:
        save_dir: the run folder; the files lie in its wandb/.
        run_id: of the run on the server.
        mode: auto, online, offline or disabled; WANDB_MODE in the environment decides over auto.
        log_model: whether the best checkpoint becomes an artifact.
        resume: "allow" to add to the run of this id.
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
        "resume": resume,
    }
    limits: dict[str, Any] = {"init_timeout": _WANDB_TIMEOUT}
    if "finish_timeout" in wandb.Settings.model_fields:  # of newer versions
        limits["finish_timeout"] = _WANDB_FINISH_TIMEOUT
    settings = wandb.Settings(silent=True, console="off", **limits)
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
    return WandbMirror(experiment=run, log_model=log_model)


class WandbMirror(WandbLogger):
    """A WandbLogger that can fail without harm: metrics.csv is the record, this is its mirror."""

    def _spared(self, mirror: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            mirror(*args, **kwargs)
        except Exception as error:  # whatever W&B raises: a run does not end for it
            log.warning("W&B: %s; the run goes on", " ".join(str(error).split())[:200])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._spared(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_image(self, *args: Any, **kwargs: Any) -> None:
        self._spared(super().log_image, *args, **kwargs)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._spared(super().finalize, status)


def close_wandb(exit_code: int) -> None:
    """Finish the W&B run, if there is one; what it has not uploaded stays in the run folder."""
    wandb = sys.modules.get("wandb")  # where no logger imported it, there is no run to finish
    if wandb is None or wandb.run is None:
        return
    files_of_it = Path(wandb.run.dir).parent
    start = time.monotonic()
    try:
        wandb.finish(exit_code=exit_code)
    except Exception as error:
        log.warning("W&B: %s", " ".join(str(error).split())[:200])
    if time.monotonic() - start >= _WANDB_FINISH_TIMEOUT:
        log.warning("W&B took too long; to upload the rest: wandb sync %s", files_of_it)


def wandb_mode(run_dir: Path) -> Literal["auto", "offline"] | None:
    """How to add to the W&B run of a folder, None where it has none or W&B is disabled."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    if any(run_dir.glob("wandb/run-*")):
        return "auto"
    return "offline" if any(run_dir.glob("wandb/offline-run-*")) else None


def log_evaluation(
    start: Callable[[], WandbLogger],
    metrics: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Any],
) -> None:
    """Add an evaluation to a W&B run: summary keys, a table and pictures; then close the run.

    Whatever W&B raises is told in a line: evaluation.json is the record, this is its mirror.

    Args:
        start: makes the logger of the run.
        metrics: by name, as evaluation.json has them.
        pictures: by name.
    """
    columns: list[str | int] = ["metric", "claim", "value", "standard_error", "floor"]
    columns += ["at_least", "at_most", "unit"]
    rows = [[name, *(metric.get(str(c)) for c in columns[1:])] for name, metric in metrics.items()]
    try:
        run = start().experiment
        import wandb

        values = {f"evaluation/{k}": m["value"] for k, m in metrics.items() if "value" in m}
        run.summary.update(values)
        table = wandb.Table(columns=columns, data=rows)
        images = {f"evaluation/{k}": wandb.Image(picture) for k, picture in pictures.items()}
        run.log({"evaluation/table": table, **images})
    except Exception as error:
        log.warning("W&B: %s; evaluation.json has it all", " ".join(str(error).split())[:200])
    close_wandb(0)
