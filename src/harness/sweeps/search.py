"""Hyperparameter search with Optuna: one study, stored as a journal in the folder of the sweep.

Any number of workers append to the journal under a file lock. The lock of a killed process is
released, so that the search can be resumed.
"""

import contextlib
import csv
import io
import math
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from harness.contract import files
from harness.contract.errors import ConfigError
from harness.run_folder.reading import JOURNAL

_WORKER_KEY = "worker"  # attribute of a trial: name of its worker
_LOST_KEY = "lost"  # attribute of a trial whose worker died; its values are queued again
_SPACE_KEY = "space"  # attribute of the study: searched and fixed overrides

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Lock:
    """Lock that is released when its process is killed; Optuna's default lock is not."""

    def __init__(self, path: Path) -> None:
        self.lock = FileLock(path)

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


def _storage(journal: Path) -> JournalStorage:
    lock: Any = _Lock(journal.with_suffix(".lock"))
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))


def open_study(
    folder: Path, space: Mapping[str, Any], mode: str = "max", **arguments: Any
) -> optuna.Study:
    """Open the study in a folder, or create it.

    Args:
        space: searched and fixed overrides by key, the same for all workers.
        mode: "max" or "min": whether the best value of the metric is the highest or the lowest.
        arguments: sampler and pruner.

    Raises:
        ConfigError: the folder holds a study with another space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    direction = {"max": "maximize", "min": "minimize"}[mode]
    study = optuna.create_study(
        storage=_storage(folder / JOURNAL),
        study_name=folder.name,
        direction=direction,
        load_if_exists=True,
        **arguments,
    )
    if study.user_attrs.setdefault(_SPACE_KEY, dict(space)) != dict(space):
        was = study.user_attrs[_SPACE_KEY]
        key = next(k for k in sorted({*was, *space}) if was.get(k) != space.get(k))
        raise ConfigError(
            f"hydra.sweep.dir={folder}: the search in this folder has {key}={was.get(key)}, not "
            f"{space.get(key)}; use another folder"
        )
    study.set_user_attr(_SPACE_KEY, dict(space))
    return study


@contextlib.contextmanager
def worker_lock(folder: Path, worker: str) -> Iterator[None]:
    """Hold the lock file that marks this worker as alive."""
    path = folder / f"worker-{worker}.lock"
    try:
        with FileLock(path):
            yield
    finally:
        path.unlink(missing_ok=True)


def requeue_lost_trials(study: optuna.Study, folder: Path) -> None:
    """Mark trials whose worker died as failed, and queue their values again."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(_WORKER_KEY)
        if worker is not None and _is_alive(folder / f"worker-{worker}.lock"):
            continue
        study.enqueue_trial(trial.params)
        optuna.Trial(study, trial._trial_id).set_user_attr(_LOST_KEY, True)
        study.tell(trial.number, state=TrialState.FAIL)


def _is_alive(lock_file: Path) -> bool:
    if not lock_file.exists():
        return False
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def next_trials(
    study: optuna.Study,
    folder: Path,
    distributions: Mapping[str, BaseDistribution],
    worker: str,
    num_trials: int,
    max_returned: int,
) -> list[optuna.Trial]:
    """Return the next trials of this worker; empty once the study has ``num_trials``.

    Args:
        distributions: distribution of each searched key.
        worker: name of this worker.
        num_trials: trials of the study over all workers; those of workers that died do not count.
        max_returned: the most trials to return.
    """
    with FileLock(folder / "ask.lock"):
        requeue_lost_trials(study, folder)
        counted = [t for t in study.get_trials() if not t.user_attrs.get(_LOST_KEY)]
        if any(t.user_attrs.get(_WORKER_KEY) != worker for t in counted):
            study.sampler.reseed_rng()  # else all workers draw the same values
        started = [t for t in counted if t.state != TrialState.WAITING]
        trials = []
        for _ in range(min(max_returned, num_trials - len(started))):
            trial = study.ask(dict(distributions))
            trial.set_user_attr(_WORKER_KEY, worker)
            trials.append(trial)
        return trials


def record_result(study: optuna.Study, trial: optuna.Trial, status: str, value: float) -> None:
    """Record the result of a trial; a value that is not finite counts as failed."""
    if status == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    elif math.isfinite(value):
        study.tell(trial, value)
    else:
        study.tell(trial, state=TrialState.FAIL)


