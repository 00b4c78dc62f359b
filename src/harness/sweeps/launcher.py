"""Hydra launcher that runs the jobs of a sweep on this machine."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.run_folder.folder import RunFolder
from harness.sweeps import jobs
from harness.sweeps.fork_server import ForkServer


def job_environment(config: DictConfig) -> dict[str, str]:
    """Return the environment variables that a sweep sets for its jobs.

    Args:
        config: the config of the sweep.
    """
    variables = OmegaConf.to_container(config.hydra.job.env_set)
    assert isinstance(variables, dict)
    return {str(name): str(value) for name, value in variables.items()}


class LocalLauncher(Launcher):
    """Runs jobs in their own processes on this machine, a few at a time.

    Args:
        num_jobs: jobs to run at a time; they share the cores and GPUs.
    """

    def __init__(self, num_jobs: int = 1) -> None:
        self.num_jobs = num_jobs
        self._server: ForkServer | None = None  # of all jobs, also those of later calls

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context = hydra_context
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        setup_globals()
        is_search = jobs.is_search(self.config.hydra.sweeper._target_)
        environment = job_environment(self.config)
        if self._server is None and (is_search or len(job_overrides) > 1):
            sweep_dir = Path(self.config.hydra.sweep.dir)
            self._server = ForkServer(sweep_dir, self.num_jobs, environment)
        returns = [self._archive(list(o), initial_job_idx + i) for i, o in enumerate(job_overrides)]
        run_dirs = [job.return_value for job in returns]
        try:
            values = jobs.run_jobs(run_dirs, self.num_jobs, environment, self._server)
        except (KeyboardInterrupt, SystemExit):
            jobs.print_report(Path(self.config.hydra.sweep.dir), is_search)
            if is_search:
                print("to resume the search, repeat the command")
            raise
        for job, value in zip(returns, values, strict=True):
            job.return_value = value
        return returns

    def _archive(self, overrides: list[str], number: int) -> JobReturn:
        """Archive a job with Hydra's files and callbacks; the return value is its run folder."""
        config = jobs.composed_configs.pop(tuple(overrides), None)
        if config is None:  # jobs of a search are not composed in advance
            config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)

        def archive(cfg: DictConfig) -> Path:
            hydra = HydraConfig.get()
            run_dir = Path(hydra.runtime.output_dir)
            typed = list(hydra.overrides.task)
            swept = jobs.swept_overrides(typed, self.config.hydra.overrides.task)
            return RunFolder.archive(cfg, run_dir, Path(hydra.sweep.dir).name, typed, swept).path

        return run_job(
            task_function=archive,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.context,
        )
