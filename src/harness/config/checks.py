"""Checks a config before torch is imported, with one line per error.

The annotations of constructors define which values are valid. They are read from source files, so
your own network, an optimizer of torch and a callback of Lightning are checked in the same way.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import BaseModel

from harness.config import libraries, schemas, science, signatures, sources
from harness.config.consistency import check_consistency
from harness.config.keys import format_value, nearest_key
from harness.config.paths import CONF
from harness.config.run_settings import RUN_PARAMETERS, SCHEDULER_SETTINGS
from harness.config.signatures import REQUIRED, NotFoundError, Parameter, Signature

_REQUIRED_NODES = ("data", "model", "optimizer", "trainer", "module")
_SINGLE_NODES = ("data", "model", "module", "optimizer", "scheduler")
_NODE_GROUPS = ("logger", "callbacks")
PACKAGED_GROUPS = ("experiment", "debug", "sweep", "device")  # their files set keys of any group
_ANY_VALUE = schemas.describe_valid_values({})
_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


class PassedArguments(NamedTuple):
    """Arguments that the code passes to the class of a node, besides those in the config.

    Args:
        names: arguments passed by name, which the class must take.
        num_positional: how many of the first arguments are passed by position.
        optional: arguments passed by name if the class takes them.
        is_known: False if the code may pass others as well.
        needs_partial: whether the node must have ``_partial_: true``, because the code calls it.
    """

    names: tuple[str, ...] = ()
    num_positional: int = 0
    optional: tuple[str, ...] = ()
    is_known: bool = True
    needs_partial: bool = False


NO_ARGUMENTS = PassedArguments()
_PASSED_BY_RUN = {
    "data": PassedArguments(("seed",)),
    "module": PassedArguments(("model", "optimizer", "scheduler", "scheduler_settings", "seed")),
    "optimizer": PassedArguments(num_positional=1, needs_partial=True),
    "scheduler": PassedArguments(num_positional=1, optional=("total_steps",), needs_partial=True),
}


def arguments_passed_to(key: str, parent: Mapping[str, Any] | None = None) -> PassedArguments:
    """Return the arguments that the code passes to the class of a node.

    Args:
        key: dotted key of the node.
        parent: node that contains this one. The annotations of its class give the arguments with
            which the code calls a factory.
    """
    if parent is None:
        return _PASSED_BY_RUN.get(key, NO_ARGUMENTS)
    target, name = parent.get("_target_"), key.rpartition(".")[2]
    signature = _read_signature(target) if isinstance(target, str) else None
    parameter = signature.parameters.get(name) if signature else None
    factory = parameter and schemas.factory_of(parameter.value_type)
    if not factory:
        return PassedArguments(is_known=False)
    is_known = factory.arguments is not None
    return PassedArguments(factory.arguments or (), is_known=is_known, needs_partial=is_known)


@dataclass
class Arguments:
    """Arguments of a class that a config may set.

    Args:
        owner: name of the class or file, for messages.
        parameters: the arguments, by name.
        takes_any_name: whether the class accepts other names as well.
        required: names that the config must set.
        passed: names that the code sets.
    """

    owner: str
    parameters: Mapping[str, Parameter]
    takes_any_name: bool
    required: tuple[str, ...]
    passed: tuple[str, ...] = ()

    @functools.cached_property
    def model(self) -> type[BaseModel]:
        """The pydantic model, built on first use, because checking names does not need it."""
        return schemas.arguments_model(self.owner.rpartition(".")[2], self.parameters)


@functools.cache
def arguments_of(
    target: str,
    passed: PassedArguments = NO_ARGUMENTS,
    settings: tuple[str, ...] = (),
    key: str = "",
) -> Arguments | None:
    """Return the arguments of a class that a config may set, or None if there is no source.

    Args:
        target: dotted name of the class.
        passed: arguments that the code passes.
        settings: top-level keys of the config, which may be arguments of the LightningModule.
        key: dotted key of the node.
    """
    signature = _read_signature(target)
    if signature is None:
        return None
    passed_names = {
        *passed.names,
        *passed.optional,
        *list(signature.parameters)[: passed.num_positional],
    }
    ranges = libraries.ranges(target)
    parameters = {
        name: parameter.with_type(ranges[name]) if name in ranges else parameter
        for name, parameter in signature.parameters.items()
        if name not in passed_names
    }
    parameters |= SCHEDULER_SETTINGS if key == "scheduler" else {}
    required = [n for n, p in parameters.items() if p.default is REQUIRED and n not in settings]
    required += [n for n in libraries.required(target) if n in parameters]
    if target == libraries.TRAINER:
        required = list(parameters)
    of_code = tuple(name for name in passed_names if name in signature.parameters)
    return Arguments(target, parameters, signature.takes_any_name, tuple(required), of_code)


def train_arguments(cfg: Mapping[str, Any]) -> Arguments:
    """Return the settings of the top level of train.yaml: the run's, and those of the module."""
    node = cfg.get("module")
    target = node.get("_target_") if isinstance(node, Mapping) else None
    parameters = dict(RUN_PARAMETERS)
    of_module = arguments_of(target, _PASSED_BY_RUN["module"]) if isinstance(target, str) else None
    if of_module is not None:
        set_elsewhere = (*RUN_PARAMETERS, *(node or ()))
        parameters |= {n: p for n, p in of_module.parameters.items() if n not in set_elsewhere}
    required = tuple(
        name for name, parameter in RUN_PARAMETERS.items() if parameter.default is REQUIRED
    )
    return Arguments("train.yaml", parameters, of_module is None, required)


