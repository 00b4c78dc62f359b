"""Reads and updates config.yaml, summary.json and evaluation.json of a run. Imports no torch."""

import io
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config import science
from harness.config.paths import ROOT
from harness.contract.errors import ConfigError
from harness.contract.files import write_json
from harness.run_folder import trust

log = logging.getLogger(__name__)

CONFIG, SUMMARY, METRICS = "config.yaml", "summary.json", "metrics.csv"
EVALUATION = "evaluation.json"
UNFINISHED = ("pending", "running", "interrupted", "failed")  # states of a run that can resume
JOURNAL = "study.journal"  # record of a search, in the folder of its sweep
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


def holds_run(run_dir: Path) -> bool:
    """Return whether a folder already holds a run."""
    return any((run_dir / name).exists() for name in (CONFIG, SUMMARY, METRICS))


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the content of summary.json; empty if it cannot be read."""
    try:
        summary = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


def read_checkpoint_summary(run_dir: Path, checkpoint: Path) -> dict[str, Any]:
    """Return the content of summary.json, without its metrics if another checkpoint gave them."""
    summary = read_summary(run_dir)
    if checkpoint.resolve() != (run_dir / str(summary.get("checkpoint"))).resolve():
        summary.pop("metrics", None)
    return summary


def update_summary(run_dir: Path, **entries: Any) -> dict[str, Any]:
    """Add entries to summary.json, atomically, and return its new content."""
    summary = {**read_summary(run_dir), **entries}
    write_json(run_dir / SUMMARY, summary)
    return summary


def load_config(run_dir: Path) -> DictConfig:
    """Return the archived config of a run, as plain data: no class that it names is imported.

    Raises:
        ConfigError: the folder holds no run.
    """
    text = trust.read_text(run_dir, CONFIG)
    try:
        cfg = OmegaConf.load(io.StringIO(text))
    except Exception as error:  # any error that untrusted YAML can raise
        raise ConfigError(
            f"run={run_dir}: no readable {CONFIG} in it ({type(error).__name__})"
        ) from None
    return plain_config(cfg, f"run={run_dir}: {CONFIG}")


def trust_override(cfg: DictConfig) -> str:
    """Return the override trust=PACKAGE that is needed to use this run, or '' if none is."""
    packages = trust.packages_to_trust(OmegaConf.to_container(cfg))
    return (
        shlex.quote(f"trust={packages[0] if len(packages) == 1 else packages}") if packages else ""
    )


def load_untrusted_config(run_dir: Path, trusted: trust.Trust = None) -> DictConfig:
    """Return the archived config of a run that will train, after checking that it is safe.

    It names only known or trusted classes, and its callbacks, loggers and trainer write only inside
    the current run folder.

    Args:
        run_dir: the folder of the run.
        trusted: packages whose classes the config may also name.

    Raises:
        ConfigError: the folder holds no run, or its config names other code or paths outside.
    """
    from hydra.utils import get_object

    plain = OmegaConf.to_container(load_config(run_dir))
    assert isinstance(plain, dict)
    trust.check_targets(plain, trusted, get_object)
    cfg = OmegaConf.create(trust.confine_paths({str(k): v for k, v in plain.items()}, run_dir))
    if "data_dir" in cfg.data:
        cfg.data.data_dir = data_dir(cfg)
    return cfg


_RUN_NODES = ("model", "data", "trainer", "optimizer")


def plain_config(
    content: Any, source: str, required_nodes: Sequence[str] = _RUN_NODES
) -> DictConfig:
    """Check that an untrusted config is plain data, and return it in the current version.

    Args:
        content: the config.
        source: origin of the config, for the start of messages.
        required_nodes: nodes that it must have.

    Raises:
        ConfigError: it is not plain data, or lacks a required node.
    """
    try:
        cfg = content if isinstance(content, DictConfig) else OmegaConf.create(content)
        plain = OmegaConf.to_container(cfg, resolve=False)
        trust.check_plain(plain)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{source}: not a config ({type(error).__name__})") from None
    if not isinstance(plain, dict) or not all(
        isinstance(plain.get(k), dict) for k in required_nodes
    ):
        raise ConfigError(f"{source} is not the config of a run")
    by_key = {str(key): node for key, node in plain.items()}
    return OmegaConf.create(science.of_config(by_key).upgraded(by_key))


def data_dir(cfg: DictConfig) -> str:
    """Return the data folder of a run, or data/ of this project if the data are not there."""
    content = to_plain(cfg)
    archived_dir = ROOT / cfg.data.data_dir  # relative in an exported folder
    default = ROOT / "data"
    if science.of_config(content).has_data({**content["data"], "data_dir": str(archived_dir)}):
        return str(archived_dir)
    if archived_dir != default:
        log.warning(
            "data.data_dir=%s does not contain %s; using %s",
            archived_dir,
            cfg.data.get("name", "data"),
            default,
        )
    return str(default)


def relative_name(run_dir: Path, path: Path) -> str:
    """Return a path relative to its run folder, with forward slashes.

    Raises:
        ConfigError: the path lies outside the run folder.
    """
    return trust.resolve_inside(run_dir, path).relative_to(run_dir.resolve()).as_posix()


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as dicts and lists, with interpolations resolved."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def short_keys(cfg: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """Return a config as a flat dict; a key is its last part if that is unique, else dotted."""
    flat: dict[tuple[str, ...], Any] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                walk(value, (*path, str(key)))
        else:
            flat[path] = node

    plain = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
    walk(plain, ())
    counts: dict[str, int] = {}
    for path in flat:
        counts[path[-1]] = counts.get(path[-1], 0) + 1
    return {p[-1] if counts[p[-1]] == 1 else ".".join(p): value for p, value in flat.items()}


def read_evaluation(run_dir: Path) -> dict[str, Any]:
    """Return the content of evaluation.json; empty if it cannot be read."""
    try:
        evaluation = json.loads((run_dir / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    has_metrics = isinstance(evaluation, dict) and isinstance(evaluation.get("metrics"), dict)
    return evaluation if has_metrics else {}


def update_evaluation(
    run_dir: Path, measured_on: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Add measurements to evaluation.json, atomically, and return its path.

    Earlier measurements are dropped if an entry of ``measured_on`` differs.

    Args:
        run_dir: the folder of the run.
        measured_on: checkpoint, data and other entries that all metrics of the file share.
        results: metrics, skipped claims and seconds, each by name.
    """
    before = read_evaluation(run_dir)
    is_same_measurement = all(before.get(key) == value for key, value in measured_on.items())
    parts = {
        k: {**(before.get(k, {}) if is_same_measurement else {}), **v} for k, v in results.items()
    }
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    run_dir.mkdir(parents=True, exist_ok=True)  # an exported folder has no folder for outputs yet
    write_json(run_dir / EVALUATION, {**measured_on, "evaluated": now, **parts})
    return run_dir / EVALUATION
