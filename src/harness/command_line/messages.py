"""Turns user errors into messages of at most three lines and an exit code."""

import os
import re
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.command_line.overrides import EMPTY_GROUPS
from harness.config.composition import compose_config
from harness.config.instantiation import explain_hydra_error
from harness.config.keys import format_value, leaf_keys, nearest_key
from harness.config.paths import CONF
from harness.contract.errors import BROKEN_PIPE, INTERRUPTED, ConfigError, RunFailed
from harness.training.processes import explain_out_of_memory

_MAX_LINES = 3
_MAX_WIDTH = 600  # characters of a line
_EXTRAS = {
    **{"optuna": "search", "submitit": "submitit", "ray": "ray", "wandb_workspaces": "wandb"},
    "zuko": "flows",
    **dict.fromkeys(("onnxruntime", "onnxscript", "huggingface_hub"), "export"),
}
_ONE_LINE_ERRORS = (
    *(HydraException, OmegaConfBaseException, ImportError),
    *(OSError, MemoryError, RuntimeError),  # a RuntimeError only if memory runs out
)
WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's own switch


def shorten(arguments: list[str]) -> str:
    text = " ".join(arguments)
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextmanager
def report_errors(
    config_name: str = "train",
    arguments: list[str] | None = None,
    less_memory: str | None = None,
) -> Iterator[None]:
    """Turn errors that a user can fix into a short message and an exit code."""
    try:
        yield
    except ConfigError as error:
        exit_with_error(str(error))
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        _drop_output()
        raise SystemExit(BROKEN_PIPE) from None
    except _ONE_LINE_ERRORS as error:
        if WANTS_TRACEBACK:
            raise
        if text := explain_out_of_memory(error, less_memory):
            print(f"failed: {text}", file=sys.stderr)
            raise SystemExit(RunFailed.exit_code) from None
        if extra := _missing_extra(error):
            exit_with_error(f"this needs more packages: pip install -e '.[{extra}]'")
        if isinstance(error, HydraException | OmegaConfBaseException):  # some are OSErrors too
            exit_with_error(explain_override_error(error, config_name, arguments or []))
        if isinstance(error, OSError):
            _drop_output_if_full()
            exit_with_error(f"{error.filename or 'a file'}: {error.strerror or error}")
        raise


def _drop_output() -> None:
    """Discard the rest of the output, because flushing it at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _drop_output_if_full() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _missing_extra(error: BaseException | None) -> str | None:
    """Return the extra of pyproject.toml that installs the missing package, if any."""
    while error is not None:
        for package, extra in _EXTRAS.items():
            if isinstance(error, ModuleNotFoundError) and error.name == package:
                return extra
            if re.search(f"Could not (find|load) 'hydra/launcher/{package}", str(error)):
                return extra
        error = error.__cause__ or error.__context__
    return None


def raise_problems(
    problems: Sequence[str], config: DictConfig, overrides: Sequence[str] = ()
) -> None:
    """Raise ConfigError if a config has problems.

    Each line shows the value as the user typed it. If an environment variable set the value, the
    line starts with its name.

    Args:
        problems: one line each, from :func:`harness.config.checks.validate`.
        config: the composed config, not resolved.
        overrides: those of the command line.
    """
    if problems:
        keys = {problem.partition("=")[0] for problem in problems}
        lines = [
            _with_variable(config, _with_typed_value(problem, overrides))
            for problem in problems
            if not _is_copy(config, problem.partition("=")[0], keys)
        ]
        raise ConfigError("\n".join(lines or problems))


def _is_copy(config: Any, key: str, wrong_keys: Container[str]) -> bool:
    """Return whether an interpolation gives a setting the value of a wrong key.

    The node of the setting may be an interpolation too, as model.condition is.
    """
    node: Any = OmegaConf.to_container(config, resolve=False)
    names = key.split(".")
    for name in names:
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
        if isinstance(node, str) and "${" in node:
            is_parent = name != names[-1]
            return is_parent or any(n in wrong_keys for n in re.findall(r"[\w.]+", node))
    return False


def _with_typed_value(problem: str, overrides: Sequence[str]) -> str:
    """Show a value as the user typed it, since YAML reads 12e4567 as infinity."""
    key, _, value_and_rule = problem.partition("=")
    _, _, valid_values = value_and_rule.partition(": must be ")
    for override in overrides:
        name, _, text = override.partition("=")
        if name.lstrip("+") == key and valid_values and re.fullmatch(r"[\w.+-]+", text):
            hint = f"; to write text: \"{key}='{text}'\"" if valid_values.startswith("text") else ""
            return f"{key}={format_value(text)}: must be {valid_values}{hint}"
    return problem


def _with_variable(config: DictConfig, problem: str) -> str:
    """Prefix a problem with the environment variable that the value comes from, if any."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    for name in problem.partition("=")[0].split("."):
        node = node.get(name) if isinstance(node, dict) else None
    variable = re.match(r"\$\{env:(\w+)", node) if isinstance(node, str) else None
    return f"{variable[1]}: {problem}" if variable and os.environ.get(variable[1]) else problem


