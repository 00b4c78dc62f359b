"""Explains errors of Hydra in terms of the overrides, and suggests what a user meant."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from harness.command_line.overrides import GROUPS_WITHOUT_DEFAULT, OPTIONAL_GROUPS
from harness.config.composition import compose_config
from harness.config.instantiation import explain_hydra_error
from harness.config.keys import iterate_keys, nearest_key
from harness.config.paths import CONF, display_path

_NULL_SYNONYMS = ("none", "no", "off", "disabled")  # what users type for null
_SHARED_OPTIONS = ("none", "default")  # options of several groups


def shorten(arguments: Sequence[str]) -> str:
    """Return the arguments as one text of at most 200 characters."""
    text = " ".join(arguments)
    return text if len(text) <= 200 else f"{text[:197]}..."


def explain_override_error(error: Exception, config_name: str, arguments: list[str]) -> str:
    """Return one line that explains an error of Hydra in terms of the overrides.

    Args:
        config_name: name of the script and of its configuration file.
        arguments: overrides of the config that failed.
    """
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _explain_key(match[1].split("@")[0], config_name, arguments)
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match[1].rpartition("/")
        return _explain_option(group, option)
    if isinstance(error, OverrideParseException):
        hint = "quote values that contain , = [ ] { } spaces or letters beyond ASCII"
        return f"{error.override}: not of the form key=value; {hint}"
    line = explain_hydra_error(error)
    if match := re.search(r"Interpolation key '([^']+)' not found", line):
        keys = iterate_keys(_compose_groups(config_name, arguments))
        return f"{line}{_did_you_mean(nearest_key(match[1], [*keys]))}"
    match = re.search(r"Could not delete from config. '([^']+)' does not exist", line)
    if match and match[1] in iterate_keys(_compose_groups(config_name, arguments)):
        return f"~{match[1]}: {match[1]} is null already; remove this override"
    if "Cannot merge DictConfig with ListConfig" in line:
        expected_types = {"[": "a mapping", "{": "a list"}
        containers = [(a, expected_types.get(a.partition("=")[2][:1])) for a in arguments]
        lines = [f"{override}: must be {expected}" for override, expected in containers if expected]
        if len(lines) == 1:
            return lines[0]
    names_an_override = any(re.split(r"[=@]", a.lstrip("+~"))[0] in line for a in arguments)
    return line if names_an_override or not arguments else f"{shorten(arguments)}: {line}"


def explain_unexpected_error(error: Exception, arguments: list[str]) -> str:
    """Return one line for an error with which Hydra fails on a file or an override."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.YAMLError) and mark is not None:
        problem = getattr(error, "problem", None) or "not valid YAML"
        return f"{display_path(Path(mark.name))}, line {mark.line + 1}: {problem}"
    for override in arguments if "group override must be a string" in str(error) else ():
        group = override.lstrip("+").partition("=")[0]
        if group in config_groups():
            null = " or null" if group in (*OPTIONAL_GROUPS, *GROUPS_WITHOUT_DEFAULT) else ""
            return f"{override}: must be one of {', '.join(_group_options(group))}{null}"
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{shorten(arguments)}: Hydra rejects these overrides ({shorten([reason])})"


def _explain_key(key: str, config_name: str, arguments: list[str]) -> str:
    """Explain an override of a key that the config does not have."""
    override = next((a for a in arguments if a.lstrip("+~").split("=")[0] == key), key)
    if key in config_groups() and config_name == "train":  # for example a model without a penalty
        return f"{override}: the chosen options have no group {key}; remove this override"
    cfg = _compose_groups(config_name, arguments)
    keys = list(iterate_keys(cfg))
    ending = ".".join(key.split(".")[-2:])
    if key in keys and (others := [k for k in keys if k != key and k.endswith(f".{ending}")]):
        return f"{override}: takes its value from {others[0]}; set that instead"
    from harness.config.checks import addable_keys  # late: --help needs no pydantic

    if key in addable_keys(cfg):
        return f"{override}: the configuration has no {key} yet; to add it: +{override}"
    if choices := list(_options_with_key(key, config_name, arguments)):
        return f"{override}: there is no key {key}; it exists with {' or '.join(choices)}"
    groups = config_groups() if config_name == "train" else []
    value = override.partition("=")[2]
    near = _nearest_option(key, value, groups) or nearest_key(key, [*keys, *groups])
    hint = _did_you_mean(near) or "; --help lists the keys"
    return f"{override}: there is no key {key}{hint}"


def _explain_option(group: str, option: str) -> str:
    """Explain an option that a config group does not have."""
    options = _group_options(group)
    below = [g for g in config_groups() if g.startswith(f"{group}/")]
    others = config_groups() if option not in _SHARED_OPTIONS else []
    homonyms = [f"{g}={option}" for g in (*below, *others) if option in _group_options(g)]
    if option.lower() in _NULL_SYNONYMS and group in (*OPTIONAL_GROUPS, *GROUPS_WITHOUT_DEFAULT):
        suggestion = f"{group}=null"
    elif homonyms:
        suggestion = homonyms[0]
    else:
        near = nearest_key(option, options)
        suggestion = f"{group}={near}" if near else ""
    return f"{group}={option}: must be one of {', '.join(options)}{_did_you_mean(suggestion)}"


def _nearest_option(key: str, value: str, groups: Sequence[str]) -> str | None:
    """Return the choice of a config group that a user most likely meant, or None.

    It is model/network=conv for network=conv, and callbacks=early_stopping for early_stopping=true.
    """
    name = key.rpartition(".")[2].lower()
    groups = [group for group in groups if not group.startswith("hydra")]
    for group in groups:
        if group.rpartition("/")[2] == name and value in _group_options(group):
            return f"{group}={value}"
    if value.lower() not in ("true", "1"):
        return None
    return next((f"{g}={name}" for g in groups if name in _group_options(g)), None)


def _did_you_mean(suggestion: str | None) -> str:
    return f"; did you mean {suggestion}?" if suggestion else ""


def _compose_groups(config_name: str, arguments: list[str]) -> Mapping[str, Any]:
    """Return the config of the chosen group options, without other overrides."""
    chosen = _chosen_groups(arguments) if config_name == "train" else []
    return compose_config(CONF, config_name, chosen)


def _chosen_groups(arguments: list[str]) -> list[str]:
    options = [a for a in arguments if re.fullmatch(r"[\w/]+=[\w/]+", a)]
    return [a for a in options if (CONF / "{}/{}.yaml".format(*a.split("="))).is_file()]


def _options_with_key(key: str, config_name: str, arguments: list[str]) -> Iterator[str]:
    """Yield the group options that have the key, such as model/network=conv."""
    path = key.split(".")
    above = ("/".join(path[:length]) for length in range(len(path) - 1, 0, -1))
    group = next(
        (g for g in above if g in config_groups() and g not in GROUPS_WITHOUT_DEFAULT), None
    )
    for option in sorted((CONF / group).glob("*.yaml")) if group else []:
        choice = f"{group}={option.stem}"
        with suppress(HydraException, OmegaConfBaseException):
            chosen = [a for a in _chosen_groups(arguments) if not a.startswith(f"{group}=")]
            if key in iterate_keys(compose_config(CONF, config_name, [*chosen, choice])):
                yield choice


def _group_options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def config_groups() -> list[str]:
    """Return the config groups, such as model and model/network."""
    return [p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir()]
