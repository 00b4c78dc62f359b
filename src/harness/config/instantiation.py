"""Objects from the nodes of a config, and what is wrong with a node."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.config import science
from harness.config.fields import schema_of
from harness.config.keys import nearest_key
from harness.contract.errors import ConfigError
from harness.contract.settings import SCHEDULER_SETTINGS


def instantiate(node: DictConfig | Mapping[str, Any], **arguments: Any) -> Any:
    """The object that a config node with a ``_target_`` describes: the only door to Hydra's.

    For your own configs; :func:`harness.run_folder.loading.instantiate_read` is for archived ones.
    """
    import hydra.utils

    return hydra.utils.instantiate(node, _convert_="all", **arguments)  # plain lists and dicts


_GIVEN: dict[str, Sequence[str]] = {  # arguments that a run adds to those of a node
    "data": ("seed",),
    "module": ("model", "optimizer", "scheduler", "scheduler_settings", "seed"),
}
_OF_HYDRA = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def check_classes(
    node: Any,
    key: str = "",
    added: Mapping[str, Sequence[str]] | None = None,
    settings: Sequence[str] = (),
) -> None:
    """Import the classes of a config that have no schema, and check the names of their arguments.

    Args:
        node: of a trusted config, because the classes that it names are imported.
        key: dotted key of the node.
        added: names of the arguments that are added to those of a node, by its key; None for those
            that a run and its model add.
        settings: names of the top level of the config, which the module may take.

    Raises:
        ConfigError: a class cannot be imported, or does not take the arguments set.
    """
    if added is None:
        added, settings = _GIVEN | _given_by_classes(node), list(node)
    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str) and schema_of(target) is None:
            optional = settings if key == "module" else ()
            _check_arguments(node, key, _imported(key, target), added.get(key, ()), optional)
        for name, child in node.items():
            check_classes(child, f"{key}.{name}".lstrip("."), added, settings)
    elif isinstance(node, list):
        for number, child in enumerate(node):
            check_classes(child, f"{key}[{number}]", added, settings)


def _given_by_classes(cfg: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Arguments that the classes of a science add to those of their parts; yours may add others."""
    known = {k for k, node in cfg.items() if isinstance(node, Mapping) and _is_known(node)}
    parts = science.of_config(cfg).parts
    return {part: names for part, names in parts.items() if part.partition(".")[0] in known}


def _is_known(node: Mapping[str, Any]) -> bool:
    return schema_of(str(node.get("_target_"))) is not None


def _imported(key: str, target: str) -> Any:
    from hydra._internal.utils import _locate  # hydra.utils.get_object prints errors as well

    here = str(Path.cwd())  # the processes of a sweep import from here as well
    sys.path.append(here)
    try:
        found = _locate(target)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"{key}._target_={target}: {explained(error)}") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"{key}._target_={target}: must be a class or a function")
    return found


def _check_arguments(
    node: Mapping[str, Any],
    key: str,
    made: Callable[..., Any],
    added: Sequence[str],
    optional: Sequence[str],
) -> None:
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):  # written in C
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    own = SCHEDULER_SETTINGS if key == "scheduler" else ()
    target, given = node["_target_"], [name for name in node if name not in (*_OF_HYDRA, *own)]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        if unknown := [name for name in given if name not in parameters]:
            near = nearest_key(unknown[0], list(parameters))
            hint = f"did you mean {key}.{near}? " if near else ""
            leave_out = " ".join(f"~{key}.{name}" for name in unknown)
            named = ", ".join(f"{key}.{name}" for name in unknown)
            raise ConfigError(f"{named}: {target} does not take it; {hint}to drop it: {leave_out}")
        if lacking := [name for name in added if name not in parameters]:
            named = ", ".join(lacking)
            raise ConfigError(f"{key}._target_={target}: must take the argument {named}")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (*positional, inspect.Parameter.KEYWORD_ONLY)
        and name not in (*given, *added, *optional)
    ]
    if missing and not node.get("_partial_") and not node.get("_args_"):
        raise ConfigError(f"{key}.{missing[0]}: is not set, and {target} needs it")


def explained(error: Exception) -> str:
    """A line for an error of Hydra's: the key it is about, and the cause behind its wrapping."""
    key = re.search(r"full_key: (\S+)", str(error))
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line = " ".join(str(cause).split("full_key:")[0].split()) or type(cause).__name__
    return f"{key[1]}: {line[:300]}" if key else line[:300]
