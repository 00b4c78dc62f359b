"""Composes the config of a script from conf/, also inside a running Hydra application."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.config import science
from harness.config.hydra_versions import INITIALIZE_OPTIONS, register_resolver
from harness.config.paths import ROOT

_SET_AT_START = ("run_dir", "run_id", "name")


def compose_config(conf: Path, entry_point: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the resolved config of a script, as plain data.

    Args:
        conf: folder of the configuration files.
        entry_point: name of the script's config, such as train.
        overrides: overrides in Hydra's grammar.
    """
    with _initialize_hydra(conf):
        content = OmegaConf.to_container(compose(entry_point, list(overrides)), resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@contextlib.contextmanager
def _initialize_hydra(conf: Path) -> Iterator[None]:
    """Initialize Hydra on a folder, and restore an outer Hydra application afterwards."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), **INITIALIZE_OPTIONS):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's own node."""
    return OmegaConf.masked_copy(config, [key for key in map(str, config) if key != "hydra"])


def plain_settings(config: DictConfig) -> dict[str, Any]:
    """Return a composed config without Hydra's own node, resolved, as plain data."""
    plain = OmegaConf.to_container(without_hydra(config), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def settings_to_validate(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a run for validation, before the run starts.

    ``run_dir``, ``run_id`` and ``name`` may be null until then. Interpolations such as
    ``${run_dir}`` become the text "None", because they are text once the run has started.
    """
    filled = without_hydra(config)
    originals = {key: filled.get(key) for key in _SET_AT_START}
    with open_dict(filled):
        filled.update({key: str(value) for key, value in originals.items() if value is None})
        if filled.get("monitor") is None:
            filled.monitor = science.of_config(plain_settings(filled)).monitor(filled)
    return plain_settings(filled) | originals


def register_resolvers() -> None:
    """Register the resolvers of the configuration files.

    They are ``${project_root:}``, ``${unique:}`` and ``${env:NAME,default}``. An empty environment
    variable counts as unset.
    """
    register_resolver("project_root", lambda: str(ROOT))
    # cached for each command, so that the jobs of a sweep get the same folder
    register_resolver("unique", lambda: secrets.token_hex(4), use_cache=True)
    register_resolver("env", lambda name, default: os.environ.get(name) or default)
