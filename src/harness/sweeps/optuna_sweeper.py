"""Hydra sweeper that searches hyperparameters with Optuna."""

import math
import secrets
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from harness.config.paths import display_path, python_command
from harness.run_folder.reading import JOURNAL, read_summary


def _fixed_override(override: Override) -> str | None:
    """Return an override that is the same for all trials, or None if its key is searched."""
    if not override.is_sweep_override():
        return str(override.input_line)
    values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    return f"{override.get_key_element()}={values[0]}" if len(values) == 1 else None


class OptunaSweeper(Sweeper):
    """Sweeper that searches with Optuna. It resumes the study in the folder of the sweep.

    Args:
        num_trials: trials of the study over all workers; each start of the command is a worker.
        sampler: an optuna.samplers object.
        pruner: an optuna.pruners object that ends runs which fall behind; None for no pruning.
        params: values to search for each key, in Hydra's sweep grammar.
    """

    def __init__(self, num_trials: int, sampler: Any, pruner: Any, params: dict[str, str]) -> None:
        self.num_trials, self.sampler, self.pruner = num_trials, sampler, pruner
        self.params = params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from harness.sweeps import search

        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        typed = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(self.context.config_loader)
        overrides = {o.get_key_element(): o for o in parser.parse_overrides(typed)}
        fixed_overrides = {k: text for k, o in overrides.items() if (text := _fixed_override(o))}
        space = {
            k: search.to_distribution(o.value())
            for k, o in overrides.items()
            if k not in fixed_overrides
        }
        fixed = list(fixed_overrides.values())
        if "test" not in overrides:
            fixed.append("test=false")
        study = search.open_study(
            folder,
            {k: str(o.input_line).partition("=")[2] for k, o in overrides.items()},
            mode=self.config.get("mode", "max"),
            sampler=self.sampler,
            pruner=self.pruner,
        )
        worker = secrets.token_hex(4)
        num_parallel = self.config.hydra.launcher.get("num_jobs", 1)
        with search.worker_lock(folder, worker):
            try:
                while trials := search.next_trials(
                    study, folder, space, worker, self.num_trials, num_parallel
                ):
                    jobs = [
                        [*fixed, *self._trial_overrides(study, folder, trial)] for trial in trials
                    ]
                    job_returns = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
                    for trial, job in zip(trials, job_returns, strict=True):
                        failed = job.status is not JobStatus.COMPLETED
                        value = math.nan if failed else float(job.return_value)
                        status = read_summary(folder / str(trial.number)).get("status")
                        search.record_result(study, trial, str(status), value)
            finally:
                search.write_trials(study, folder)
        shared = shlex.join(o for o in fixed if o != "test=false")
        best = search.write_results(study, folder, f"{python_command('train')} {shared}")
        if best is not None:
            print(
                f"\nbest: run {best.number}, {best.value:.2f}; {display_path(folder / 'best.yaml')}"
            )
        return None if best is None else best.value

    def _trial_overrides(self, study: Any, folder: Path, trial: Any) -> list[str]:
        """Return the overrides of a trial: its values, its folder and its pruning callback."""
        from harness.sweeps import search

        assert self.config is not None
        overrides = [f"{key}={value}" for key, value in trial.params.items()]
        overrides.append(f"hydra.sweep.subdir='{trial.number}'")
        if self.pruner is None:
            return overrides
        pruning = {
            "_target_": "harness.sweeps.pruning.Pruning",
            "journal": str(folder / JOURNAL),
            "study": study.study_name,
            "trial": trial.number,
            "monitor": "${monitor}",
            "pruner": OmegaConf.to_container(self.config.hydra.sweeper.pruner),
        }
        return [*overrides, f"+callbacks.pruning={search.to_override_value(pruning)}"]