def validate(cfg: Mapping[str, Any], script: str | None = None) -> list[str]:
    """Return one line for each error in a resolved config, with key, value and valid range.

    Args:
        script: name of the script whose ``main`` takes the settings; None for the config of a run.
    """
    if script is not None:
        arguments = arguments_of(f"{script}.main")
        assert arguments is not None, script
        own = replace(arguments, owner=f"{script}.yaml")
        return [*_check_text(cfg), *_check_node(cfg, own, "")]
    if missing := [f"{key}: cannot be left out" for key in _REQUIRED_NODES if not cfg.get(key)]:
        return missing
    problems = [*_check_text(cfg), *_check_node(cfg, train_arguments(cfg), "")]
    if all(isinstance(cfg[key], Mapping) for key in _REQUIRED_NODES):
        problems += _check_targets(cfg)
        if arguments := arguments_of(libraries.TRAINER, PassedArguments(("logger", "callbacks"))):
            problems += _check_node(cfg["trainer"], arguments, "trainer.")
        problems += check_arguments(cfg)
        if not problems:
            problems += check_consistency(cfg, science.of_config(cfg))
    return list(dict.fromkeys(problems))


def _check_text(node: Any, key: str = "") -> Iterator[str]:
    """Reject text with undecodable bytes, terminal control characters or ``${``."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _check_text(str(name), key)
            yield from _check_text(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for child in node:
            yield from _check_text(child, key)
    elif isinstance(node, str) and not node.replace("\n", "").replace("\t", "").isprintable():
        yield f"{key}={format_value(node)}: must be printable text in UTF-8"
    elif isinstance(node, str) and "${" in node:  # the archived config would resolve it
        yield f"{key}={format_value(node)}: must be text without ${{"


def _check_targets(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Check that every node that describes an object names its class."""
    nodes = {key: cfg[key] for key in _SINGLE_NODES if cfg.get(key)}
    for group in _NODE_GROUPS:
        nodes |= {f"{group}.{name}": node for name, node in (cfg.get(group) or {}).items() if node}
    for group in _SINGLE_NODES:
        target = (cfg.get(group) or {}).get("_target_")
        signature = _read_signature(target) if isinstance(target, str) else None
        for name, parameter in signature.parameters.items() if signature else ():
            is_node = isinstance(cfg[group].get(name), Mapping)
            if is_node and schemas.factory_of(parameter.value_type):
                nodes[f"{group}.{name}"] = cfg[group][name]
    for key, node in nodes.items():
        target = node.get("_target_") if isinstance(node, Mapping) else node
        if not (isinstance(target, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target)):
            yield f"{key}._target_={format_value(target)}: must be the dotted name of a class"
        elif target.startswith("src."):  # src/ is on the path and is not a package
            yield f"{key}._target_={target}: must be {target.removeprefix('src.')}, without src."


def _read_signature(target: str) -> Signature | None:
    """Return a signature, or None if the source has errors, which check_arguments reports."""
    try:
        return signatures.signature(target)
    except (NotFoundError, sources.SourceError):
        return None


