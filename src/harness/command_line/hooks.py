"""Hydra callbacks that check configs before a run or sweep and choose its folder."""

import itertools
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
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

from harness.command_line.messages import WANTS_TRACEBACK, groups, reported, translated
from harness.command_line.words import quote_paths
from harness.config.checks import validate
from harness.config.instantiation import check_classes
from harness.contract.errors import ConfigError, RunFailed
from harness.run_folder.folder import RunFolder
from harness.run_folder.reading import holds_run
from harness.run_folder.resuming import run_to_resume
from harness.sweeps import jobs as sweeps
from harness.training.processes import check_shared_memory
from harness.training.ranks import Ranks, check_one_node, is_first, join, started_ranks


class Checks(Callback):
    """Checks a composed config before Hydra makes a folder for it.

    Args:
        settings: dotted name of the class with the types and ranges of the script's settings; None
            for the config of a run.
    """

    def __init__(self, settings: str | None = None) -> None:
        self.settings = settings

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _reported(config):
            self.check(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _reported(config):
            raise ConfigError("-m: train.py alone takes sweeps")

    def check(self, config: DictConfig) -> None:
        module, _, name = (self.settings or "").rpartition(".")
        settings = getattr(import_module(module), name) if module else None
        if problems := validate(_task(config), settings):
            raise ConfigError("\n".join(_with_variable(config, line) for line in problems))


class TrainChecks(Checks):
    """Checks runs and sweeps of train.py, and says what folder a run has."""

    def check(self, config: DictConfig) -> None:
        super().check(config)
        task = _task(config)
        check_shared_memory(task)
        if started_ranks() is not None:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it on import
        check_classes(task)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _reported(config):
            typed = {str(o).partition("=")[0].lstrip("+") for o in config.hydra.overrides.task}
            if config.rerun is not None:
                if ignored := sorted(typed - {"rerun", "trust"}):
                    raise ConfigError(f"{ignored[0]}: rerun= takes the settings of the sweep")
                return _write_into(config, Path(config.rerun))
            ranks = started_ranks()
            if config.resume is not None:
                run_dir = run_to_resume(config.resume)
                if ranks is not None:
                    run_dir = join(run_dir, str(run_dir), config.rank_timeout)
                return _write_into(config, run_dir)
            if ranks is not None:
                _adopt(config, ranks)
            self.check(config)
            if ranks is None:
                check_one_node(config.trainer.num_nodes)
            run_dir = Path(str(config.hydra.run.dir))
            if is_first():
                _check_run_dir(run_dir)
            if ranks is not None:
                settings = OmegaConf.to_yaml(OmegaConf.create(_task(config)))
                _write_into(config, join(run_dir, settings, config.rank_timeout))
        return None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Every job of a plain sweep is checked, and has its folder, before the first starts."""
        with _reported(config):
            if started_ranks() is not None:
                raise ConfigError(
                    "-m: start sweeps without torchrun or srun, python src/train.py -m"
                )
            if config.get("resume") is not None or config.get("rerun") is not None:
                raise ConfigError("-m: resume= and rerun= are typed without it")
            num_parallel = config.hydra.launcher.get("num_jobs", 1)
            if not isinstance(num_parallel, int) or num_parallel < 1:
                raise ConfigError(
                    f"hydra.launcher.num_jobs={num_parallel}: must be an integer of at least 1"
                )
            _pin_sweep_dir(config)
            overrides = _sweep_overrides(config)
            if sweeps.is_search(config.hydra.sweeper._target_):
                self._checked_jobs(config, _samples(overrides))
                return
            for override in overrides:
                if override.is_sweep_override() and not override.is_discrete_sweep():
                    raise ConfigError(
                        f"{override.input_line}: an interval is for hydra/sweeper=optuna; "
                        "a sweep takes values"
                    )
            (jobs,) = BasicSweeper.split_arguments(overrides, None)
            waiting: dict[Path, tuple[DictConfig, list[str]]] = {}
            composed_jobs = self._checked_jobs(config, jobs, num_parallel)
            for job, composed in zip(jobs, composed_jobs, strict=True):
                run_dir = Path(composed.hydra.sweep.dir) / str(composed.hydra.sweep.subdir)
                if holds_run(run_dir):
                    raise ConfigError(f"{run_dir}: holds a run already; rerun= goes on with it")
                if run_dir in waiting:
                    raise ConfigError(f"hydra.sweep.subdir: {run_dir} is that of two jobs")
                waiting[run_dir] = (composed, job)
            sweep = Path(config.hydra.sweep.dir).name
            for run_dir, (composed, job) in waiting.items():
                swept = sweeps.swept(job, config.hydra.overrides.task)
                RunFolder.archive(_without_hydra(composed), run_dir, sweep, job, swept)
                sweeps.composed[tuple(job)] = composed

    def _checked_jobs(
        self, config: DictConfig, jobs: list[list[str]], num_parallel: int = 1
    ) -> list[DictConfig]:
        """Compose and validate the jobs of a sweep, and return their configs.

        Raises:
            ConfigError: a job is invalid. The message names it, unless no job accepts the override.
        """
        composed_jobs: list[DictConfig] = []
        for number, job in enumerate(jobs):
            swept = sweeps.swept(job, config.hydra.overrides.task)
            prefix = f"job {number} ({' '.join(swept)}): "
            try:
                composed = _composed_job(config, job, number)
                self.check(composed)
                sweeps.check_parallel(_task(composed), num_parallel)
            except ConfigError as error:
                raise ConfigError(f"{prefix}{error}") from None
            except (HydraException, OmegaConfBaseException) as error:
                if not composed_jobs and not any(_accepts(config, other) for other in jobs[1:]):
                    prefix = ""
                line = translated(error, config.hydra.job.config_name, job)
                raise ConfigError(f"{prefix}{line}") from None
            composed_jobs.append(composed)
        return composed_jobs

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell how every run of the sweep went; a search may lose some, a plain sweep none."""
        with _reported(config):
            of_search = sweeps.is_search(config.hydra.sweeper._target_)
            done = sweeps.report(Path(config.hydra.sweep.dir), of_search)
            if not done:
                raise SystemExit(RunFailed.exit_code)


@contextmanager
def _reported(config: DictConfig) -> Iterator[None]:
    """End the command on any error, where Hydra would warn and run the unchecked job."""
    try:
        with reported(config.hydra.job.config_name, _typed(config)):
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
    return OverridesParser.create(loader).parse_overrides([*params, *_typed(config)])


def _samples(overrides: list[Override]) -> list[list[str]]:
    """Return one job of a search for each combination of groups, with one value per other key."""
    words: dict[str, list[str]] = {}
    for override in overrides:
        key, value = override.get_key_element(), override.value()
        if isinstance(value, IntervalSweep):
            middle = (value.start + value.end) / 2  # type: ignore[operator]
            is_integer = isinstance(value.start, int) and isinstance(value.end, int)
            words[key] = [f"{key}={int(middle) if is_integer else middle}"]
        elif override.is_sweep_override():
            values = [f"{key}={drawn}" for drawn in override.sweep_string_iterator()]
            words[key] = values if override.key_or_group in groups() else values[:1]
        else:
            words[key] = [str(override.input_line)]
    return [list(job) for job in itertools.product(*words.values())]


def _composed_job(config: DictConfig, job: list[str], number: int = 0) -> DictConfig:
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, job)
    with open_dict(composed):
        composed.hydra.job.num = composed.hydra.job.id = number
    return composed


