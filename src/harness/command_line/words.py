"""Rewrites the command line for Hydra: quoted paths, null groups, lists, sweeps."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import OmegaConfBaseException

from harness.config.composition import composed
from harness.config.paths import CONF, ROOT, exists, expanded
from harness.contract.errors import ConfigError

SWEEP_FLAGS = ("-m", "--multirun")
_OPTIONAL_GROUPS = ("callbacks", "logger", "scheduler")
EMPTY_GROUPS = ("experiment", "debug", "sweep")  # groups with no default choice
_PATH_KEYS = re.compile(
    r"^(?P<key>\+{0,2}(?:run|runs|resume|rerun|output|data\.data_dir"
    r"|hydra\.(?:run\.dir|sweep\.dir|sweep\.subdir|runtime\.output_dir)))=(?P<value>.*)$",
    re.DOTALL,
)
_WORD = re.compile(r"[\w./+-]+")
_VALUES = re.compile(r"(?!hydra\.)([\w.+/]+)=([\w./+-]+(?:,[\w./+-]+)+)")
_NOT_FILES = re.compile(r"^(latest|null|)$")


def quote_paths(arguments: list[str], cwd: Path) -> list[str]:
    """Return the overrides with values that are paths made absolute and quoted for Hydra.

    A relative path starts at ``cwd``. Spaces, commas, '=', brackets and any alphabet are kept;
    ``${...}`` stays an interpolation.
    """
    return [_quote_path(argument, cwd) for argument in arguments]


def _quote_path(argument: str, cwd: Path) -> str:
    match = _PATH_KEYS.match(argument)
    if match is None:
        key, is_setting, value = argument.partition("=")
        foreign = not value.isascii() and _WORD.fullmatch(value)  # Hydra's grammar is ASCII
        return f"{key}='{value}'" if is_setting and foreign else argument
    key, value = match["key"], match["value"]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]  # the user quoted it for Hydra
    if _NOT_FILES.match(value):
        return argument
    if not key.endswith("subdir") and not value.startswith("${"):
        typed = expanded(value)
        # runs may also be given relative to the project root
        in_project = key.lstrip("+") in ("run", "runs", "resume", "rerun") and not exists(
            cwd / typed
        )
        value = str((ROOT if in_project and exists(ROOT / typed) else cwd) / typed)
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda m: m[1] * 2, escaped)
    return f"{key}='{escaped}'"


def as_lists(arguments: Sequence[str]) -> list[str]:
    """Rewrite key=a,b as key=[a,b], for scripts without sweeps."""
    words = []
    for argument in arguments:
        match = None if _PATH_KEYS.match(argument) else _VALUES.fullmatch(argument)
        words.append(f"{match[1]}=[{match[2]}]" if match else argument)
    return words


def hydras_words(arguments: list[str]) -> list[str]:
    """Rewrite GROUP=null as ~GROUP and move -m to the front, as Hydra needs."""
    words = [a for a in arguments if a in SWEEP_FLAGS]
    for argument in (a for a in arguments if a not in SWEEP_FLAGS):
        group, is_null, rest = argument.partition("=null")
        if not is_null or rest or not (CONF / group).is_dir():
            words.append(argument)
        elif group in _OPTIONAL_GROUPS:
            words.append(f"~{group}")
        elif group not in EMPTY_GROUPS:
            raise ConfigError(f"{argument}: the group {group} cannot be left out")
    return words


def defer_to_jobs(config_name: str, words: list[str]) -> list[str]:
    """Rewrite the overrides of a sweep that only its jobs accept as ``key=choice(value)``.

    Hydra applies ``key=value`` to the config without the swept groups, where the key may not exist.
    It applies a choice only to the jobs.
    """
    left: dict[str, str] = {}
    with suppress(HydraException, OmegaConfBaseException):  # Hydra reports these later
        typed = [word for word in words if "=" in word or word.startswith("~")]
        swept = {o.input_line for o in parsed(typed) if o.is_sweep_override()}
        while True:
            of_all = [word for word in typed if word not in (*left, *swept)]
            try:
                composed(CONF, config_name, of_all)
                break
            except ConfigCompositionException as error:
                match = re.search(r"Could not override '([^']+)'", str(error))
                words_of_key = [w for w in of_all if match and w.startswith(f"{match[1]}=")]
                if not words_of_key:
                    break
                key, _, value = words_of_key[-1].partition("=")
                (choice,) = parsed([f"{key}=choice({value})"])
                left[words_of_key[-1]] = str(choice.input_line)
    return [left.get(word, word) for word in words]


def parsed(words: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(words)
