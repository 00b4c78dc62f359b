"""Reads exported folders, such as ``pretrained/``, after checking their digests.

Commands do not write into an exported folder. Their outputs go to ``logs/NAME``, where NAME is the
name of the folder; for the folder ``export`` of a run, ``RUN-export``.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config.paths import ROOT
from harness.contract import exported
from harness.contract.errors import ConfigError
from harness.run_folder import trust
from harness.run_folder.reading import CONFIG as CONFIG_OF_RUN

_PUBLISHED_KEYS = (  # published settings of a run
    *("name", "seed", "monitor", "mode", "module", "data", "model"),
    *("optimizer", "scheduler", "trainer", "callbacks"),
)
# published entries of summary.json, in addition to numbers
_TRAINING_ENTRIES = ("device", "precision", "git_commit", "versions", "metrics")
_DIGEST_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S+)")
_DEFAULT_NAME = "export"  # folder in a run where export.py writes


def is_exported(folder: Path) -> bool:
    """Return whether a folder holds an exported model and no run."""
    names = (exported.CONFIG, exported.WEIGHTS)
    return any((folder / n).is_file() for n in names) and not (folder / CONFIG_OF_RUN).is_file()


def output_dir(folder: Path) -> Path:
    """Return the folder for the outputs of commands that read an exported folder."""
    prefix = f"{folder.parent.name}-" if folder.name == _DEFAULT_NAME else ""
    return ROOT / "logs" / f"{prefix}{folder.name}"


def portable_config(config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published config of a run, with facts about its training.

    It has no settings of loggers and no absolute paths.

    Args:
        config: the config of the run.
        summary: summary.json of the run.
    """
    run_dir = Path(str(config.get("run_dir") or ROOT))

    def make_relative(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: make_relative(value) for key, value in node.items()}
        if isinstance(node, list):
            return [make_relative(value) for value in node]
        if not isinstance(node, str) or not Path(node).is_absolute():
            return node
        inside = (p for p in (run_dir, ROOT) if Path(node).is_relative_to(p))
        return next((Path(node).relative_to(p).as_posix() for p in inside), Path(node).name)

    settings = {key: make_relative(config[key]) for key in _PUBLISHED_KEYS if key in config}
    training = {
        key: value
        for key, value in summary.items()
        if key in _TRAINING_ENTRIES or isinstance(value, int | float)
    }
    return {**settings, "training": training or dict(config.get("training") or {})}


def load(folder: Path) -> dict[str, Any]:
    """Return the weights and the config of an exported folder, with the keys of a checkpoint.

    Loading runs no code from the folder. Weights stored as float16 are converted to float32.

    Raises:
        ConfigError: a file is missing, damaged, or of a newer format.
    """
    from safetensors import SafetensorError  # late: they import torch
    from safetensors.torch import load as load_weights

    digests = _read_digests(folder)
    try:
        _read_file(folder, exported.CONFIG, digests)
        config = json.loads(trust.read_text(folder, exported.CONFIG))
        content = _read_file(folder, exported.WEIGHTS, digests)
        weights = load_weights(content)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{folder}: no exported model ({reason})") from None
    _check_format(config, folder, bool(digests))
    return {
        "state_dict": {
            f"model.{name}": value.float()
            if value.is_floating_point() and value.itemsize < 4
            else value
            for name, value in weights.items()
        },
        "config": {key: value for key, value in config.items() if key != "format"},
    }


def _check_format(config: Any, folder: Path, has_digests: bool) -> None:
    path = folder / exported.CONFIG
    format_number = config.get("format") if isinstance(config, dict) else None
    if type(format_number) is not int or format_number < 1:
        raise ConfigError(f"{path}: format must be an integer from 1 to {exported.FORMAT}")
    if format_number > exported.FORMAT:
        raise ConfigError(
            f"{path}: written by a newer version (format {format_number}; this one reads up to "
            f"{exported.FORMAT})"
        )
    if format_number > 1 and not has_digests:
        raise ConfigError(f"{folder}: no exported model ({exported.DIGESTS} is missing)")


def _read_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in ``SHA256SUMS``; empty if there is no such file."""
    path = trust.resolve_inside(folder, exported.DIGESTS)
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None
    matches = [_DIGEST_LINE.fullmatch(line) for line in lines]
    digests = {match[2]: match[1] for match in matches if match}
    if len(digests) < len(lines) or not digests:
        raise ConfigError(f"{path}: damaged, not a list of digests")
    return digests


def _read_file(folder: Path, name: str, digests: Mapping[str, str]) -> bytes:
    """Return the content of a file, after checking its digest if there are digests."""
    path = trust.resolve_inside(folder, name)
    if not path.is_file():  # a pipe would block
        raise ConfigError(f"{folder}: no exported model ({name} is missing)")
    content = path.read_bytes()
    if digests and exported.sha256(content) != digests.get(name):
        raise ConfigError(f"{path}: damaged, its content does not match {exported.DIGESTS}")
    return content