def _accepts(config: DictConfig, job: list[str]) -> bool:
    """Return whether the config of a job can be composed."""
    try:
        _composed_job(config, job)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def _typed(config: DictConfig) -> list[str]:
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(typed, list)
    return [str(word) for word in typed]


def _with_variable(config: DictConfig, problem: str) -> str:
    """Prefix a problem with the environment variable that the value comes from, if any."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    for name in problem.partition("=")[0].split("."):
        node = node.get(name) if isinstance(node, dict) else None
    variable = re.match(r"\$\{env:(\w+)", node) if isinstance(node, str) else None
    return f"{variable[1]}: {problem}" if variable and os.environ.get(variable[1]) else problem


def _check_run_dir(run_dir: Path) -> None:
    try:
        os.fsencode(run_dir).decode()
        if holds_run(run_dir):
            raise ConfigError(f"hydra.run.dir={run_dir}: holds a run already; name another")
        there = next(p for p in (run_dir, *run_dir.parents) if p.exists())
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"hydra.run.dir={run_dir}: cannot be a folder ({error})") from None
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"hydra.run.dir={run_dir}: {there} is no folder that can be written to")


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [key for key in map(str, config) if key != "hydra"])


def _task(config: DictConfig) -> dict[str, Any]:
    """A composed config without Hydra's own node, resolved."""
    plain = OmegaConf.to_container(_without_hydra(config), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _write_into(config: DictConfig, folder: Path) -> None:
    """Give Hydra a folder that exists, where it leaves nothing of its own."""
    with read_write(config), open_dict(config):
        config.hydra.run.dir = str(folder)
        config.hydra.output_subdir = None


def _pin_sweep_dir(config: DictConfig) -> None:
    """Write the sweep's folder out: each job's config is composed anew, in whatever process."""
    folder = str(config.hydra.sweep.dir)
    (typed,) = quote_paths([f"hydra.sweep.dir={folder}"], Path.cwd())
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = folder
        config.hydra.overrides.hydra.append(typed)


def _adopt(config: DictConfig, ranks: Ranks) -> None:
    """Take the number of devices and nodes from whoever started the ranks.

    Raises:
        ConfigError: what was typed says otherwise.
    """
    there = {
        "devices": ranks.local_world_size,
        "num_nodes": ranks.world_size // ranks.local_world_size,
    }
    for key, count in there.items():
        typed = config.trainer[key]
        if typed not in (1, "auto", count):
            raise ConfigError(f"trainer.{key}={typed}: {ranks.launcher} has started {count}")
        config.trainer[key] = count
