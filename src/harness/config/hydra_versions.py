"""Calls whose form differs between Hydra 1.3 and 1.4, or between OmegaConf 2.3 and 2.4.

Hydra 1.4 warns of ``version_base``, and of objects that it instantiates without an allow-list; 1.3
has no allow-list. OmegaConf 2.4 warns of ``register_new_resolver``; in 2.3, ``register_resolver``
is another function, which is deprecated.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hydra
import hydra.utils
import omegaconf
from omegaconf import DictConfig, ListConfig, OmegaConf

_HAS_ALLOW_LISTS = not hydra.__version__.startswith("1.3.")
_utils: Any = hydra.utils  # 1.3 lacks some of its names
_REGISTER = (
    "register_new_resolver" if omegaconf.__version__.startswith("2.3.") else "register_resolver"
)

INITIALIZE_OPTIONS: dict[str, Any] = {} if _HAS_ALLOW_LISTS else {"version_base": "1.3"}
"""Arguments of ``hydra.initialize_config_dir``."""


def main_options() -> dict[str, Any]:
    """Return arguments of ``hydra.main``; conf/ and the command line may name any code."""
    if not _HAS_ALLOW_LISTS:
        return INITIALIZE_OPTIONS
    return {"execution_whitelist": _utils.UNSAFE_DISABLE_EXECUTION_CHECKS}


def instantiate_options(node: Any) -> dict[str, Any]:
    """Return arguments of ``hydra.utils.instantiate`` that allow the targets of a node, no others.

    Nodes of archived configs are checked before (:mod:`harness.run_folder.trust`).
    """
    if not _HAS_ALLOW_LISTS:
        return {}
    # reset, because hydra.main allows all targets
    allowed = _utils.execution_whitelist(sorted(set(_targets(node))), reset=True)
    return {"_execution_whitelist_": allowed}


def _targets(node: Any) -> list[str]:
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node)
    if isinstance(node, Mapping):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for child in node.values() for target in _targets(child)]
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [target for child in node for target in _targets(child)]
    return []


def register_resolver(name: str, resolver: Callable[..., Any], *, use_cache: bool = False) -> None:
    """Register a resolver for ``${NAME:...}``, or replace it."""
    getattr(OmegaConf, _REGISTER)(name, resolver, use_cache=use_cache, replace=True)
