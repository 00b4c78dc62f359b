"""The command line: paths as people type them, and errors in at most three lines. No torch here.

Hydra composes. What a person typed is checked when the config is composed and before any folder is
made, so a bad word costs a second and leaves nothing behind.
"""

import functools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cvae import changes, runs
from cvae.processes import BAD_INPUT, BROKEN_PIPE, DIVERGED, FAILED, out_of_memory
from cvae.schema import ConfigError, addable_keys, leaf_keys, nearest_key, validate
from cvae.terminal import accept_any_text

CONF = runs.ROOT / "conf"
_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 11), (3, 13)  # Hydra's argument parser fails on 3.14
_MAX_LINES = 3
_MAX_WIDTH = 600  # characters of a line
_SWEEP_FLAGS = ("-m", "--multirun")
_OPTIONAL_GROUPS = ("callbacks", "logger", "scheduler")
_EXTRAS = {
    **{"optuna": "search", "submitit": "submitit", "ray": "ray", "wandb_workspaces": "wandb"},
    **dict.fromkeys(("safetensors", "onnxruntime", "onnxscript", "huggingface_hub"), "export"),
}
_EMPTY_GROUPS = ("experiment", "debug", "sweep")  # nothing is chosen, unless one does
runs.register_resolvers()  # here, so that a launcher's workers have them too

_EXPECTED = (
    ConfigError,
    runs.RunFailed,
    BrokenPipeError,
    HydraException,
    OmegaConfBaseException,
)
_ONE_LINE_ERRORS = (
    *(HydraException, OmegaConfBaseException, ImportError),
    *(OSError, MemoryError, RuntimeError),  # a RuntimeError only if memory ran out
)
WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's own switch
_PATH_KEYS = re.compile(
    r"^(?P<key>\+{0,2}(?:run|runs|resume|rerun|folder|output|data\.data_dir"
    r"|hydra\.(?:run\.dir|sweep\.dir|sweep\.subdir|runtime\.output_dir)))=(?P<value>.*)$",
    re.DOTALL,
)
_WORD = re.compile(r"[\w./+-]+")
_VALUES = re.compile(r"(?!hydra\.)([\w.+/]+)=([\w./+-]+(?:,[\w./+-]+)+)")
_NOT_FILES = re.compile(r"^(latest|null|)$")


def quote_paths(arguments: list[str], cwd: Path) -> list[str]:
    """Overrides whose values are paths, absolute and quoted for Hydra's grammar.

    A relative path is looked up from where the person stands. Spaces, commas, '=', brackets and any
    alphabet are taken as they are; ``${...}`` stays an interpolation.
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
        value = value[1:-1]  # quoted for Hydra by the person
    if _NOT_FILES.match(value):
        return argument
    if not key.endswith("subdir") and not value.startswith("${"):
        typed = runs.expanded(value)
        # a run may be named as the project knows it, from anywhere
        in_project = key.lstrip("+") in ("run", "runs", "resume", "rerun") and not runs.exists(
            cwd / typed
        )
        value = str((runs.ROOT if in_project and runs.exists(runs.ROOT / typed) else cwd) / typed)
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda m: m[1] * 2, escaped)
    return f"{key}='{escaped}'"


def as_lists(arguments: Sequence[str]) -> list[str]:
    """Rewrite key=a,b as key=[a,b], for scripts that do not sweep."""
    words = []
    for argument in arguments:
        match = None if _PATH_KEYS.match(argument) else _VALUES.fullmatch(argument)
        words.append(f"{match[1]}=[{match[2]}]" if match else argument)
    return words


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a task function the main function of a script, on conf/CONFIG_NAME.yaml."""

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        started: list[bool] = []

        @functools.wraps(task)
        def checked(cfg: DictConfig) -> Any:
            started.append(True)
            accept_any_text()  # a launcher may run this in a new process
            if HydraConfig.get().mode is not RunMode.MULTIRUN:
                with reported(config_name):
                    return task(cfg)
            try:
                return task(cfg)
            except (ConfigError, runs.RunFailed) as error:  # the other jobs go on
                print(f"failed: {error}", file=sys.stderr)
                return math.nan

        @functools.wraps(task)
        def main() -> None:
            accept_any_text()
            arguments = sys.argv[1:]
            with reported(config_name):
                _check_python()
                words = arguments if config_name == "train" else as_lists(arguments)
                sys.argv[1:] = quote_paths(_hydras_words(words), Path.cwd())
                _check_flags(sys.argv[1:])
            make_main = hydra.main(
                version_base="1.3", config_path=str(CONF), config_name=config_name
            )
            if any(flag in sys.argv for flag in _SWEEP_FLAGS):
                sys.argv[1:] = _defer_to_jobs(config_name, sys.argv[1:])
            with reported(config_name, arguments), _hydra_raises():
                try:
                    make_main(checked)()
                    sys.stdout.flush()  # here a full disk is an error like any other
                except _EXPECTED:
                    raise
                except Exception as error:  # of Hydra's, about words that it did not foresee
                    if started or WANTS_TRACEBACK:
                        raise
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    raise ConfigError(
                        f"{_short(arguments)}: not understood ({_short([reason])})"
                    ) from None

        return main

    return decorate


