"""Main function of the scripts: reads the command line and has Hydra compose. Imports no torch.

Overrides are checked before a run folder is made, so a mistake costs a second and leaves nothing
behind.
"""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.command_line.messages import WANTS_TRACEBACK, reject, reported, short
from harness.command_line.words import (
    SWEEP_FLAGS,
    as_lists,
    defer_to_jobs,
    hydras_words,
    quote_paths,
)
from harness.config.composition import register_resolvers
from harness.config.paths import CONF
from harness.contract.errors import ConfigError, RunFailed
from harness.contract.terminal import accept_any_text

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 11), (3, 13)  # Hydra's argument parser fails on 3.14
register_resolvers()  # here, so that a launcher's workers have them too

_EXPECTED = (
    ConfigError,
    RunFailed,
    BrokenPipeError,
    HydraException,
    OmegaConfBaseException,
)


def entry_point(
    config_name: str, less_memory: str | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a task function the main function of a script, on conf/CONFIG_NAME.yaml.

    Args:
        less_memory: settings that lower its memory, to name where there was not enough.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        started: list[bool] = []

        @functools.wraps(task)
        def checked(cfg: DictConfig) -> Any:
            started.append(True)
            accept_any_text()  # a launcher may run this in a new process
            if HydraConfig.get().mode is not RunMode.MULTIRUN:
                with reported(config_name, less_memory=less_memory):
                    return task(cfg)
            try:
                return task(cfg)
            except (ConfigError, RunFailed) as error:  # the other jobs go on
                print(f"failed: {error}", file=sys.stderr)
                return math.nan

        @functools.wraps(task)
        def main() -> None:
            accept_any_text()
            arguments = sys.argv[1:]
            with reported(config_name):
                _check_python()
                words = arguments if config_name == "train" else as_lists(arguments)
                sys.argv[1:] = quote_paths(hydras_words(words), Path.cwd())
                _check_flags(sys.argv[1:])
            make_main = hydra.main(
                version_base="1.3", config_path=str(CONF), config_name=config_name
            )
            if any(flag in sys.argv for flag in SWEEP_FLAGS):
                sys.argv[1:] = defer_to_jobs(config_name, sys.argv[1:])
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
                        f"{short(arguments)}: not understood ({short([reason])})"
                    ) from None

        return main

    return decorate


def _check_python() -> None:
    if not _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        this, oldest, newest = (
            "{}.{}".format(*v) for v in (sys.version_info, _OLDEST_PYTHON, _NEWEST_PYTHON)
        )
        raise ConfigError(f"Python {this}: this project needs Python {oldest} to {newest}")


def _check_flags(arguments: list[str]) -> None:
    parser = get_args_parser()
    parser.error = reject  # type: ignore[method-assign]
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
