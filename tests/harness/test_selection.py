"""Selection of the weights of a run by its first ModelCheckpoint."""

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from harness.config import paths
from harness.contract.errors import ConfigError
from harness.reports import comparison, run_results
from harness.run_folder import checkpoints, folder, loading, reading
from harness.run_folder.folder import RunFolder
from harness.sweeps.pruning import Pruning
from harness.training.run import train
from tests.conftest import run_script, tiny
from tests.harness.test_training import make_objects, pytestmark, read_rows, read_summary  # noqa: F401
from tests.project.test_conf import compose, find_problems
from tests.tally import Promise

DISTANCE = """
from lightning.pytorch.callbacks import Callback


class Distance(Callback):
    '''Logs |epoch - 1|, so the second epoch is the best.'''

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/distance", float(abs(trainer.current_epoch - 1)))

    def on_test_epoch_end(self, trainer, pl_module):
        pl_module.log("test/distance", 7.0)
"""
OWN_METRIC_OVERRIDES = [
    "+callbacks.distance={_target_: own.Distance}",
    "monitor=val/distance",
    "mode=min",
    "trainer.max_epochs=4",
    "callbacks.figures=null",
    "logger=csv",
]


@pytest.fixture(scope="module")
def own_metric(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that keeps its three best epochs by a user's metric."""
    folder = tmp_path_factory.mktemp("selection")
    (folder / "own.py").write_text(DISTANCE)
    done = run_script(
        "train",
        *tiny(data_dir, folder / "run"),
        *OWN_METRIC_OVERRIDES,
        "+callbacks.best.save_top_k=3",
        "callbacks.best.filename='epoch={epoch:02d}'",
        PYTHONPATH=f"{folder}:{paths.SOURCE}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_a_users_metric_selects_the_checkpoint(own_metric: Path) -> None:
    summary = read_summary(own_metric)
    assert (summary["monitor"], summary["mode"], summary["objective"]) == (
        "val/distance",
        "min",
        0.0,
    )
    assert summary["checkpoint"] == "checkpoints/epoch=01.ckpt"
    assert summary["metrics"]["val/distance"] == 0.0
    assert summary["metrics"]["test/distance"] == 7.0


def test_the_summary_holds_the_best_epoch(own_metric: Path) -> None:
    second = read_rows(own_metric, "val/")[1]
    summary = read_summary(own_metric)["metrics"]
    assert second["epoch"] == 1
    assert second["val/distance"] == 0.0
    assert summary["val/elbo"] == pytest.approx(second["val/elbo"], abs=1e-9)


def test_loading_a_run_loads_the_best_epoch(own_metric: Path, tmp_path: Path) -> None:
    best = own_metric / "checkpoints" / "epoch=01.ckpt"
    assert loading.find_run(own_metric) == (own_metric, best)
    model = loading.load_run(own_metric, "own")
    saved = loading.model_weights(loading.load_checkpoint(best))
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    # in an unfinished run, the last checkpoint names the best
    copy = tmp_path / "moved"
    shutil.copytree(own_metric, copy)
    RunFolder(copy).record_start(step=1)
    assert loading.find_run(copy)[1] == copy / "checkpoints" / "epoch=01.ckpt"
    (copy / "checkpoints" / "epoch=01.ckpt").unlink()
    assert loading.find_run(copy)[1] == copy / reading.LAST


def test_a_recorded_checkpoint_outside_the_run_folder_is_rejected(
    own_metric: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(own_metric, copy)
    shutil.copy(copy / reading.LAST, tmp_path / "elsewhere.ckpt")
    reading.update_summary(copy, checkpoint="../elsewhere.ckpt")
    with pytest.raises(ConfigError, match="leads out of the folder"):
        loading.find_run(copy)


def test_a_users_metrics_are_compared(own_metric: Path) -> None:
    run = run_results.read_run(own_metric)
    assert isinstance(run, run_results.Run)
    assert run.metrics["val/distance"] == 0.0
    assert run.metrics["test/distance"] == 7.0
    near = comparison.make_group("near", [run])
    far = comparison.make_group("far", [run._replace(metrics={"test/distance": 9.0})])
    assert comparison.sort_groups([far, near], "test/distance") == [near, far]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+callbacks.best.save_top_k=3"], "callbacks.best.save_top_k=3: filename=best"),
        (
            [
                "+callbacks.best.save_top_k=-1",
                "callbacks.best.filename={epoch}",
                "trainer.val_check_interval=0.5",
            ],
            "add {step}",
        ),
        (["+callbacks.best.save_last=link"], "save_last=link: callbacks.last writes last.ckpt"),
        (["+callbacks.best.save_last=true"], "save_last=true: callbacks.last writes last.ckpt"),
        (["callbacks.best.filename=last"], "filename=last: callbacks.last writes last.ckpt"),
        (
            [
                "+callbacks.mine={_target_: lightning.pytorch.callbacks.ModelCheckpoint,"
                "dirpath: '${run_dir}/checkpoints', filename: best, monitor: val/kl}"
            ],
            "callbacks.mine.filename=best: callbacks.best writes best.ckpt",
        ),
        (["+callbacks.best.every_n_train_steps=5"], "weights that were not validated"),
        (["+callbacks.best.train_time_interval={minutes: 5}"], "weights that were not validated"),
        (["+callbacks.best.save_on_exception=true"], "weights that were not validated"),
        (["+callbacks.best.save_weights_only=true"], "raw weights"),
        (["callbacks.best.dirpath=/elsewhere"], "callbacks.best.dirpath=/elsewhere: must lie in"),
        (["callbacks.best.filename=../best"], "must lie in the run folder"),
        (["callbacks.best.monitor=val/kl"], "callbacks.best.monitor=val/kl: must equal monitor="),
        (["callbacks.best.mode=min"], "callbacks.best.mode=min: must equal mode=max"),
        (["mode=min"], "mode=min: must be max"),
        (["monitor=val/mse"], "monitor=val/mse: must be one of val/elbo"),
        (["scheduler=plateau", "scheduler.monitor=val/foo"], "scheduler.monitor=val/foo: must be"),
        (["callbacks.best.filename=last", "+callbacks.best.save_last=true"], "filename=last: call"),
        (["monitor=test/elbo", "+callbacks.x={_target_: own.X}"], "must be a validation metric"),
        (["scheduler=plateau", "scheduler.mode=min"], "scheduler.mode=min: must be max"),
        (["scheduler=plateau", "~scheduler.mode"], "scheduler.mode=min: must be max"),
    ],
)
def test_settings_that_would_select_other_weights_are_rejected(
    overrides: list[str], message: str
) -> None:
    problems = find_problems(*(quote_braces(o) for o in overrides))
    assert len(problems) == 1, problems
    assert message in problems[0]


def quote_braces(override: str) -> str:
    """Return an override whose braces are quoted as text."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if "{epoch}" in value else override


@pytest.mark.parametrize(
    "overrides",
    [
        ["+callbacks.best.save_top_k=2", "callbacks.best.filename='{epoch}-{step}'"],
        ["+callbacks.best.save_top_k=2", "callbacks.best.enable_version_counter=true"],
        ["+callbacks.best.save_top_k=0"],
        ["+callbacks.best.every_n_epochs=2"],
        ["monitor=val/mse", "+callbacks.x={_target_: own.X}"],
        ["monitor=val/mse", "mode=min", "+callbacks.x={_target_: own.X}"],
        ["monitor=val/penalty"],
        ["callbacks.last=null", "+callbacks.best.save_last=true"],
        ["scheduler=plateau"],
        ["scheduler=plateau", "scheduler.patience=1", "+scheduler.frequency=2"],
        [
            "+callbacks.steps={_target_: lightning.pytorch.callbacks.ModelCheckpoint,"
            "dirpath: /elsewhere, save_top_k: -1, every_n_train_steps: 100, save_last: true}"
        ],
    ],
)
def test_settings_that_select_the_best_weights_are_accepted(overrides: list[str]) -> None:
    assert find_problems(*overrides) == []


@pytest.mark.fault(Promise.CHECKPOINTS, "a checkpoint without resume state in place of the last")
def test_a_checkpoint_without_resume_state_is_skipped(own_metric: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(own_metric / reading.LAST, folder / checkpoints.PREVIOUS)
    of_best = loading.load_checkpoint(own_metric / "checkpoints" / "epoch=01.ckpt")
    checkpoints.save({**of_best, "global_step": 999}, folder / "best.ckpt")
    (folder / checkpoints.LAST).symlink_to(folder / "best.ckpt")  # as save_last=link writes it
    found, _, skipped = checkpoints.find_newest(folder, "last*.ckpt", checkpoints.RESUME_KEYS)
    assert found == folder / checkpoints.PREVIOUS
    assert len(skipped) == 1
    assert "last.ckpt: cannot resume a run" in skipped[0]


def test_the_last_checkpoint_names_the_best(own_metric: Path) -> None:
    assert loading.load_checkpoint(own_metric / reading.LAST)["best"] == "epoch=01.ckpt"


def test_the_last_checkpoint_names_the_epoch_to_resume_with(own_metric: Path) -> None:
    last = loading.load_checkpoint(own_metric / reading.LAST)
    assert last["epoch"] == last["position"][0] == 4  # counted from 0, after 4 epochs
    assert last["global_step"] == read_summary(own_metric)["steps"]


@pytest.mark.parametrize(
    "overrides", [["trainer.fast_dev_run=true"], ["debug=overfit"], ["smoke=true"]], ids=str
)
def test_a_smoke_run_is_neither_tracked_nor_compared(
    data_dir: Path, tmp_path: Path, overrides: list[str]
) -> None:
    run_dir = tmp_path / "run"
    often = "trainer.check_val_every_n_epoch=1"
    done = run_script("train", *tiny(data_dir, run_dir), *overrides, often)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_summary(run_dir)["status"] == "smoke"
    assert "a smoke run" in done.stdout
    assert not (run_dir / "wandb").exists()
    assert read_rows(run_dir, "val/")
    assert read_rows(run_dir, "test/")
    assert (run_dir / "figures" / "label_grid.png").is_file()
    assert run_results.read_run(run_dir) == run_results.Excluded(run_dir, "a smoke run")


@pytest.mark.parametrize("name", ["one_batch", "overfit", "profiler"])
def test_every_debug_choice_is_a_smoke_run(name: str) -> None:
    cfg = compose(f"debug={name}")
    assert cfg.smoke
    assert not cfg.get("logger")


def test_logs_latest_links_only_to_runs_and_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "ROOT", tmp_path)
    for name in ("train/mine", "sweeps/mine/0"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        folder.update_latest_link(tmp_path / "logs" / name)
        assert (tmp_path / "logs" / "latest").resolve() == tmp_path / "logs" / name
    for name in ("bench", "anything"):
        folder.update_latest_link(tmp_path / "logs" / name / "run")
    assert (tmp_path / "logs" / "latest").resolve() == tmp_path / "logs" / "sweeps" / "mine" / "0"


def test_every_validation_of_a_search_is_reported(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[int] = []

    def should_prune(*arguments: Any) -> bool:
        reported.append(arguments[4])
        return False

    monkeypatch.setitem(
        sys.modules, "harness.sweeps.search", types.SimpleNamespace(should_prune=should_prune)
    )
    callbacks = [Pruning(str(tmp_path), "study", 0, "val/elbo", None)]
    module, data, trainer = make_objects(
        data_dir, tmp_path, callbacks=callbacks, val_check_interval=0.5, num_sanity_val_steps=1
    )
    train(module, data, trainer)
    assert reported == [0, 1, 2, 3]
    resumed = Pruning(str(tmp_path), "study", 0, "val/elbo", None)
    resumed.load_state_dict(json.loads(json.dumps(callbacks[0].state_dict())))
    assert resumed.state_dict() == {"num_validations": 4}


def test_a_plateau_lowers_the_rate_by_the_monitored_metric(data_dir: Path, tmp_path: Path) -> None:
    rates = {}
    for mode in ("max", "min"):  # the bound rises, so with mode=min nothing improves
        module, data, trainer = make_objects(data_dir, tmp_path / mode, max_epochs=4, callbacks=[])
        module._make_scheduler = lambda o, m=mode: ReduceLROnPlateau(o, mode=m, patience=0)
        trainer.fit(module, datamodule=data)
        rates[mode] = trainer.optimizers[0].param_groups[0]["lr"]
    assert rates["max"] == 1e-2
    assert rates["min"] < 1e-2 / 50
