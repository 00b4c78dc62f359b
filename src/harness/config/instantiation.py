"""Instantiates the nodes of a config, and explains why a node fails."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.config.hydra_versions import instantiate_options
from harness.contract.errors import ConfigError


def instantiate(node: DictConfig | Mapping[str, Any], **arguments: Any) -> Any:
    """Return the object that a config node with a ``_target_`` describes.

    Use it for your own configs. For archived configs use
    :func:`harness.run_folder.loading.instantiate_untrusted`.
    """
    import hydra.utils

    options = {"_convert_": "all", **instantiate_options(node)}  # plain lists and dicts
    return hydra.utils.instantiate(node, **options, **arguments)


def check_classes(node: Any, key: str = "") -> None:
    """Import the classes that have no source to read, so that a wrong name fails early.

    Args:
        node: node of a trusted config, since the classes that it names are imported.
        key: dotted key of the node.

    Raises:
        ConfigError: a class cannot be imported.
    """
    from harness.config.signatures import signature  # late: --help needs no pydantic

    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str) and signature(target) is None:
            _import(key, target)
        for name, child in node.items():
            check_classes(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            check_classes(child, f"{key}[{number}]")


def _import(key: str, target: str) -> None:
    from hydra._internal.utils import _locate  # hydra.utils.get_object prints errors as well

    here = str(Path.cwd())  # the jobs of a sweep import from here as well
    sys.path.append(here)
    try:
        imported = _locate(target)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"{key}._target_={target}: {explain_hydra_error(error)}") from None
    finally:
        sys.path.remove(here)
    if not callable(imported):
        raise ConfigError(f"{key}._target_={target}: must be a class or a function")


def explain_hydra_error(error: Exception) -> str:
    """Return one line for an error of Hydra: its key and the original cause."""
    key = re.search(r"full_key: (\S+)", str(error))
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line = " ".join(str(cause).split("full_key:")[0].split()) or type(cause).__name__
    return f"{key[1]}: {line[:300]}" if key else line[:300]