def as_hydra_takes(words: Sequence[str]) -> list[str]:
    """What a person typed for one of our scripts, in Hydra's grammar; no flags and no sweeps."""
    for word in words:
        if word.startswith(("-", "=")) or not (word.startswith("~") or "=" in word):
            raise ConfigError(f"{word}: must be of the form key=value")
    return quote_paths(_hydras_words(list(words)), Path.cwd())


def check(entry_point: str, words: Sequence[str]) -> None:
    """Refuse words, as Hydra takes them, that one of our scripts would refuse."""
    with reported(entry_point, list(words)):
        if problems := validate(changes.composed(CONF, entry_point, words), entry_point):
            raise ConfigError("\n".join(f"{entry_point}: {problem}" for problem in problems))


def _short(words: list[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _hydras_words(arguments: list[str]) -> list[str]:
    """What Hydra understands: GROUP=null as ~GROUP, and -m before the settings."""
    words = [a for a in arguments if a in _SWEEP_FLAGS]
    for argument in (a for a in arguments if a not in _SWEEP_FLAGS):
        group, is_null, rest = argument.partition("=null")
        if not is_null or rest or not (CONF / group).is_dir():
            words.append(argument)
        elif group in _OPTIONAL_GROUPS:
            words.append(f"~{group}")
        elif group not in _EMPTY_GROUPS:
            raise ConfigError(f"{argument}: the group {group} cannot be left out")
    return words


def _defer_to_jobs(config_name: str, words: list[str]) -> list[str]:
    """Rewrite the overrides of a sweep that only its jobs accept as ``key=choice(value)``.

    Hydra applies ``key=value`` to the config without the swept groups, where the key may not exist.
    It applies a choice only to the jobs.
    """
    left: dict[str, str] = {}
    with suppress(HydraException, OmegaConfBaseException):  # Hydra reports these later
        typed = [word for word in words if "=" in word or word.startswith("~")]
        swept = {o.input_line for o in _parsed(typed) if o.is_sweep_override()}
        while True:
            of_all = [word for word in typed if word not in (*left, *swept)]
            try:
                changes.composed(CONF, config_name, of_all)
                break
            except ConfigCompositionException as error:
                match = re.search(r"Could not override '([^']+)'", str(error))
                words_of_key = [w for w in of_all if match and w.startswith(f"{match[1]}=")]
                if not words_of_key:
                    break
                key, _, value = words_of_key[-1].partition("=")
                (choice,) = _parsed([f"{key}=choice({value})"])
                left[words_of_key[-1]] = str(choice.input_line)
    return [left.get(word, word) for word in words]


def _parsed(words: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(words)


def _check_python() -> None:
    if not _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        this, oldest, newest = (
            "{}.{}".format(*v) for v in (sys.version_info, _OLDEST_PYTHON, _NEWEST_PYTHON)
        )
        raise ConfigError(f"Python {this}: this project needs Python {oldest} to {newest}")


def _check_flags(arguments: list[str]) -> None:
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such flag; settings are key=value, --help lists them")


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let exceptions out of hydra.main as they are: it prints its own traceback otherwise."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def reported(config_name: str = "train", arguments: list[str] | None = None) -> Iterator[None]:
    """Turn what a person can mend into a short message and exit code 2."""
    try:
        yield
    except ConfigError as error:
        _refuse(str(error))
    except runs.RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        raise SystemExit(DIVERGED if isinstance(error, runs.Diverged) else FAILED) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever reads our output, such as head, has seen enough
        _drop_output()
        raise SystemExit(BROKEN_PIPE) from None
    except _ONE_LINE_ERRORS as error:
        if WANTS_TRACEBACK:
            raise
        if text := out_of_memory(error, config_name):
            print(f"failed: {text}", file=sys.stderr)
            raise SystemExit(FAILED) from None
        if extra := _missing_extra(error):
            _refuse(f"this needs more packages: pip install -e '.[{extra}]'")
        if isinstance(error, HydraException | OmegaConfBaseException):  # some are OSErrors too
            _refuse(translated(error, config_name, arguments or []))
        if isinstance(error, OSError):
            _drop_output_if_full()
            _refuse(f"{error.filename or 'a file'}: {error.strerror or error}")
        raise


def _drop_output() -> None:
    """Send what is left of the output nowhere: Python would fail on it once more as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _drop_output_if_full() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _missing_extra(error: BaseException | None) -> str | None:
    """The extra of pyproject.toml that would have brought what could not be imported."""
    while error is not None:
        for package, extra in _EXTRAS.items():
            if isinstance(error, ModuleNotFoundError) and error.name == package:
                return extra
            if re.search(f"Could not (find|load) 'hydra/launcher/{package}", str(error)):
                return extra
        error = error.__cause__ or error.__context__
    return None


def _refuse(message: str) -> NoReturn:
    lines = [_readable(line) for line in message.splitlines()]
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], f"and {len(lines) - _MAX_LINES + 1} more"]
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    is_another = rank.isdecimal() and size.isdecimal() and 0 < int(rank) < int(size)
    if not is_another:  # only rank zero prints
        print("error: " + "\n".join(lines), file=sys.stderr)
    raise SystemExit(BAD_INPUT)


def _readable(line: str) -> str:
    """A line that fits a terminal and cannot steer it."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return (
        line
        if len(line) <= _MAX_WIDTH
        else f"{line[: _MAX_WIDTH // 2]} ... {line[-_MAX_WIDTH // 2 :]}"
    )


def translated(error: Exception, config_name: str, arguments: list[str]) -> str:
    """Return one line that explains a Hydra error in terms of the overrides.

    Args:
        arguments: overrides of the config that failed.
    """
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1].split("@")[0]
        typed = next((a for a in arguments if a.lstrip("+~").split("=")[0] == key), key)
        if key in groups():  # which another choice does not have
            return f"{typed}: what is chosen beside it has no {key}"
        cfg = _composed(config_name, arguments)
        if key in addable_keys(cfg):
            return f"{typed}: the configuration has no {key} yet; to add it: +{typed}"
        if choices := list(_choices_with(key, config_name, arguments)):
            return f"{typed}: there is no key {key} without {' or '.join(choices)}"
        near = nearest_key(key, [*leaf_keys(cfg), *groups()])
        hint = f"; did you mean {near}?" if near else "; --help lists the keys"
        return f"{typed}: there is no key {key}{hint}"
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match[1].rpartition("/")
        options = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        near = nearest_key(option, options)
        hint = f" (did you mean {near}?)" if near else ""
        return f"{group}={option}: must be one of {', '.join(options)}{hint}"
    if isinstance(error, OverrideParseException):
        hint = "quote values with , = [ ] { } spaces or letters beyond ASCII"
        return f"{error.override}: not of the form key=value; {hint}"
    line = runs.explained(error)
    if "Cannot merge DictConfig with ListConfig" in line:
        kinds = {"[": "a mapping", "{": "a list"}
        containers = [(a, kinds.get(a.partition("=")[2][:1])) for a in arguments]
        found = [f"{typed}: must be {kind}" for typed, kind in containers if kind is not None]
        if len(found) == 1:
            return found[0]
    named = any(re.split(r"[=@]", a.lstrip("+~"))[0] in line for a in arguments)
    return line if named or not arguments else f"{_short(arguments)}: {line}"


def _composed(config_name: str, arguments: list[str]) -> Mapping[str, Any]:
    """The config for the groups that a person chose, without what else they typed."""
    return changes.composed(CONF, config_name, _choices(arguments))


def _choices(arguments: list[str]) -> list[str]:
    options = [a for a in arguments if re.fullmatch(r"[\w/]+=[\w/]+", a)]
    return [a for a in options if (CONF / "{}/{}.yaml".format(*a.split("="))).is_file()]


def _choices_with(key: str, config_name: str, arguments: list[str]) -> Iterator[str]:
    """Options of the key's group that bring it: model/network=conv for one of model.network."""
    path = key.split(".")
    above = ("/".join(path[:length]) for length in range(len(path) - 1, 0, -1))
    group = next((g for g in above if g in groups() and g not in _EMPTY_GROUPS), None)
    for option in sorted((CONF / group).glob("*.yaml")) if group else []:
        choice = f"{group}={option.stem}"
        with suppress(HydraException, OmegaConfBaseException):
            chosen = [a for a in _choices(arguments) if not a.startswith(f"{group}=")]
            if key in leaf_keys(changes.composed(CONF, config_name, [*chosen, choice])):
                yield choice


def groups() -> list[str]:
    """Return the config groups, such as model and model/network."""
    return [p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir()]
