"""Hyperparameter search: distributions, resume after a kill, pruning, results."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, clean_environment, run_script, tiny

pytestmark = pytest.mark.engines
optuna = pytest.importorskip("optuna")

from harness.contract.errors import ConfigError  # noqa: E402
from harness.run_folder.reading import JOURNAL  # noqa: E402
from harness.sweeps import search  # noqa: E402

SPACE = ["model.latent_dim=choice(2,4)", "optimizer.lr=tag(log, interval(1e-4, 1e-1))"]
FAST = ["callbacks.figures=null", "device=cpu", "logger=csv", "trainer.max_epochs=2"]


def parse_value(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([f"key={text}"])
    return override.value()


DISTRIBUTIONS = [
    ("choice(1,2)", optuna.distributions.CategoricalDistribution([1, 2])),
    ("a,b", optuna.distributions.CategoricalDistribution(["a", "b"])),
    ("range(8,33,8)", optuna.distributions.IntDistribution(8, 32, step=8)),
    ("range(0,4)", optuna.distributions.IntDistribution(0, 3)),
    ("interval(0.1,0.9)", optuna.distributions.FloatDistribution(0.1, 0.9)),
    ("int(interval(2,9))", optuna.distributions.IntDistribution(2, 9)),
    ("tag(log,interval(0.1,10))", optuna.distributions.FloatDistribution(0.1, 10, log=True)),
]


@pytest.mark.parametrize(("text", "distribution"), DISTRIBUTIONS, ids=[t for t, _ in DISTRIBUTIONS])
def test_hydra_syntax_becomes_optuna_distributions(text: str, distribution: Any) -> None:
    assert search.to_distribution(parse_value(text)) == distribution


@pytest.mark.parametrize("text", ["interval(2,1)", "tag(log,interval(0,1))", "range(3,3)"])
def test_invalid_ranges_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError):
        search.to_distribution(parse_value(text))


def test_a_value_that_is_not_finite_is_a_failed_trial(tmp_path: Path) -> None:
    study = search.open_study(tmp_path, {})
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for value in (1.0, float("nan"), float("inf")):
        (trial,) = search.next_trials(study, tmp_path, space, "a", 9, 1)
        search.record_result(study, trial, "finished", value)
    (trial,) = search.next_trials(study, tmp_path, space, "a", 9, 1)
    search.record_result(study, trial, "pruned", float("nan"))
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "FAIL", "PRUNED"]
    assert study.best_value == 1.0


def test_trials_of_a_dead_worker_are_requeued(tmp_path: Path) -> None:
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    study = search.open_study(tmp_path, {})
    (lost,) = search.next_trials(study, tmp_path, space, "dead", 2, 1)
    with search.worker_lock(tmp_path, "alive"):
        (kept,) = search.next_trials(study, tmp_path, space, "alive", 2, 1)
        assert kept.params == lost.params  # requeued first
        (other,) = search.next_trials(study, tmp_path, space, "alive", 2, 1)
        assert (
            search.next_trials(study, tmp_path, space, "alive", 2, 1) == []
        )  # the lost trial does not count
    assert other.params != kept.params
    assert study.trials[lost.number].state.name == "FAIL"


def test_a_study_rejects_another_search_space(tmp_path: Path) -> None:
    search.open_study(tmp_path, {"model.latent_dim": "choice(2,4)"})
    with pytest.raises(ConfigError, match=r"model\.latent_dim"):
        search.open_study(tmp_path, {"model.latent_dim": "choice(2,8)"})


def read_trials(folder: Path) -> list[Any]:
    storage = search._storage(folder / JOURNAL)
    return list(optuna.load_study(study_name=folder.name, storage=storage).trials)


def make_arguments(data_dir: Path, folder: Path, num_trials: int) -> list[str]:
    options = [f"hydra.sweep.dir={folder}", f"hydra.sweeper.num_trials={num_trials}"]
    return ["-m", "hydra/sweeper=optuna", *tiny(data_dir), *FAST, *SPACE, *options]


def test_a_misspelt_setting_of_the_search_is_named(data_dir: Path, tmp_path: Path) -> None:
    arguments = [*make_arguments(data_dir, tmp_path, num_trials=1), "hydra.sweeper.n_trials=2"]
    done = run_script("train", *arguments)
    assert done.returncode == 2
    assert "hydra.sweeper.n_trials=2: there is no key hydra.sweeper.n_trials" in done.stderr


def test_a_killed_search_resumes_with_two_workers(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a search"
    arguments = make_arguments(data_dir, folder, num_trials=5)
    script = [sys.executable, str(ROOT / "src/train.py")]
    first = subprocess.Popen(
        [*script, *arguments], env=clean_environment(), stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            if (folder / "1" / "metrics.csv").is_file():
                break
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    before = read_trials(folder)
    assert any(t.state.name == "RUNNING" for t in before)
    workers = [
        subprocess.Popen([*script, *arguments], env=clean_environment(), stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]

    trials = read_trials(folder)
    states = [t.state.name for t in trials if not t.user_attrs.get("lost")]
    assert len(states) == 5
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert len({t.user_attrs["worker"] for t in trials if "worker" in t.user_attrs}) == 3
    for trial in trials:
        if trial.state.name == "COMPLETE":
            summary = json.loads((folder / str(trial.number) / "summary.json").read_text())
            assert summary["objective"] == pytest.approx(trial.value)
            assert not any(name.startswith("test/") for name in summary["metrics"])
    assert {"best.yaml", "trials.csv", "history.png"} <= {p.name for p in folder.iterdir()}
    values = [t.value for t in trials if t.state.name == "COMPLETE"]
    assert f"value: {max(values)}" in (folder / "best.yaml").read_text()


def test_a_trial_below_the_median_should_be_pruned(tmp_path: Path) -> None:
    study = search.open_study(tmp_path, {})
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=1)
    journal = tmp_path / JOURNAL

    def should_prune(value: float, epoch: int) -> bool:
        return search.should_prune(journal, study.study_name, trial.number, value, epoch, pruner)

    (trial,) = search.next_trials(study, tmp_path, {}, "a", 9, 1)
    assert not any(should_prune(value, epoch) for epoch, value in enumerate((-90.0, -80.0, -70.0)))
    search.record_result(study, trial, "finished", -70.0)
    (trial,) = search.next_trials(study, tmp_path, {}, "a", 9, 1)
    assert not should_prune(-95.0, 0)  # a warm-up epoch
    assert not should_prune(-75.0, 1)  # better than the other trial at this epoch
    assert should_prune(-85.0, 2)


def test_a_pruned_run_stops(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    below_zero = "{_target_:optuna.pruners.ThresholdPruner,lower:0}"  # every bound is below 0
    pruner = ["~hydra.sweeper.pruner", f"+hydra.sweeper.pruner={below_zero}"]
    arguments = make_arguments(data_dir, folder, num_trials=1)
    done = run_script("train", *arguments, *pruner, "trainer.devices=2", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [t.state.name for t in read_trials(folder)] == ["PRUNED"]
    summary = json.loads((folder / "0" / "summary.json").read_text())
    assert summary["status"] == "pruned"
    assert "epoch 1/2" in done.stdout
    assert "epoch 2/2" not in done.stdout
    assert (folder / "trials.csv").read_text().splitlines()[1].startswith("0,pruned,,")
