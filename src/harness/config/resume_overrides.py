"""Overrides allowed on resume: settings that do not affect the training trajectory."""

import contextlib
import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness.config import science
from harness.config.composition import compose_config
from harness.contract.errors import ConfigError

# keys and groups that do not affect the training trajectory
_FREE_KEYS = (
    "cuda_graph",
    "logger",
    "name",
    "callbacks.progress",
    "callbacks.last",
    "data.data_dir",
    "data.eval_batch_size",
    "data.num_workers",
    "rank_timeout",
    "smoke",
    "test",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.enable_progress_bar",
    "trainer.max_time",
    "trainer.num_nodes",
    "trainer.profiler",
    "trainer.strategy",
)
_SCHEDULE_KEYS = ("trainer.max_epochs",)  # the schedule may depend on it
_COMMAND_KEYS = ("resume", "rerun", "trust")
_COPIED_KEYS = ("mode",)  # callbacks have a copy of the value
_KEPT_KEYS = ("run_dir", "run_id", "sweep", "monitor", "mode", "name")  # keep archived values
_WANDB_KEYS = ("project", "entity")  # a new run may take them from the environment


class Change(NamedTuple):
    """Setting that changes when a run is resumed."""

    key: str
    was: Any
    now: Any

    @property
    def can_affect_schedule(self) -> bool:
        """True if the change can affect the learning-rate schedule."""
        return self.key in _SCHEDULE_KEYS

    def __str__(self) -> str:
        return f"{self.key}: {_short_text(self.was)}, now {_short_text(self.now)}"


def apply_overrides(
    archived: DictConfig, composed: DictConfig, overrides: Sequence[str]
) -> list[Change]:
    """Apply the overrides of a resume to an archived config, and return the changes.

    Args:
        archived: config of the run; changed in place.
        composed: config of a new run with the same command line.
        overrides: overrides on the command line.

    Raises:
        ConfigError: an override would affect the training trajectory.
    """
    requested = copy.deepcopy(composed)
    by_key = {_dotted_key(override): override for override in overrides}
    for key in _KEPT_KEYS:
        if key not in by_key:
            requested[key] = archived[key]
    before, now = ((cfg.get("logger") or {}).get("wandb") for cfg in (archived, requested))
    if before and now:
        now.update({k: before.get(k) for k in _WANDB_KEYS if f"logger.wandb.{k}" not in by_key})
    free_keys = (*_FREE_KEYS, *_SCHEDULE_KEYS, *_science_of(archived).free)
    changed, rejected = [], []
    for key, override in by_key.items():
        if key in _COMMAND_KEYS:
            continue
        was, now = _plain_value(archived, key), _plain_value(requested, key)
        if was == now:
            continue
        if not is_at_or_below(key, free_keys):
            rejected.append(f"{override}: the run has {_short_text(was)}")
            continue
        changed.append(Change(key, was, now))
        with open_dict(archived):
            OmegaConf.update(archived, key, now, merge=False)
    if rejected:
        reason = "resume= cannot change how a run trains; remove these overrides or start a new run"
        raise ConfigError("\n".join([reason, *rejected]))
    return changed


def _science_of(cfg: DictConfig) -> science.Science:
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return science.of_config({str(key): node for key, node in plain.items()})


def _dotted_key(override: str) -> str:
    """Return the dotted key that an override sets: model.network for model/network=mlp."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")


def is_at_or_below(key: str, allowed: Sequence[str]) -> bool:
    """Return whether a dotted key is one of the allowed keys or lies below one."""
    return any(key == free or key.startswith(f"{free}.") for free in allowed)


def _plain_value(cfg: DictConfig, key: str) -> Any:
    with contextlib.suppress(OmegaConfBaseException):
        value = OmegaConf.select(cfg, key)
        is_node = isinstance(value, DictConfig | ListConfig)
        return OmegaConf.to_container(value, resolve=True) if is_node else value
    return None


def _short_text(value: Any) -> str:
    text = str(value.get("_target_", "a group")) if isinstance(value, dict) else str(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def fingerprint(conf: Path, overrides: Sequence[str] = ()) -> str:
    """Return a digest of the settings of a new run that affect its training trajectory.

    Args:
        conf: folder of the configuration files.
        overrides: overrides in Hydra's grammar.
    """
    content = compose_config(conf, "train", overrides)
    free = (*_FREE_KEYS, *science.of_config(content).free)
    for key in (*free, *_COMMAND_KEYS, *_COPIED_KEYS):
        *path, last = key.split(".")
        node: Any = content
        for name in path:
            node = node.get(name) or {}
        node.pop(last, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
