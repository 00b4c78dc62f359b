"""Turns user errors into messages of at most three lines and an exit code."""

import os
import re
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.command_line import suggestions
from harness.config.keys import format_value
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
            exit_with_error(f"this command needs the extra {extra}: pip install -e '.[{extra}]'")
        if isinstance(error, HydraException | OmegaConfBaseException):  # some are OSErrors too
            exit_with_error(suggestions.explain_override_error(error, config_name, arguments or []))
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
    """Return whether a setting is a copy, so that its problem belongs to another key.

    It is a copy if it is an interpolation of a wrong key, or if a node above it is an
    interpolation, as model.condition is.
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
    """Return a problem with the value as typed, or with the advice to remove the override.

    The typed value can differ from the one that was read: Hydra reads 12e4567 as infinity.
    """
    drop = re.search(r"; to drop it: ~(\S+)$", problem)
    if drop and any(a.startswith((f"+{drop[1]}=", f"++{drop[1]}=")) for a in overrides):
        return f"{problem[: drop.start()]}; remove this override"
    key, _, value_and_rule = problem.partition("=")
    _, _, valid_values = value_and_rule.partition(": must be ")
    for override in overrides:
        name, _, text = override.partition("=")
        if name.lstrip("+") == key and valid_values and re.fullmatch(r"[\w.+-]+", text):
            wants_text = valid_values.startswith("text") and "of the form" not in valid_values
            is_text = not re.fullmatch(r"true|false|null|[\d.+e-]+", text, re.IGNORECASE)
            hint = f"; to write text: \"{key}='{text}'\"" if wants_text and not is_text else ""
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
    """Return the line with control characters escaped, and without its middle if it is long."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return (
        line
        if len(line) <= _MAX_WIDTH
        else f"{line[: _MAX_WIDTH // 2]} ... {line[-_MAX_WIDTH // 2 :]}"
    )
