"""Reads settings and metrics from run folders, to compare runs. Imports no torch."""

import glob
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness.config import science
from harness.config.changes import covered
from harness.config.paths import ROOT, exists
from harness.contract.errors import ConfigError
from harness.run_folder import trust
from harness.run_folder.reading import (
    CONFIG,
    EVALUATION,
    METRICS,
    SUMMARY,
    read_evaluation,
    read_summary,
)

_SIGNS = (CONFIG, SUMMARY, METRICS, EVALUATION, "checkpoints", ".hydra")  # of a run's folder
_IGNORED = re.compile(  # keys that do not affect the result, in addition to FREE of the science
    r"(seed|name|run_dir|run_id|sweep|mode|smoke|data\.data_dir|data\.num_workers"
    r"|data\.eval_batch_size|logger|logger\..*|callbacks\.progress\..*|trainer\.(enable_\w+"
    r"|log_every_n_steps|profiler|default_root_dir)|test|rerun|resume|trust|callbacks\.pruning\..*)$"
)


class Run(NamedTuple):
    """One run that can be compared."""

    folder: Path
    config: dict[str, Any]  # by dotted key, without what the result does not depend on
    seed: int | None
    metrics: dict[str, float]
    units: dict[str, str]
    minimized: str | None = None  # quantity that selected the run, if lower is better


class Broken(NamedTuple):
    """A folder that cannot be compared, and why."""

    folder: Path
    reason: str


def split_pattern(path: str) -> tuple[Path, str]:
    """Split a path into its longest existing part, brackets included, and the pattern below it."""
    parts = Path(path).parts
    for length in range(len(parts), 0, -1):
        folder = Path(*parts[:length])
        if exists(folder):
            return folder, str(Path(*parts[length:])) if parts[length:] else ""
    return Path(), path


def default_output(path: str) -> Path:
    """Return where the table goes: the compared folder, or logs/ for a pattern."""
    folder, pattern = split_pattern(path)
    return (ROOT / "logs" if pattern else folder) / "compare"


def find_folders(path: str) -> list[Path]:
    """Every folder of a run below what a path or a pattern names, and every empty folder there.

    Brackets in a path that exists are literal, not a pattern.

    Raises:
        ConfigError: nothing there.
    """
    found: dict[Path, None] = {}
    walked: set[Path] = set()
    start, pattern = split_pattern(path)
    whole = str(Path(glob.escape(str(start))) / pattern)
    for match in sorted(glob.glob(whole, recursive=True)):  # noqa: PTH207 - an absolute one
        top = Path(match).resolve()
        if not top.is_dir() or walked & {top, *top.parents}:
            continue
        walked.add(top)
        for place, folders, names in os.walk(top):
            here = Path(place)
            if any(sign in names or sign in folders for sign in _SIGNS):
                folders.clear()  # what a run keeps in folders is its own
                found[here] = None
            elif not folders and not names:
                found[here] = None
            folders.sort()
    if not found:
        raise ConfigError(f"runs={path}: no run folder there")
    return list(found)


def read_run(folder: Path) -> Run | Broken:
    """What a folder says of its run."""
    try:
        if not any(folder.iterdir()):
            return Broken(folder, "empty folder")
        config = yaml.safe_load(trust.read_text(folder, CONFIG))
    except ConfigError as error:
        return Broken(folder, str(error).removeprefix(f"run={folder}: "))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return Broken(folder, f"no readable {CONFIG} in it ({type(error).__name__})")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        return Broken(folder, f"{CONFIG} is not that of a run")
    summary, evaluation = read_summary(folder), read_evaluation(folder)
    status = summary.get("status")
    if status == "smoke":
        return Broken(folder, "a smoke run")
    if status != "finished":
        reason = f": {printable(summary['error'])}" if summary.get("error") else ""
        no_status = f"no readable {SUMMARY} in it"
        return Broken(folder, f"{printable(status)}{reason}" if status else no_status)
    scored = summary.get("metrics")
    scored = scored if isinstance(scored, dict) else {}
    told = {k: v for k, v in scored.items() if is_number(v)}
    measured = {
        k: m for k, m in evaluation.get("metrics", {}).items() if is_number(_get(m, "value"))
    }
    metrics = {**told, **{k: m["value"] for k, m in measured.items()}}
    if not metrics:
        return Broken(folder, "finished, without a metric")
    units = {k: str(m.get("unit", "")) for k, m in measured.items()}
    config = science.of_config(config).upgraded(config)
    free = science.of_config(config).free
    run_dir = str(config.get("run_dir") or folder)
    flat = {
        key: value
        for key, value in _flat(config)
        if not _IGNORED.match(key)
        and not covered(key, free)
        and not (isinstance(value, str) and run_dir in value)
    }
    monitor = str(summary.get("monitor")) if summary.get("mode") == "min" else None
    minimized = monitor and monitor.rpartition("/")[2]
    return Run(folder, flat, config.get("seed"), metrics, units, minimized)


def printable(value: Any) -> str:
    """Text of a folder's, in a line that cannot steer a terminal."""
    return "".join(c for c in " ".join(str(value).split()) if c.isprintable())


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _get(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, Mapping) else None


def _flat(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
