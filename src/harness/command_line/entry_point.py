"""Main function of the scripts: reads the command line and lets Hydra compose the config.

Overrides are validated before a run folder is made, so a mistake costs a second and leaves no
files. Imports no torch.
"""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.command_line.messages import (
    WANTS_TRACEBACK,
    exit_with_error,
    raise_problems,
    report_errors,
)
from harness.command_line.overrides import (
    SWEEP_FLAGS,
    bracket_lists,
    defer_to_sweep_jobs,
    quote_paths,
    rewrite_for_hydra,
)
from harness.command_line.suggestions import explain_unexpected_error
from harness.config.composition import plain_settings, register_resolvers
from harness.config.hydra_versions import main_options
from harness.config.paths import CONF
from harness.contract.errors import ConfigError, RunFailed
from harness.contract.terminal import accept_any_text
from harness.training.forks import run_and_exit
from harness.training.ranks import started_ranks

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 11), (3, 13)  # Hydra's argument parser fails on 3.14
register_resolvers()  # on import, so that the workers of a launcher have them too

_EXPECTED_ERRORS = (
    ConfigError,
    RunFailed,
    BrokenPipeError,
    HydraException,
    OmegaConfBaseException,
)


def entry_point(
    config_name: str, less_memory: str | None = None
) -> Callable[[Callable[..., Any]], Callable[[], None]]:
    """Turn a task function into the main function of a script, configured by conf/CONFIG_NAME.yaml.

    The function is called with the settings as arguments, and its annotations define which are
    valid. Only the function of train.py takes the whole config.

    Args:
        config_name: name of the script and of its configuration file.
        less_memory: settings to lower when memory runs out, named in the message.
    """

    def decorate(task: Callable[..., Any]) -> Callable[[], None]:
        started: list[bool] = []

        @functools.wraps(task)
        def validate_and_run(cfg: DictConfig) -> Any:
            started.append(True)
            accept_any_text()  # a launcher may run this in a new process
            if config_name != "train":
                with report_errors(config_name, less_memory=less_memory):
                    from harness.config.checks import validate  # late: --help needs no pydantic

                    settings = plain_settings(cfg)
                    raise_problems(validate(settings, config_name), cfg)
                    return task(**settings)
            if HydraConfig.get().mode is not RunMode.MULTIRUN:
                with report_errors(config_name, less_memory=less_memory):
                    return task(cfg)
            try:
                return task(cfg)
            except (ConfigError, RunFailed) as error:  # the other jobs continue
                print(f"failed: {error}", file=sys.stderr)
                return math.nan

        @functools.wraps(task)
        def main() -> None:
            if config_name == "train" and _is_one_of_several_ranks():
                run_and_exit(compose_and_run)
            compose_and_run()

        def compose_and_run() -> None:
            accept_any_text()
            arguments = sys.argv[1:]
            with report_errors(config_name):
                _check_python()
                overrides = arguments if config_name == "train" else bracket_lists(arguments)
                sys.argv[1:] = quote_paths(rewrite_for_hydra(overrides), Path.cwd())
                _check_flags(sys.argv[1:])
            make_main = hydra.main(str(CONF), config_name, **main_options())
            if any(flag in sys.argv for flag in SWEEP_FLAGS):
                sys.argv[1:] = defer_to_sweep_jobs(config_name, sys.argv[1:])
            with report_errors(config_name, arguments), _let_hydra_raise():
                try:
                    make_main(validate_and_run)()
                    sys.stdout.flush()  # so that a full disk fails here, not at exit
                except _EXPECTED_ERRORS:
                    raise
                except Exception as error:  # Hydra fails on some malformed overrides
                    if started or WANTS_TRACEBACK:
                        raise
                    raise ConfigError(explain_unexpected_error(error, arguments)) from None

        return main

    return decorate


def _is_one_of_several_ranks() -> bool:
    """Return whether torchrun or srun started this process as one of several ranks.

    It exits without freeing its modules: threads of gloo outlive the process group, and would abort
    one exit of some dozens (pytorch issue 190489).
    """
    with suppress(ConfigError):  # raised again where it is reported
        return started_ranks() is not None
    return False


def _check_python() -> None:
    if not _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        this, oldest, newest = (
            "{}.{}".format(*v) for v in (sys.version_info, _OLDEST_PYTHON, _NEWEST_PYTHON)
        )
        raise ConfigError(f"Python {this}: this project needs Python {oldest} to {newest}")


def _check_flags(arguments: list[str]) -> None:
    parser = get_args_parser()
    parser.error = exit_with_error  # type: ignore[method-assign]
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such flag; settings are key=value, see --help")


@contextmanager
def _let_hydra_raise() -> Iterator[None]:
    """Let hydra.main raise its exceptions; by default it prints its own traceback."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
