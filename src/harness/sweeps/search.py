"""A search for the best settings by Optuna: one study, kept as a file in the sweep's folder.

The file is a journal that any number of workers append to, each under a lock that dies with its
holder; so a search goes on after any of them was killed, and several share one.
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

_WORKER = "worker"  # attribute of a trial: whose it is
_LOST = "lost"  # attribute of a trial whose worker died; its settings are tried again
_SPACE = "space"  # attribute of the study: what is searched, and what is fixed

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Lock:
    """A lock that a killed process does not leave behind, as the default one does."""

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
    """The study in a folder, new or from an earlier start.

    Args:
        mode: "max" or "min", the best value of the monitored metric.
        space: what is searched and what is fixed, to be held to by all its workers.
        arguments: sampler and pruner.

    Raises:
        ConfigError: the study there searches something else.
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
    if study.user_attrs.setdefault(_SPACE, dict(space)) != dict(space):
        was = study.user_attrs[_SPACE]
        key = next(k for k in sorted({*was, *space}) if was.get(k) != space.get(k))
        raise ConfigError(
            f"hydra.sweep.dir={folder}: the search there has {key}={was.get(key)}, not "
            f"{space.get(key)}; name another folder"
        )
    study.set_user_attr(_SPACE, dict(space))
    return study


@contextlib.contextmanager
def worker(folder: Path, name: str) -> Iterator[None]:
    """Be known as alive, for as long as this process is."""
    path = folder / f"worker-{name}.lock"
    try:
        with FileLock(path):
            yield
    finally:
        path.unlink(missing_ok=True)


def take_over_lost_trials(study: optuna.Study, folder: Path) -> None:
    """Note trials whose worker has died, and queue their settings again."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        name = trial.user_attrs.get(_WORKER)
        if name is not None and _is_alive(folder / f"worker-{name}.lock"):
            continue
        study.enqueue_trial(trial.params)
        optuna.Trial(study, trial._trial_id).set_user_attr(_LOST, True)
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


def ask(
    study: optuna.Study,
    folder: Path,
    distributions: Mapping[str, BaseDistribution],
    name: str,
    num_trials: int,
    at_most: int,
) -> list[optuna.Trial]:
    """The next trials of this worker; none where the study has as many as it should.

    Args:
        num_trials: of the whole study, by all workers; lost ones do not count.
        at_most: trials now.
    """
    with FileLock(folder / "ask.lock"):
        take_over_lost_trials(study, folder)
        counted = [t for t in study.get_trials() if not t.user_attrs.get(_LOST)]
        if any(t.user_attrs.get(_WORKER) != name for t in counted):
            study.sampler.reseed_rng()  # or every worker would draw what the first has drawn
        started = [t for t in counted if t.state != TrialState.WAITING]
        trials = []
        for _ in range(min(at_most, num_trials - len(started))):
            trial = study.ask(dict(distributions))
            trial.set_user_attr(_WORKER, name)
            trials.append(trial)
        return trials


def tell(study: optuna.Study, trial: optuna.Trial, status: str, value: float) -> None:
    """Note how a trial's run ended; a value that is not finite counts as failed."""
    if status == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    elif math.isfinite(value):
        study.tell(trial, value)
    else:
        study.tell(trial, state=TrialState.FAIL)


def is_behind(
    journal: Path, study: str, number: int, value: float, validation: int, pruner: BasePruner
) -> bool:
    """Report a validation of a trial, and return whether the pruner would end it.

    Args:
        number: number of the trial.
        validation: number of its validation, from 0; Optuna keeps the first report of each.
    """
    shared = optuna.load_study(study_name=study, storage=_storage(journal), pruner=pruner)
    trial = optuna.Trial(shared, shared.get_trials(deepcopy=False)[number]._trial_id)
    trial.report(value, step=validation)
    return trial.should_prune()


def distribution(values: Any) -> BaseDistribution:
    """What Optuna draws from, for a sweep in Hydra's grammar.

    Args:
        values: of an override: a choice, a range or an interval; tagged ``log`` where it should be
            searched on that scale.

    Raises:
        ConfigError: there is nothing to search in it.
    """
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

    is_log = "log" in getattr(values, "tags", ())
    if isinstance(values, ChoiceSweep):
        return CategoricalDistribution([_plain(item) for item in values.list])
    if isinstance(values, RangeSweep):
        assert values.start is not None
        assert values.stop is not None
        count = math.ceil((values.stop - values.start) / values.step)
        last = values.start + values.step * (count - 1)  # the stop itself is not in a range
        if count < 1:
            raise ConfigError(f"range({values.start}, {values.stop}): is empty")
        if all(isinstance(v, int) for v in (values.start, values.step)):
            return IntDistribution(int(values.start), int(last), step=int(values.step))
        return FloatDistribution(values.start, last, step=values.step)
    if isinstance(values, IntervalSweep):
        low, high = values.start, values.end
        assert low is not None
        assert high is not None
        if not low < high or (is_log and low <= 0):
            raise ConfigError(f"interval({low}, {high}): cannot be searched")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(low, high, log=is_log)
    raise ConfigError(f"{values}: must be a choice, a range or an interval")


def _plain(item: Any) -> Any:
    return item if isinstance(item, int | float) else as_typed(item)


def as_typed(value: Any) -> str:
    """A value in Hydra's grammar."""
    from hydra.core.override_parser.types import Override

    return Override._get_value_element_as_str(value)


def write_results(study: optuna.Study, folder: Path, command: str) -> FrozenTrial | None:
    """best.yaml, history.png and importances.png; the best trial, if one finished.

    Args:
        command: that trains with the best values, without them.
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
        _save(plots.plot_optimization_history(study), folder / "history.png")
        varied = {key for key in best.params if len({t.params[key] for t in finished}) > 1}
        if len(finished) > 2 and varied:
            importances = plots.plot_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), params=sorted(varied)
            )
            _save(importances, folder / "importances.png")
    return best


def _save(axes: Any, path: Path) -> None:
    axes.figure.set_size_inches(7, 4)
    axes.figure.tight_layout()
    axes.figure.savefig(path, dpi=120)


def write_trials(study: optuna.Study, folder: Path) -> None:
    """trials.csv: every trial so far, with its state, value and settings."""
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
