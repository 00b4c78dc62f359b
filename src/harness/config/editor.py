"""Makes JSON Schemas with which an editor completes and checks the configuration files.

No key is required, since a file may extend another one. Every value may be an interpolation.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.config import checks, libraries, schemas
from harness.config.checks import Arguments, PassedArguments
from harness.config.composition import compose_config
from harness.config.documentation import read_documentation
from harness.config.run_settings import RunSettings
from harness.config.signatures import signature

_DRAFT = "http://json-schema.org/draft-07/schema#"
_INTERPOLATION = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
_HYDRA_KEYS: dict[str, Any] = {
    "defaults": {"type": "array", "description": "files that this one builds on"},
    "hydra": {"type": "object"},
    "_target_": {"type": "string", "description": "dotted name of the class or function"},
    "_partial_": {"type": "boolean", "description": "true for a factory, which the code calls"},
    "_args_": {"type": "array"},
    "_convert_": {"type": "string"},
    "_recursive_": {"type": "boolean"},
}
# groups whose files have another schema
_GROUPS_WITHOUT_SCHEMA = ("hydra", *checks.PACKAGED_GROUPS)
_NODE_GROUPS = ("callbacks", "logger")  # groups of nodes by name


def editor_schemas(conf: Path) -> dict[str, dict[str, Any]]:
    """Return the schemas by file name: one for each script and each group of nodes.

    Args:
        conf: folder of the configuration files.
    """
    groups = [p.relative_to(conf).as_posix() for p in sorted(conf.rglob("*")) if p.is_dir()]
    groups = [g for g in groups if g.partition("/")[0] not in (*_GROUPS_WITHOUT_SCHEMA, "trainer")]
    by_file = {_file_name(group): _group_schema(conf, group, groups) for group in groups}
    trainer = checks.arguments_of(libraries.TRAINER, PassedArguments(("logger", "callbacks")))
    assert trainer is not None
    by_file["trainer.json"] = _object_schema(_properties(trainer, libraries.TRAINER))
    for path in sorted(conf.glob("*.yaml")):
        if path.stem == "train":
            arguments = checks.train_arguments(compose_config(conf, "train"))
            top = [group for group in (*groups, "trainer") if "/" not in group]
            properties = _properties(arguments, f"{RunSettings.__module__}.{RunSettings.__name__}")
            properties |= _module_properties(conf, arguments, properties)
            properties |= {group: {"$ref": _file_name(group)} for group in top}
        elif (script_arguments := checks.arguments_of(f"{path.stem}.main")) is not None:
            properties = _properties(script_arguments, f"{path.stem}.main")
        else:
            continue
        by_file[f"{path.stem}.json"] = _object_schema(properties)
    return {name: {"$schema": _DRAFT, **schema} for name, schema in by_file.items()}


def _module_properties(
    conf: Path, arguments: Arguments, properties: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that the LightningModule takes from the top level, with descriptions."""
    module = compose_config(conf, "train")["module"]["_target_"]
    _, texts = read_documentation(module)
    own = [n for n in arguments.parameters if "description" not in properties[n] and n in texts]
    return {name: {"description": texts[name], **properties[name]} for name in own}


def _file_name(group: str) -> str:
    return f"{group.replace('/', '.')}.json"


def _object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    allowed = {**_HYDRA_KEYS, **properties}
    return {"type": "object", "properties": allowed, "additionalProperties": False}


def _properties(arguments: Arguments, target: str) -> dict[str, Any]:
    """Return the schema of each argument, with its description; interpolations are allowed."""
    value_schemas = schemas.json_schema(arguments.model)["properties"]
    _, texts = read_documentation(target)
    properties = {}
    for name, parameter in arguments.parameters.items():
        schema = {k: v for k, v in value_schemas[name].items() if k not in ("title", "default")}
        description = {"description": texts[name]} if texts.get(name) else {}
        default = {"default": parameter.default} if _is_plain(parameter.default) else {}
        properties[name] = {**description, **default, "anyOf": [schema, _INTERPOLATION]}
    return properties


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list)


