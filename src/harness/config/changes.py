"""What may be changed in a run that goes on: all that cannot change the steps it takes."""

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
from harness.config.composition import composed
from harness.contract.errors import ConfigError

# keys and groups; the trajectory is the same whatever they hold
_FREE = (
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
_SCHEDULED = ("trainer.max_epochs",)  # the schedule may depend on it
_OF_THE_COMMAND = ("resume", "rerun", "trust")
_REPEATED = ("mode",)  # also part of the callbacks that it applies to
_ARCHIVED = ("run_dir", "run_id", "sweep", "monitor", "mode", "name")
_WANDB_PLACE = ("project", "entity")  # may come from the environment in a new run


class Change(NamedTuple):
    """Setting that changes when a run is resumed."""

    key: str
    was: Any
    now: Any

    @property
    def is_of_schedule(self) -> bool:
        """Whether it may bend the schedule of the run."""
        return self.key in _SCHEDULED

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.was)}, now {_shown(self.now)}"


def apply(archived: DictConfig, composed: DictConfig, typed: Sequence[str]) -> list[Change]:
    """Change an archived config as typed, and return what was changed.

    Args:
        archived: of the run; changed in place.
        composed: what the command line alone would give.
        typed: its overrides.

    Raises:
        ConfigError: something typed would change the steps of the run.
    """
    filled = copy.deepcopy(composed)
    typed_keys = {_key(override) for override in typed}
    for key in _ARCHIVED:
        if key not in typed_keys:
            filled[key] = archived[key]
    before, now = ((cfg.get("logger") or {}).get("wandb") for cfg in (archived, filled))
    if before and now:
        now.update(
            {k: before.get(k) for k in _WANDB_PLACE if f"logger.wandb.{k}" not in typed_keys}
        )
    free = (*_FREE, *_SCHEDULED, *_science_of(archived).free)
    changed, refused = [], []
    for key in dict.fromkeys(map(_key, typed)):
        if key in _OF_THE_COMMAND:
            continue
        was, now = _value(archived, key), _value(filled, key)
        if was == now:
            continue
        if not covered(key, free):
            refused.append(f"{key}: {_shown(was)} in the run, {_shown(now)} typed")
            continue
        changed.append(Change(key, was, now))
        with open_dict(archived):
            OmegaConf.update(archived, key, now, merge=False)
    if refused:
        raise ConfigError("\n".join(["a run goes on with the settings it began with", *refused]))
    return changed


def _science_of(cfg: DictConfig) -> science.Science:
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return science.of_config({str(key): node for key, node in plain.items()})


def _key(override: str) -> str:
    """The key of an override; a group's is where it lands: model/network is model.network."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")


def covered(key: str, allowed: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or lies below one."""
    return any(key == free or key.startswith(f"{free}.") for free in allowed)


def _value(cfg: DictConfig, key: str) -> Any:
    with contextlib.suppress(OmegaConfBaseException):
        value = OmegaConf.select(cfg, key)
        is_node = isinstance(value, DictConfig | ListConfig)
        return OmegaConf.to_container(value, resolve=True) if is_node else value
    return None


def _shown(value: Any) -> str:
    text = "a group" if isinstance(value, dict) else str(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def fingerprint(conf: Path, overrides: Sequence[str] = ()) -> str:
    """Digest of all that can change the steps of a run in the config that overrides compose.

    Args:
        conf: folder of the configuration files.
    """
    content = composed(conf, "train", overrides)
    free = (*_FREE, *science.of_config(content).free)
    for key in (*free, *_OF_THE_COMMAND, *_REPEATED):
        *path, last = key.split(".")
        node: Any = content
        for name in path:
            node = node.get(name) or {}
        node.pop(last, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
