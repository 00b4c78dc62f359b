"""Composes the config of a script from conf/, also within a running Hydra application."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from harness.config.paths import ROOT


def composed(conf: Path, entry_point: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the resolved config of a script, as plain data.

    Args:
        conf: folder of the configuration files.
        entry_point: name of the script's config, such as train.
        overrides: overrides in Hydra's grammar.
    """
    with _composing(conf):
        content = OmegaConf.to_container(compose(entry_point, list(overrides)), resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@contextlib.contextmanager
def _composing(conf: Path) -> Iterator[None]:
    """Initialize Hydra on a folder, and restore an outer Hydra application afterwards."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def register_resolvers() -> None:
    """Register the resolvers of the configuration files.

    They are ``${project_root:}``, ``${unique:}`` and ``${env:NAME,default}``. An empty environment
    variable counts as unset.
    """
    OmegaConf.register_new_resolver("project_root", lambda: str(ROOT), replace=True)
    # cached for a command, so that the jobs of a sweep agree on its folder
    OmegaConf.register_new_resolver(
        "unique", lambda: secrets.token_hex(4), use_cache=True, replace=True
    )
    OmegaConf.register_new_resolver(
        "env", lambda name, default: os.environ.get(name) or default, replace=True
    )