def _targets(conf: Path, group: str) -> list[str]:
    nodes = map(OmegaConf.load, sorted((conf / group).glob("*.yaml")))
    return list(
        dict.fromkeys(t for node in nodes for t in _target_names(OmegaConf.to_container(node)))
    )


def _passed_to_group(conf: Path, group: str) -> PassedArguments:
    """Return the arguments that the code or the parent class passes to classes of a group."""
    above, _, _ = group.rpartition("/")
    parents = _targets(conf, above) if above else []
    candidates = [
        checks.arguments_passed_to(group.replace("/", "."), {"_target_": t}) for t in parents
    ]
    return next((p for p in candidates if p.is_known), checks.arguments_passed_to(group))


def _target_names(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        yield from [str(node["_target_"])] if "_target_" in node else []
        for child in node.values():
            yield from _target_names(child)


def _group_schema(conf: Path, group: str, groups: Iterable[str]) -> dict[str, Any]:
    below = {g.rpartition("/")[2]: g for g in groups if g.rpartition("/")[0] == group}
    nested = {name: {"$ref": _file_name(inner)} for name, inner in below.items()}
    cases, by_key, takes_any_name = [], dict(nested), False
    passed = _passed_to_group(conf, group)
    for target in _targets(conf, group):
        arguments = checks.arguments_of(target, passed, key=group)
        if arguments is None or signature(target) is None:
            continue
        properties = _properties(arguments, target) | nested
        summary, _ = read_documentation(target)
        schema = _object_schema(properties)
        if arguments.takes_any_name:
            del schema["additionalProperties"]
            takes_any_name = True
        description = {"description": summary} if summary else {}
        is_target = {
            "type": "object",
            "properties": {"_target_": {"const": target}},
            "required": ["_target_"],
        }
        cases.append({"if": is_target, "then": {**description, **schema}})
        for name in properties.keys() - nested.keys():
            by_key[name] = _merge_choices(by_key.get(name), properties[name])
    target_schema = {"anyOf": [{"enum": _targets(conf, group)}, {"type": "string"}]}
    any_class = _object_schema(dict(sorted(by_key.items())))
    if takes_any_name or not cases:
        del any_class["additionalProperties"]
    has_no_target = {"not": {"required": ["_target_"]}, "type": "object"}
    node = {
        "type": ["object", "null", "string", "boolean"],  # false leaves the node out
        "pattern": _INTERPOLATION["pattern"],
        "properties": {**_HYDRA_KEYS, "_target_": {**_HYDRA_KEYS["_target_"], **target_schema}},
        "allOf": [*cases, {"if": has_no_target, "then": any_class}],
    }
    if group not in _NODE_GROUPS:
        return node
    return {
        "type": ["object", "null", "string"],
        "pattern": _INTERPOLATION["pattern"],
        "properties": {"defaults": _HYDRA_KEYS["defaults"]},
        "additionalProperties": {"$ref": "#/definitions/node"},
        "definitions": {"node": node},
    }


def _merge_choices(one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a key that several classes take: a value valid for any of them."""
    if one is None:
        return {name: value for name, value in other.items() if name != "default"}
    choices = [*one["anyOf"], *(c for c in other["anyOf"] if c not in one["anyOf"])]
    return {**one, "anyOf": choices}


def schema_comment(path: Path, conf: Path, schemas: Path) -> str | None:
    """Return the comment that names the schema of a configuration file, or None if it has none.

    Args:
        path: the configuration file.
        conf: folder of the configuration files.
        schemas: folder of the schemas.
    """
    text = path.read_text(encoding="utf-8")
    group = path.parent.relative_to(conf).as_posix()
    if group.partition("/")[0] == "hydra":
        return None
    package = re.search(r"^#\s*@package ([\w.]+)", text, re.MULTILINE)
    if package is not None:
        is_global = package[1] == "_global_"
        name = "train.json" if is_global else _file_name(package[1].replace(".", "/"))
    else:
        name = f"{path.stem}.json" if group == "." else _file_name(group)
    depth = len(path.parent.relative_to(conf.parent).parts)
    relative = "../" * depth + (schemas / name).relative_to(conf.parent).as_posix()
    return f"# yaml-language-server: $schema={relative}" if (schemas / name).is_file() else None
