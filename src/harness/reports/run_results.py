"""Reads settings and metrics from run folders, to compare runs. Imports no torch."""

import glob
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness.config import science
from harness.config.paths import ROOT, path_exists
from harness.config.resume_overrides import is_at_or_below
from harness.contract.errors import ConfigError
from harness.run_folder import trust
from harness.run_folder.reading import (
    CONFIG,
    METRICS,
    SUMMARY,
    read_evaluation,
    read_summary,
)

# what identifies a run folder; not evaluation.json, which an exported folder can hold too
_MARKERS = (CONFIG, SUMMARY, METRICS, "checkpoints", ".hydra")
# keys in which repeats of a setting may differ, in addition to the science's `free` keys
_IGNORED_KEYS = re.compile(
    r"(seed|name|run_dir|run_id|sweep|mode|smoke|data\.data_dir|data\.num_workers"
    r"|data\.eval_batch_size|logger|logger\..*|callbacks\.progress\..*|trainer\.(enable_\w+"
    r"|log_every_n_steps|profiler|default_root_dir)|test|rerun|resume|trust|callbacks\.pruning\..*)$"
)


class Run(NamedTuple):
    """One run that can be compared."""

    folder: Path
    config: dict[str, Any]  # settings that can affect results, by dotted key
    seed: int | None
    metrics: dict[str, float]
    units: dict[str, str]
    minimized: str | None = None  # the monitored metric without its split, if lower is better
    started: str = ""  # ISO time
    test_digest: str = ""  # identifies the test set


class Excluded(NamedTuple):
    """A folder that cannot be compared, and why."""

    folder: Path
    reason: str


def split_pattern(path: str) -> tuple[Path, str]:
    """Split a path into its longest part that exists and the pattern below that part."""
    parts = Path(path).parts
    for length in range(len(parts), 0, -1):
        folder = Path(*parts[:length])
        if path_exists(folder):
            return folder, str(Path(*parts[length:])) if parts[length:] else ""
    return Path(), path


def default_output(path: str) -> Path:
    """Return the path of the tables without suffix: in the folder, or in logs/ for a pattern."""
    folder, pattern = split_pattern(path)
    return (ROOT / "logs" if pattern else folder) / "compare"


def find_folders(path: str) -> list[Path]:
    """Return all run folders, and all empty folders, in the folders that match a path or pattern.

    Brackets in a path that exists are literal, not a pattern.

    Raises:
        ConfigError: there is no such folder.
    """
    run_dirs: dict[Path, None] = {}
    walked: set[Path] = set()
    start, pattern = split_pattern(path)
    full_pattern = str(Path(glob.escape(str(start))) / pattern)
    for match in sorted(glob.glob(full_pattern, recursive=True)):  # noqa: PTH207 - an absolute one
        top = Path(match).resolve()
        if not top.is_dir() or walked & {top, *top.parents}:
            continue
        walked.add(top)
        for place, folders, names in os.walk(top):
            here = Path(place)
            if any(marker in names or marker in folders for marker in _MARKERS):
                folders.clear()  # do not look for runs inside a run folder
                run_dirs[here] = None
            elif not folders and not names:
                run_dirs[here] = None
            folders.sort()
    if not run_dirs:
        raise ConfigError(f"runs={path}: no run folder there")
    return list(run_dirs)


def read_run(folder: Path) -> Run | Excluded:
    """Return the settings and metrics of the run in a folder, or why it cannot be compared."""
    try:
        if not any(folder.iterdir()):
            return Excluded(folder, "empty folder")
        config = yaml.safe_load(trust.read_text(folder, CONFIG))
    except ConfigError as error:
        return Excluded(folder, str(error).removeprefix(f"run={folder}: "))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return Excluded(folder, f"no readable {CONFIG} in it ({type(error).__name__})")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        return Excluded(folder, f"{CONFIG} is not the config of a run")
    summary, evaluation = read_summary(folder), read_evaluation(folder)
    status = summary.get("status")
    if status == "smoke":
        return Excluded(folder, "a smoke run")
    if status != "finished":
        reason = f": {sanitize_text(summary['error'])}" if summary.get("error") else ""
        no_status = f"no readable {SUMMARY} in it"
        return Excluded(folder, f"{sanitize_text(status)}{reason}" if status else no_status)
    summary_metrics = summary.get("metrics")
    summary_metrics = summary_metrics if isinstance(summary_metrics, dict) else {}
    in_summary = {k: v for k, v in summary_metrics.items() if is_number(v)}
    measured = {
        k: m for k, m in evaluation.get("metrics", {}).items() if is_number(_get_entry(m, "value"))
    }
    metrics = {**in_summary, **{k: m["value"] for k, m in measured.items()}}
    if not metrics:
        return Excluded(folder, "finished, without a metric")
    units = {k: str(m.get("unit", "")) for k, m in measured.items()}
    config = science.of_config(config).upgraded(config)
    free = science.of_config(config).free
    run_dir = str(config.get("run_dir") or folder)
    flat = {
        key: value
        for key, value in _flatten(config)
        if not _IGNORED_KEYS.match(key)
        and not is_at_or_below(key, free)
        and not (isinstance(value, str) and run_dir in value)
    }
    monitor = str(summary.get("monitor")) if summary.get("mode") == "min" else None
    minimized = monitor and monitor.rpartition("/")[2]
    started, digest = (str(summary.get(key) or "") for key in ("started", "test_digest"))
    return Run(folder, flat, config.get("seed"), metrics, units, minimized, started, digest)


def drop_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[Excluded]]:
    """Return the newest run of each setting and seed, and the others.

    Runs with the same seed are not independent samples, so with them the standard deviation would
    be too small.
    """
    newest: dict[Any, Run] = {}
    repeats = []
    for run in sorted(runs, key=lambda run: run.started, reverse=True):
        key = run.folder if run.seed is None else (repr(sorted(run.config.items())), run.seed)
        if newest.setdefault(key, run) is not run:
            repeats.append(Excluded(run.folder, f"same settings and seed as {newest[key].folder}"))
    kept = set(map(id, newest.values()))
    return [run for run in runs if id(run) in kept], repeats


def sanitize_text(value: Any) -> str:
    """Return untrusted text as one line without terminal control characters."""
    return "".join(c for c in " ".join(str(value).split()) if c.isprintable())


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _get_entry(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, Mapping) else None


def _flatten(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
