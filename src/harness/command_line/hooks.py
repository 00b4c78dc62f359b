"""Hydra callbacks that check configs before a run or sweep and choose its folder."""

import itertools
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from harness.command_line.messages import (
    WANTS_TRACEBACK,
    raise_problems,
    report_errors,
)
from harness.command_line.overrides import quote_paths
from harness.command_line.suggestions import config_groups, explain_override_error
from harness.config.checks import validate
from harness.config.composition import plain_settings, settings_to_validate, without_hydra
from harness.config.instantiation import check_classes
from harness.contract.errors import ConfigError, RunFailed
from harness.run_folder.folder import RunFolder
from harness.run_folder.loading import find_weights
from harness.run_folder.reading import holds_run
from harness.run_folder.resuming import find_run_to_resume
from harness.sweeps import jobs as sweeps
from harness.training.processes import check_shared_memory
from harness.training.ranks import Ranks, check_one_node, connect_ranks, is_rank_zero, started_ranks


class RejectSweeps(Callback):
    """Rejects ``-m`` for scripts that do not train."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _exit_on_error(config):
            raise ConfigError("-m: only train.py runs sweeps")


class TrainChecks(Callback):
    """Validates runs and sweeps of train.py, and chooses their folders."""

    def check_run(self, config: DictConfig) -> None:
        raise_problems(validate(settings_to_validate(config)), config, _task_overrides(config))
        task = plain_settings(config)
        check_shared_memory(task)
        if task.get("weights") is not None:
            find_weights(task["weights"])
        if started_ranks() is not None:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it on import
        check_classes(task)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _exit_on_error(config):
            keys = {str(o).partition("=")[0].lstrip("+") for o in config.hydra.overrides.task}
            if config.rerun is not None:
                if ignored := sorted(keys - {"rerun", "trust"}):
                    raise ConfigError(
                        f"{ignored[0]}: rerun= keeps the settings of the sweep; remove this "
                        "override"
                    )
                return _set_run_dir(config, Path(config.rerun))
            ranks = started_ranks()
            if config.resume is not None:
                run_dir = find_run_to_resume(config.resume)
                if ranks is not None:
                    run_dir = connect_ranks(run_dir, str(run_dir), config.rank_timeout)
                return _set_run_dir(config, run_dir)
            if ranks is not None:
                _set_device_counts(config, ranks)
            self.check_run(config)
            if ranks is None:
                check_one_node(config.trainer.num_nodes)
            run_dir = Path(str(config.hydra.run.dir))
            if is_rank_zero():
                _check_run_dir(run_dir)
            if ranks is not None:
                settings = OmegaConf.to_yaml(OmegaConf.create(plain_settings(config)))
                _set_run_dir(config, connect_ranks(run_dir, settings, config.rank_timeout))
        return None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Validate all jobs of a sweep, or some possible jobs of a search, before the first starts.

        The jobs of a sweep are also archived in their run folders.
        """
        with _exit_on_error(config):
            if started_ranks() is not None:
                raise ConfigError(
                    "-m: start a sweep with python src/train.py -m, without torchrun or srun"
                )
            if config.get("resume") is not None or config.get("rerun") is not None:
                raise ConfigError("-m: cannot be combined with resume= or rerun=; remove -m")
            num_parallel = config.hydra.launcher.get("num_jobs", 1)
            if not isinstance(num_parallel, int) or num_parallel < 1:
                raise ConfigError(
                    f"hydra.launcher.num_jobs={num_parallel}: must be an integer of at least 1"
                )
            _pin_sweep_dir(config)
            overrides = _sweep_overrides(config)
            if sweeps.is_search(config.hydra.sweeper._target_):
                self._check_jobs(config, _sample_jobs(overrides))
                return
            for override in overrides:
                if override.is_sweep_override() and not override.is_discrete_sweep():
                    raise ConfigError(
                        f"{override.input_line}: an interval needs hydra/sweeper=optuna; "
                        "list the values instead, key=1,2"
                    )
            (jobs,) = BasicSweeper.split_arguments(overrides, None)
            run_dirs: dict[Path, tuple[DictConfig, list[str]]] = {}
            composed_jobs = self._check_jobs(config, jobs, num_parallel)
            for job, composed in zip(jobs, composed_jobs, strict=True):
                run_dir = Path(composed.hydra.sweep.dir) / str(composed.hydra.sweep.subdir)
                if holds_run(run_dir):
                    raise ConfigError(
                        f"{run_dir}: already holds a run; resume its sweep with rerun="
                        f"{composed.hydra.sweep.dir}"
                    )
                if run_dir in run_dirs:
                    raise ConfigError(
                        f"hydra.sweep.subdir: two jobs have the folder {run_dir}; add "
                        "${hydra.job.num} to it"
                    )
                run_dirs[run_dir] = (composed, job)
            sweep = Path(config.hydra.sweep.dir).name
            for run_dir, (composed, job) in run_dirs.items():
                swept = sweeps.swept_overrides(job, config.hydra.overrides.task)
                RunFolder.archive(without_hydra(composed), run_dir, sweep, job, swept)
                sweeps.composed_configs[tuple(job)] = composed

    def _check_jobs(
        self, config: DictConfig, jobs: list[list[str]], num_parallel: int = 1
    ) -> list[DictConfig]:
        """Compose and validate the jobs of a sweep, and return their configs.

        Raises:
            ConfigError: a job is invalid. The message names the job, unless no job accepts the
                override.
        """
        composed_jobs: list[DictConfig] = []
        for number, job in enumerate(jobs):
            swept = sweeps.swept_overrides(job, config.hydra.overrides.task)
            prefix = f"job {number} ({' '.join(swept)}): "
            try:
                composed = _compose_job(config, job, number)
                self.check_run(composed)
                sweeps.check_num_parallel(plain_settings(composed), num_parallel)
            except ConfigError as error:
                raise ConfigError(f"{prefix}{error}") from None
            except (HydraException, OmegaConfBaseException) as error:
                if not composed_jobs and not any(_can_compose(config, other) for other in jobs[1:]):
                    prefix = ""
                line = explain_override_error(error, config.hydra.job.config_name, job)
                raise ConfigError(f"{prefix}{line}") from None
            composed_jobs.append(composed)
        return composed_jobs

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the results of a sweep, and exit with an error if it failed."""
        if sys.exc_info()[0] is not None:  # Hydra 1.4: the sweep was rejected or interrupted
            return
        with _exit_on_error(config):
            is_search = sweeps.is_search(config.hydra.sweeper._target_)
            has_succeeded = sweeps.print_report(Path(config.hydra.sweep.dir), is_search)
            if not has_succeeded:
                raise SystemExit(RunFailed.exit_code)


@contextmanager
def _exit_on_error(config: DictConfig) -> Iterator[None]:
    """Exit on any error, because Hydra would warn and run the invalid job."""
    try:
        with report_errors(config.hydra.job.config_name, _task_overrides(config)):
            yield
    except Exception as error:
        if WANTS_TRACEBACK:
            traceback.print_exc()
        line = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        print(f"failed: {line}; for the traceback set HYDRA_FULL_ERROR=1", file=sys.stderr)
        raise SystemExit(RunFailed.exit_code) from None


def _sweep_overrides(config: DictConfig) -> list[Override]:
    """Return the overrides of a sweep, first those of hydra.sweeper.params."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(loader).parse_overrides([*params, *_task_overrides(config)])


