"""Checks a config against types and ranges, with one line per error. Imports no torch.

The YAML files in conf/ hold the values; settings classes say which values are valid. A node is
checked by the settings class of its ``_target_``; nodes without one are not checked here.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from harness.config import science
from harness.config.fields import Trainer, schema_of
from harness.config.keys import nearest_key, shown
from harness.config.together import check_together
from harness.contract.settings import OneOf, Run

_NEEDED = ("data", "model", "optimizer", "trainer", "module")
_MADE_OF_A_TARGET = ("data", "model", "module", "optimizer", "scheduler")
_SEVERAL_TARGETS = ("logger", "callbacks")
_KEYS_OF_HYDRA = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def validate(cfg: Mapping[str, Any], settings: type | None = None) -> list[str]:
    """Everything wrong with a resolved config: a line for each, naming key, value and range.

    Args:
        settings: types and ranges of its top level; None for the config of a run.
    """
    if settings is not None:
        owner = f"{settings.__name__.lower()}.yaml"
        return [*_check_text(cfg), *_check_fields(cfg, settings, "", owner)]
    if missing := [f"{key}: cannot be left out" for key in _NEEDED if not cfg.get(key)]:
        return missing
    its_science = science.of_config(cfg)
    problems = list(_check_text(cfg))
    problems += _check_fields(cfg, its_science.train or Run, "", "train.yaml")
    if all(isinstance(cfg[key], Mapping) for key in _NEEDED):
        problems += _check_nodes(cfg, its_science.parts)
        problems += _check_fields(cfg["trainer"], Trainer, "trainer.", "lightning.Trainer")
        problems += check_arguments(cfg)
        if not problems:
            problems += check_together(cfg, its_science)
    return problems


def _check_text(node: Any, key: str = "") -> Iterator[str]:
    """Text must be text: no bytes of another encoding, nothing that steers a terminal."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _check_text(str(name), key)
            yield from _check_text(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for child in node:
            yield from _check_text(child, key)
    elif isinstance(node, str) and not node.replace("\n", "").replace("\t", "").isprintable():
        yield f"{key}={shown(node)}: must be printable text in UTF-8"
    elif isinstance(node, str) and "${" in node:  # escaped once, and read back from an archive
        yield f"{key}={shown(node)}: must be text without ${{"


def _check_nodes(cfg: Mapping[str, Any], parts: Iterable[str]) -> Iterator[str]:
    """Check that every node that describes an object names its class."""
    nodes = {key: cfg[key] for key in _MADE_OF_A_TARGET if cfg.get(key)}
    for group in _SEVERAL_TARGETS:
        nodes |= {f"{group}.{name}": node for name, node in (cfg.get(group) or {}).items() if node}
    for part in parts:
        group, _, name = part.partition(".")
        if isinstance(cfg[group].get(name), Mapping):
            nodes[part] = cfg[group][name]
    for key, node in nodes.items():
        target = node.get("_target_") if isinstance(node, Mapping) else node
        if not (isinstance(target, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target)):
            yield f"{key}._target_={shown(target)}: must be the dotted name of a class"


def check_arguments(node: Any, prefix: str = "") -> Iterator[str]:
    """What is wrong with the arguments of the known classes in a config."""
    if isinstance(node, Mapping):
        target = str(node.get("_target_"))
        if schema := schema_of(target):
            yield from _check_fields(node, schema, prefix, target)
        for key, child in node.items():
            yield from check_arguments(child, f"{prefix}{key}.")


def _check_fields(node: Mapping[str, Any], schema: type, prefix: str, owner: str) -> Iterator[str]:
    fields = get_type_hints(schema, include_extras=True)
    for key, kind in fields.items():
        if key not in node:
            if not hasattr(schema, key):
                yield f"{prefix}{key}: missing; it must be {_describe(kind)}"
        elif not _allows(kind, node[key]):
            described, path = _describe(kind), f"{prefix}{key}".replace(".", "/")
            if described.startswith("a group") and isinstance(node[key], str):
                described += f"; one is chosen with a slash, {path}={shown(node[key])}"
            yield f"{prefix}{key}={shown(node[key])}: must be {described}"
    for key in node.keys() - fields.keys() - _KEYS_OF_HYDRA:
        near = nearest_key(str(key), list(fields))
        hint = f"; did you mean {prefix}{near}?" if near else ""
        yield f"{prefix}{shown(key)}={shown(node[key])}: {owner} has no such key{hint}"


def _allows(kind: Any, value: Any) -> bool:
    origin = get_origin(kind)
    if origin is Annotated:
        base, *limits = get_args(kind)
        return _allows(base, value) and all(limit.allows(value) for limit in limits)
    if origin in (Union, UnionType):
        return any(_allows(option, value) for option in get_args(kind))
    if origin is list:
        (item,) = get_args(kind)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if item is Any:
            return is_list
        return is_list and len(value) > 0 and all(_allows(item, v) for v in value)
    if origin is dict:
        return isinstance(value, Mapping)
    if kind is Any:
        return True
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind is None else isinstance(value, kind)


_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        base, *limits = get_args(kind)
        if isinstance(limits[0], OneOf):
            return str(limits[0])
        return f"{_describe(base)} {' and '.join(map(str, limits))}"
    if origin in (Union, UnionType):
        return " or ".join(_describe(option) for option in get_args(kind))
    if origin is list:
        return "a list" if Any in get_args(kind) else f"a list, each {_describe(get_args(kind)[0])}"
    return "a group of settings" if origin is dict else _NAMES[kind]


def addable_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config lacks and that a class named in it would take."""
    if isinstance(node, Mapping):
        schema = schema_of(str(node.get("_target_"))) or object
        for key in get_type_hints(schema).keys() - node.keys():
            yield f"{prefix}{key}"
        for key, child in node.items():
            yield from addable_keys(child, f"{prefix}{key}.")
