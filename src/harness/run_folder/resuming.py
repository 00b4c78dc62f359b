"""Resume of a run: find its folder, check the overrides and apply them to its config."""

import csv
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from harness.config import resume_overrides
from harness.config.paths import ROOT, display_path, expand_home
from harness.contract.errors import ConfigError
from harness.run_folder.exported_folder import is_exported
from harness.run_folder.folder import RunFolder
from harness.run_folder.reading import (
    LAST,
    METRICS,
    SUMMARY,
    UNFINISHED,
    load_config,
    load_untrusted_config,
    read_summary,
)


def find_run_to_resume(path: str) -> Path:
    """Return the folder of the run to resume; ``latest`` is the newest unfinished run.

    ``latest`` skips runs that failed before their first checkpoint, for example on a wrong
    argument.

    Raises:
        ConfigError: there is no such run.
    """
    if path != "latest":
        run_dir = expand_home(path)
        if not run_dir.is_dir():
            raise ConfigError(f"resume={path}: no such folder")
        if is_exported(run_dir):
            raise ConfigError(
                f"resume={path}: an exported model has no training state; to start from its "
                f"weights, use weights={path}"
            )
        load_config(run_dir)
        return run_dir.resolve()
    summaries = {p.parent: read_summary(p.parent) for p in (ROOT / "logs").rglob(SUMMARY)}
    unfinished = {
        run_dir: summary
        for run_dir, summary in summaries.items()
        if summary.get("status") in UNFINISHED and "started" in summary
        if summary["status"] != "failed" or any((run_dir / LAST).parent.glob("last*.ckpt"))
    }
    if not unfinished:
        raise ConfigError(
            f"resume=latest: every run in {ROOT / 'logs'} has finished, or failed before its first "
            "checkpoint"
        )
    return max(unfinished, key=lambda run_dir: str(unfinished[run_dir]["started"]))


def prepare_resume(folder: RunFolder, composed: DictConfig, overrides: Sequence[str]) -> bool:
    """Apply overrides to the config of a run, and return whether there is anything to train.

    Args:
        folder: the run to resume.
        composed: the config that the command line alone would give.
        overrides: the overrides on the command line.

    Raises:
        ConfigError: an override would change the training trajectory, or the config names code that
            is not trusted.
    """
    run_dir = folder.path
    cfg = load_untrusted_config(run_dir, composed.trust)
    cfg.run_dir = str(run_dir)
    changed = resume_overrides.apply_overrides(cfg, composed, overrides)
    limit, trained = cfg.trainer.max_epochs, _num_trained_epochs(run_dir)
    if limit is not None and 0 <= limit < trained:
        raise ConfigError(
            f"trainer.max_epochs={limit}: {trained} epochs are trained already; use at least "
            f"{trained}"
        )
    has_ended = folder.summary.get("status") not in UNFINISHED
    changes_schedule = any(change.can_affect_schedule for change in changed)
    if has_ended and not changes_schedule:
        print(f"{display_path(run_dir)}: this run has finished; nothing to do")
        return False
    for change in changed:
        print(f"changed: {change}")
    if changes_schedule and cfg.get("scheduler"):
        print("the learning rate may change: its schedule may depend on trainer.max_epochs")
    folder.write_config(cfg)
    return True


def _num_trained_epochs(run_dir: Path) -> int:
    """Return the number of trained epochs: those with validation metrics in metrics.csv."""
    if not (run_dir / METRICS).is_file():  # reading a pipe would block
        return 0
    try:
        with (run_dir / METRICS).open(newline="", encoding="utf-8") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if any(v for k, v in row.items() if k.startswith("val/"))
            ]
        return max((int(row["epoch"]) + 1 for row in rows), default=0)
    except (OSError, ValueError, KeyError, AttributeError, csv.Error):
        return 0