def _sample_jobs(overrides: list[Override]) -> list[list[str]]:
    """Return possible jobs of a search: all choices of groups, one value of each other key."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key, value = override.get_key_element(), override.value()
        if isinstance(value, IntervalSweep):
            middle = (value.start + value.end) / 2  # type: ignore[operator]
            is_integer = isinstance(value.start, int) and isinstance(value.end, int)
            choices[key] = [f"{key}={int(middle) if is_integer else middle}"]
        elif override.is_sweep_override():
            values = [f"{key}={text}" for text in override.sweep_string_iterator()]
            choices[key] = values if override.key_or_group in config_groups() else values[:1]
        else:
            choices[key] = [str(override.input_line)]
    return [list(job) for job in itertools.product(*choices.values())]


def _compose_job(config: DictConfig, job: list[str], number: int = 0) -> DictConfig:
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, job)
    with open_dict(composed):
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
    return composed


def _can_compose(config: DictConfig, job: list[str]) -> bool:
    """Return whether the config of a job can be composed."""
    try:
        _compose_job(config, job)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def _task_overrides(config: DictConfig) -> list[str]:
    """Return the overrides of a run or job; none for a config without Hydra's own node."""
    if "hydra" not in config:
        return []
    overrides = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]


def _check_run_dir(run_dir: Path) -> None:
    try:
        os.fsencode(run_dir).decode()
        if holds_run(run_dir):
            raise ConfigError(
                f"hydra.run.dir={run_dir}: already holds a run; choose another folder"
            )
        existing = next(p for p in (run_dir, *run_dir.parents) if p.exists())
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"hydra.run.dir={run_dir}: cannot be a folder ({error})") from None
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"hydra.run.dir={run_dir}: {existing} is not a writable folder")


def _set_run_dir(config: DictConfig, folder: Path) -> None:
    """Set the run folder, and keep Hydra from writing its own files there."""
    with read_write(config), open_dict(config):
        config.hydra.run.dir = str(folder)
        config.hydra.output_subdir = None


def _pin_sweep_dir(config: DictConfig) -> None:
    """Fix the sweep folder as an override, since every job composes its config again."""
    folder = str(config.hydra.sweep.dir)
    (override,) = quote_paths([f"hydra.sweep.dir={folder}"], Path.cwd())
    with read_write(config.hydra), open_dict(config.hydra):  # Hydra 1.4 locks this node
        config.hydra.sweep.dir = folder
        config.hydra.overrides.hydra.append(override)


def _set_device_counts(config: DictConfig, ranks: Ranks) -> None:
    """Set the numbers of devices and nodes to those of the launcher that started the ranks.

    Raises:
        ConfigError: an override contradicts the launcher.
    """
    counts = {
        "devices": ranks.local_world_size,
        "num_nodes": ranks.world_size // ranks.local_world_size,
    }
    for key, count in counts.items():
        setting = config.trainer[key]
        if setting not in (1, "auto", count):
            raise ConfigError(
                f"trainer.{key}={setting}: must be {count}, as {ranks.launcher} has started {count}"
            )
        config.trainer[key] = count