def should_prune(
    journal: Path,
    study_name: str,
    trial_number: int,
    value: float,
    validation_index: int,
    pruner: BasePruner,
) -> bool:
    """Report a validation of a trial, and return whether the pruner would end it.

    Args:
        journal: journal file of the study.
        study_name: name of the study.
        trial_number: number of the trial.
        value: the monitored metric.
        validation_index: index of the validation, from 0; Optuna keeps the first report of each
            index.
        pruner: the pruner that decides.
    """
    study = optuna.load_study(study_name=study_name, storage=_storage(journal), pruner=pruner)
    trial = optuna.Trial(study, study.get_trials(deepcopy=False)[trial_number]._trial_id)
    trial.report(value, step=validation_index)
    return trial.should_prune()


def to_distribution(values: Any) -> BaseDistribution:
    """Return the Optuna distribution of a sweep in Hydra's grammar.

    Args:
        values: the value of an override: a choice, a range, or an interval, which may have the tag
            ``log`` for a logarithmic scale.

    Raises:
        ConfigError: the sweep is empty or of another type.
    """
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

    is_log = "log" in getattr(values, "tags", ())
    if isinstance(values, ChoiceSweep):
        return CategoricalDistribution([_to_choice(item) for item in values.list])
    if isinstance(values, RangeSweep):
        assert values.start is not None
        assert values.stop is not None
        bounds = (values.start, values.stop, values.step)
        # Hydra 1.4 may give decimal.Decimal
        start, stop, step = (v if isinstance(v, int) else float(v) for v in bounds)
        count = math.ceil((stop - start) / step)
        last = start + step * (count - 1)  # a range excludes its stop
        if count < 1:
            raise ConfigError(f"range({start}, {stop}): is empty")
        if isinstance(start, int) and isinstance(step, int):
            return IntDistribution(start, int(last), step=step)
        return FloatDistribution(start, last, step=step)
    if isinstance(values, IntervalSweep):
        low, high = values.start, values.end
        assert low is not None
        assert high is not None
        if not low < high or (is_log and low <= 0):
            raise ConfigError(
                f"interval({low}, {high}): must increase, and be positive with tag(log, ...)"
            )
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(low, high, log=is_log)
    raise ConfigError(f"{values}: must be a choice, a range or an interval")


def _to_choice(item: Any) -> Any:
    return item if isinstance(item, int | float) else to_override_value(item)


def to_override_value(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    from hydra.core.override_parser.types import Override

    return Override._get_value_element_as_str(value)


def write_results(study: optuna.Study, folder: Path, command: str) -> FrozenTrial | None:
    """Write best.yaml, history.png and importances.png, and return the best trial, if any finished.

    Args:
        command: training command, to which the best values are appended.
    """
    import matplotlib

    matplotlib.use("Agg")
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if not finished:
        return None
    best = study.best_trial
    typed = [f"{key}={value}" for key, value in best.params.items()]
    files.write_text(
        folder / "best.yaml",
        f"# {command} {shlex.join(typed)}\n"
        + yaml.safe_dump({"value": best.value, "trial": best.number, "params": best.params}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        _save_plot(plots.plot_optimization_history(study), folder / "history.png")
        varied = {key for key in best.params if len({t.params[key] for t in finished}) > 1}
        if len(finished) > 2 and varied:
            importances = plots.plot_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), params=sorted(varied)
            )
            _save_plot(importances, folder / "importances.png")
    return best


def _save_plot(axes: Any, path: Path) -> None:
    axes.figure.set_size_inches(7, 4)
    axes.figure.tight_layout()
    axes.figure.savefig(path, dpi=120)


def write_trials(study: optuna.Study, folder: Path) -> None:
    """Write trials.csv: one row per trial, with its state, value and settings."""
    trials = study.get_trials()
    params = sorted({key for trial in trials for key in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "value", *params])
    for trial in trials:
        value = trial.value if trial.state == TrialState.COMPLETE else None
        row = [trial.number, trial.state.name.lower(), value]
        writer.writerow([*row, *(trial.params.get(key) for key in params)])
    files.write_text(folder / "trials.csv", text.getvalue())