def exit_with_error(message: str) -> NoReturn:
    lines = [_sanitize_line(line) for line in message.splitlines()]
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], f"and {len(lines) - _MAX_LINES + 1} more"]
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    is_another = rank.isdecimal() and size.isdecimal() and 0 < int(rank) < int(size)
    if not is_another:  # only rank zero prints
        print("error: " + "\n".join(lines), file=sys.stderr)
    raise SystemExit(ConfigError.exit_code)


def _sanitize_line(line: str) -> str:
    """Return the line with control characters escaped, shortened to fit a terminal."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return (
        line
        if len(line) <= _MAX_WIDTH
        else f"{line[: _MAX_WIDTH // 2]} ... {line[-_MAX_WIDTH // 2 :]}"
    )


def explain_override_error(error: Exception, config_name: str, arguments: list[str]) -> str:
    """Return one line that explains an error of Hydra in terms of the overrides.

    Args:
        config_name: name of the script and of its configuration file.
        arguments: overrides of the config that failed.
    """
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1].split("@")[0]
        override = next((a for a in arguments if a.lstrip("+~").split("=")[0] == key), key)
        if key in config_groups():  # for example model/penalty with a model that has none
            return f"{override}: the chosen options have no group {key}; remove this override"
        cfg = _compose_groups(config_name, arguments)
        keys = list(leaf_keys(cfg))
        ending = ".".join(key.split(".")[-2:])
        if key in keys and (others := [k for k in keys if k != key and k.endswith(f".{ending}")]):
            return f"{override}: takes its value from {others[0]}; set that instead"
        from harness.config.checks import addable_keys  # late: --help needs no pydantic

        if key in addable_keys(cfg):
            return f"{override}: the configuration has no {key} yet; to add it: +{override}"
        if choices := list(_options_with_key(key, config_name, arguments)):
            return f"{override}: there is no key {key}; it exists with {' or '.join(choices)}"
        near = nearest_key(key, [*keys, *config_groups()])
        hint = f"; did you mean {near}?" if near else "; --help lists the keys"
        return f"{override}: there is no key {key}{hint}"
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match[1].rpartition("/")
        options = _group_options(group)
        near = nearest_key(option, options)
        below = [g for g in config_groups() if g.startswith(f"{group}/")]
        suggestion = f"{group}={near}" if near else ""
        if others := [g for g in (*below, *config_groups()) if option in _group_options(g)]:
            suggestion = f"{others[0]}={option}"
        hint = f"; did you mean {suggestion}?" if suggestion else ""
        return f"{group}={option}: must be one of {', '.join(options)}{hint}"
    if isinstance(error, OverrideParseException):
        hint = "quote values that contain , = [ ] { } spaces or letters beyond ASCII"
        return f"{error.override}: not of the form key=value; {hint}"
    line = explain_hydra_error(error)
    if "Cannot merge DictConfig with ListConfig" in line:
        expected_types = {"[": "a mapping", "{": "a list"}
        containers = [(a, expected_types.get(a.partition("=")[2][:1])) for a in arguments]
        lines = [f"{override}: must be {expected}" for override, expected in containers if expected]
        if len(lines) == 1:
            return lines[0]
    names_an_override = any(re.split(r"[=@]", a.lstrip("+~"))[0] in line for a in arguments)
    return line if names_an_override or not arguments else f"{shorten(arguments)}: {line}"


def _compose_groups(config_name: str, arguments: list[str]) -> Mapping[str, Any]:
    """Return the config of the chosen group options, without other overrides."""
    return compose_config(CONF, config_name, _chosen_groups(arguments))


def _chosen_groups(arguments: list[str]) -> list[str]:
    options = [a for a in arguments if re.fullmatch(r"[\w/]+=[\w/]+", a)]
    return [a for a in options if (CONF / "{}/{}.yaml".format(*a.split("="))).is_file()]


def _options_with_key(key: str, config_name: str, arguments: list[str]) -> Iterator[str]:
    """Yield the group options that have the key, such as model/network=conv."""
    path = key.split(".")
    above = ("/".join(path[:length]) for length in range(len(path) - 1, 0, -1))
    group = next((g for g in above if g in config_groups() and g not in EMPTY_GROUPS), None)
    for option in sorted((CONF / group).glob("*.yaml")) if group else []:
        choice = f"{group}={option.stem}"
        with suppress(HydraException, OmegaConfBaseException):
            chosen = [a for a in _chosen_groups(arguments) if not a.startswith(f"{group}=")]
            if key in leaf_keys(compose_config(CONF, config_name, [*chosen, choice])):
                yield choice


def _group_options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def config_groups() -> list[str]:
    """Return the config groups, such as model and model/network."""
    return [p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir()]