def check_arguments(
    node: Any, key: str = "", passed: PassedArguments | None = None, settings: Sequence[str] = ()
) -> Iterator[str]:
    """Yield one line for each wrong argument of a class in a config, without importing it.

    Args:
        node: the config, or a part of it.
        key: dotted key of the node.
        passed: arguments that the code passes to the class of the node.
        settings: top-level keys of the config, which may be arguments of the LightningModule.
    """
    if isinstance(node, list):
        for number, child in enumerate(node):
            yield from check_arguments(child, f"{key}[{number}]", PassedArguments(is_known=False))
    if not isinstance(node, Mapping):
        return
    target = node.get("_target_")
    if isinstance(target, str):
        passed = passed or arguments_passed_to(key)
        try:
            signature = signatures.signature(target)
        except (NotFoundError, sources.SourceError) as error:
            yield f"{key}._target_={format_value(target)}: {error}"
            signature = None
        if signature is not None:
            for package in sources.missing_packages(target.rpartition(".")[0]):
                yield f"{key}._target_={target}: it imports {package}, which is not installed"
            partial_problems = list(_check_passed_arguments(node, key, signature, passed))
            yield from partial_problems
            module_settings = tuple(settings) if key == "module" else ()
            arguments = arguments_of(target, passed, module_settings, key)
            assert arguments is not None
            is_incomplete = node.get("_args_") or (node.get("_partial_") and not passed.is_known)
            if is_incomplete or partial_problems:
                arguments = replace(arguments, required=())
            yield from _check_node(node, arguments, f"{key}.")
    settings = settings or (list(node) if not key else ())
    for name, child in node.items():
        child_key = f"{key}.{name}".lstrip(".")
        is_argument = key and key not in _NODE_GROUPS
        passed_to_child = arguments_passed_to(child_key, node) if is_argument else None
        yield from check_arguments(child, child_key, passed_to_child, settings)


def _check_passed_arguments(
    node: Mapping[str, Any], key: str, signature: Signature, passed: PassedArguments
) -> Iterator[str]:
    """Check that the class accepts the arguments that the code passes."""
    positional = list(signature.parameters)[: passed.num_positional]
    needed = [n for n in (*positional, *passed.names) if n in signature.parameters]
    is_needed = any(signature.parameters[n].default is REQUIRED for n in needed)
    if passed.needs_partial and is_needed and node.get("_partial_") is not True:
        yield f"{key}._partial_={format_value(node.get('_partial_'))}: must be true"
    if passed.is_known and not passed.needs_partial and node.get("_partial_"):
        yield f"{key}._partial_=true: must be false, the code uses the object itself"
    lacking = [n for n in passed.names if n not in signature.parameters]
    if lacking and not signature.takes_any_name:
        others = [n for n, p in signature.parameters.items() if p.default is REQUIRED]
        others = [n for n in others if n not in passed.names and n not in node]
        instead = f" instead of {', '.join(others)}" if others else ""
        named = ("arguments " if len(lacking) > 1 else "argument ") + ", ".join(lacking)
        yield f"{key}._target_={signature.target}: must take the {named}{instead}"


def _check_node(node: Mapping[str, Any], arguments: Arguments, prefix: str) -> Iterator[str]:
    """Check the keys and values of a node."""
    if missing := [name for name in arguments.required if name not in node]:
        properties = schemas.json_schema(arguments.model)["properties"]
        for name in missing:
            valid_values = schemas.describe_valid_values(properties[name])
            rule = f"; it must be {valid_values}" if valid_values != _ANY_VALUE else ""
            yield f"{prefix}{name}: missing{rule}"
    for name, valid_values in schemas.wrong_values(arguments.model, node):
        path = f"{prefix}{name}".replace(".", "/")
        is_choice = valid_values.startswith("a group") and isinstance(node[name], str)
        if is_choice and (CONF / path).is_dir():
            valid_values += f"; choose one with a slash: {path}={format_value(node[name])}"
        yield f"{prefix}{name}={format_value(node[name])}: must be {valid_values}"
    if not arguments.takes_any_name:
        yield from _check_names(node, arguments, prefix)


def _check_names(node: Mapping[str, Any], arguments: Arguments, prefix: str) -> Iterator[str]:
    unknown = [str(k) for k in node if k not in arguments.parameters and k not in _HYDRA_KEYS]
    known = list(arguments.parameters)
    unexplained: list[str] = []
    for name in unknown:
        if name in arguments.passed:
            yield f"{prefix}{name}: the code sets it; remove this key"
        elif not prefix and name in PACKAGED_GROUPS and (CONF / name).is_dir():
            yield f"{name}: the file in conf/{name}/ must start with # @package _global_"
        elif near := nearest_key(name, known):
            setting = f"{prefix}{format_value(name)}={format_value(node[name])}"
            yield f"{setting}: {arguments.owner} has no such key; did you mean {prefix}{near}?"
        else:
            unexplained.append(f"{prefix}{format_value(name)}")
    if unexplained:
        drop = " ".join(f"~{key}" for key in unexplained) if prefix else ""
        hint = f"; to drop {'it' if len(unexplained) == 1 else 'them'}: {drop}" if drop else ""
        yield f"{', '.join(unexplained)}: {arguments.owner} has no such key{hint}"


def addable_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that a class in a config accepts and the config does not set."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        key = prefix.rstrip(".")
        if isinstance(target, str) and (
            arguments := arguments_of(target, arguments_passed_to(key), key=key)
        ):
            yield from (f"{prefix}{name}" for name in arguments.parameters if name not in node)
        for key, child in node.items():
            yield from addable_keys(child, f"{prefix}{key}.")
