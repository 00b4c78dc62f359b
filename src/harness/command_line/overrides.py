"""Rewrite the command line for Hydra: quoted paths, null groups, lists, sweeps."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import OmegaConfBaseException

from harness.config.composition import compose_config
from harness.config.paths import CONF, ROOT, expand_home, path_exists
from harness.contract.errors import ConfigError

SWEEP_FLAGS = ("-m", "--multirun")
OPTIONAL_GROUPS = ("callbacks", "logger", "scheduler")  # may be null
GROUPS_WITHOUT_DEFAULT = ("experiment", "debug", "sweep")  # null unless chosen
_PATH_KEYS = re.compile(
    r"^(?P<key>\+{0,2}(?:run|runs|resume|rerun|output|data\.data_dir"
    r"|hydra\.(?:run\.dir|sweep\.dir|sweep\.subdir|runtime\.output_dir)))=(?P<value>.*)$",
    re.DOTALL,
)
_WORD = re.compile(r"[\w./+-]+")
_COMMA_LIST = re.compile(r"(?!hydra\.)([\w.+/]+)=([\w./+-]+(?:,[\w./+-]+)+)")
_NOT_PATHS = re.compile(r"^(latest|null|)$")


def quote_paths(arguments: list[str], cwd: Path) -> list[str]:
    """Make the paths in overrides absolute and quote them for Hydra.

    A relative path starts at ``cwd``. The path of a run starts at the project root if nothing is at
    ``cwd``. Spaces, commas, '=', brackets and letters of any alphabet are kept. ``${...}`` stays an
    interpolation.
    """
    return [_quote_path(argument, cwd) for argument in arguments]


def _quote_path(argument: str, cwd: Path) -> str:
    if argument.startswith("weights="):
        return _resolve_weights(argument, cwd)
    match = _PATH_KEYS.match(argument)
    if match is None:
        key, is_setting, value = argument.partition("=")
        needs_quotes = not value.isascii() and _WORD.fullmatch(value)  # Hydra's grammar is ASCII
        return f"{key}='{value}'" if is_setting and needs_quotes else argument
    key, value = match["key"], match["value"]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]  # the user quoted it for Hydra
    if _NOT_PATHS.match(value):
        return argument
    if not key.endswith("subdir") and not value.startswith("${"):
        path = expand_home(value)
        # runs may also be given relative to the project root
        in_project = key.lstrip("+") in ("run", "runs", "resume", "rerun") and not path_exists(
            cwd / path
        )
        value = str((ROOT if in_project and path_exists(ROOT / path) else cwd) / path)
    return f"{key}={_quote(value)}"


def _quote(value: str) -> str:
    """Quote a text for Hydra."""
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    return "'" + re.sub(r"(\\+)$", lambda m: m[1] * 2, escaped) + "'"


def _resolve_weights(argument: str, cwd: Path) -> str:
    """Resolve links such as logs/latest now, so that all jobs of a sweep read the same weights.

    Several paths are separated by commas. If a path does not exist, the argument stays as it is.
    """
    value = argument.removeprefix("weights=")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]  # the user quoted it for Hydra
    for texts in ([value], value.split(",")):
        paths = [_find_path(path.strip(), cwd) for path in texts]
        if value != "null" and all(paths):
            return "weights=" + ",".join(_quote(str(path.resolve())) for path in paths if path)
    return argument


def _find_path(path: str, cwd: Path) -> Path | None:
    """Return the file or folder of a path relative to cwd or the project, or None."""
    places = (base / expand_home(path) for base in (cwd, ROOT))
    return next((place for place in places if path and path_exists(place)), None)


def bracket_lists(arguments: Sequence[str]) -> list[str]:
    """Rewrite key=a,b as key=[a,b], for scripts without sweeps."""
    overrides = []
    for argument in arguments:
        match = None if _PATH_KEYS.match(argument) else _COMMA_LIST.fullmatch(argument)
        overrides.append(f"{match[1]}=[{match[2]}]" if match else argument)
    return overrides


def rewrite_for_hydra(arguments: list[str]) -> list[str]:
    """Rewrite GROUP=null as ~GROUP and move -m to the front, as Hydra requires.

    For a group that is null by default, drop GROUP=null.

    Raises:
        ConfigError: the group must not be null.
    """
    rewritten = [a for a in arguments if a in SWEEP_FLAGS]
    for argument in (a for a in arguments if a not in SWEEP_FLAGS):
        group, is_null, rest = argument.partition("=null")
        if not is_null or rest or not (CONF / group).is_dir():
            rewritten.append(argument)
        elif group in OPTIONAL_GROUPS:
            rewritten.append(f"~{group}")
        elif group not in GROUPS_WITHOUT_DEFAULT:
            raise ConfigError(f"{argument}: the group {group} cannot be left out")
    return rewritten


def defer_to_sweep_jobs(config_name: str, arguments: list[str]) -> list[str]:
    """Rewrite overrides that only the jobs of a sweep accept, as ``key=choice(value)``.

    Hydra applies ``key=value`` to the config without the swept groups, where the key may not exist.
    It applies a choice only to the jobs.
    """
    deferred: dict[str, str] = {}
    with suppress(HydraException, OmegaConfBaseException):  # Hydra reports these later
        overrides = [a for a in arguments if "=" in a or a.startswith("~")]
        swept = {o.input_line for o in parse_overrides(overrides) if o.is_sweep_override()}
        while True:
            fixed = [o for o in overrides if o not in (*deferred, *swept)]
            try:
                compose_config(CONF, config_name, fixed)
                break
            except ConfigCompositionException as error:
                match = re.search(r"Could not override '([^']+)'", str(error))
                with_key = [o for o in fixed if match and o.startswith(f"{match[1]}=")]
                if not with_key or with_key[-1].startswith("hydra."):  # no job accepts those
                    break
                key, _, value = with_key[-1].partition("=")
                (choice,) = parse_overrides([f"{key}=choice({value})"])
                deferred[with_key[-1]] = str(choice.input_line)
    return [deferred.get(a, a) for a in arguments]


def parse_overrides(overrides: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(overrides)
