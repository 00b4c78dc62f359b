"""What may be changed in a run that goes on: all that cannot change the steps it takes."""

import contextlib
import copy
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cvae.schema import ConfigError

# keys and groups; the trajectory is the same whatever they hold
_FREE = (
    "logger",
    "name",
    "callbacks.figures",
    "callbacks.progress",
    "callbacks.last",
    "compile",
    "data.data_dir",
    "data.eval_batch_size",
    "data.num_workers",
    "rank_timeout",
    "smoke",
    "test",
    "test_num_samples",
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
_COMPOSING = threading.Lock()  # Hydra has one state for all threads
_ARCHIVED = ("run_dir", "run_id", "sweep", "monitor", "mode", "name")
_WANDB_PLACE = ("project", "entity")  # may come from the environment in a new run


def apply(archived: DictConfig, composed: DictConfig, typed: Sequence[str]) -> list[str]:
    """Change an archived config as typed; what was changed, a line each.

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
    changed, refused = [], []
    for key in dict.fromkeys(map(_key, typed)):
        if key in _OF_THE_COMMAND:
            continue
        was, now = _value(archived, key), _value(filled, key)
        if was == now:
            continue
        if not _covered(key, (*_FREE, *_SCHEDULED)):
            refused.append(f"{key}: {_shown(was)} in the run, {_shown(now)} typed")
            continue
        changed.append(f"{key}: {_shown(was)}, now {_shown(now)}")
        with open_dict(archived):
            OmegaConf.update(archived, key, now, merge=False)
    if refused:
        raise ConfigError("\n".join(["a run goes on with the settings it began with", *refused]))
    return changed


def fingerprint(conf: Path, overrides: Sequence[str] = ()) -> str:
    """Digest of all that can change the steps of a run in the config that overrides compose.

    Args:
        conf: folder of the configuration files.
    """
    content = composed(conf, "train", overrides)
    for key in (*_FREE, *_OF_THE_COMMAND, *_REPEATED):
        *path, last = key.split(".")
        node: Any = content
        for name in path:
            node = node.get(name) or {}
        node.pop(last, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def composed(conf: Path, entry_point: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What the command line of a script gives, resolved; within another's main function too.

    Args:
        conf: folder of the configuration files.
        overrides: words as Hydra takes them.
    """
    with _composing(conf):
        content = OmegaConf.to_container(compose(entry_point, list(overrides)), resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@contextlib.contextmanager
def _composing(conf: Path) -> Iterator[None]:
    """For one caller at a time, within a main function of Hydra's as well as without."""
    with _COMPOSING:
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf), version_base="1.3"):
                yield
        finally:
            GlobalHydra.instance().hydra = outer


def changes_the_schedule(changed: Sequence[str]) -> bool:
    """Whether what :func:`apply` did may bend the schedule of a run."""
    return any(line.startswith(f"{key}:") for line in changed for key in _SCHEDULED)


def _key(override: str) -> str:
    """The key of an override; a group's is where it lands: model/network is model.network."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")


def _covered(key: str, allowed: Sequence[str]) -> bool:
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
