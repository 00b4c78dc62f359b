"""A copy of the harness trains the classifier in second_science/ without the science of src/."""

import csv
import inspect
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import science
from harness.config.checks import check_arguments, train_arguments
from harness.config.schemas import wrong_values
from harness.contract.settings import Positive
from tests import PACKAGE
from tests.conftest import ROOT, run_warm

SCIENCE = ROOT / "tests" / "harness" / "second_science"
MACHINERY = ("harness", "hydra_plugins", "train.py", "compare.py")
GENERIC = (  # files of conf/ that name nothing of the science
    "trainer/default.yaml",
    "device/cpu.yaml",
    "hydra/train.yaml",
    "hydra/tool.yaml",
    "hydra/launcher/local.yaml",
    "hydra/sweeper/checked.yaml",
)
SHORT = ("trainer.max_epochs=2", "trainer.log_every_n_steps=3")  # epochs of 19 steps
KILLED_AT = 30
KILLED = f"""
import os, runpy, signal
from digits_classifier.module import Classifier
take_step = Classifier.training_step
def training_step(self, *batch):
    if self.global_step == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(self, *batch)
Classifier.training_step = training_step
runpy.run_path("src/train.py", run_name="__main__")
"""
LOADING = """
import torch
from digits_classifier.data import DigitsDataModule
from harness.contract.sampler import Rows
from harness.run_folder.loading import load_run
data = DigitsDataModule(72, 125, 0.1, seed=1)
data.setup()
x, y, _ = data.test[Rows(0, torch.arange(250), 250)]
model = load_run("logs/one")
print(type(model), float((model(x).argmax(1) == y).float().mean()))
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with the harness and the classifier only."""
    copy = tmp_path_factory.mktemp("second") / "a project"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(SCIENCE / "conf", copy / "conf")
    shutil.copytree(SCIENCE / "digits_classifier", copy / "src" / "digits_classifier")
    for name in GENERIC:
        (copy / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "conf" / name, copy / "conf" / name)
    for name in MACHINERY:
        if (ROOT / "src" / name).is_dir():
            shutil.copytree(ROOT / "src" / name, copy / "src" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / "src" / name, copy / "src" / name)
    # the science may be installed in the environment
    (copy / "src" / f"{PACKAGE}.py").write_text("raise ImportError('not needed by the harness')")
    (copy / "src" / "killed.py").write_text(KILLED)
    (copy / "src" / "loading.py").write_text(LOADING)
    return copy


@pytest.fixture(scope="module")
def run(project: Path) -> Run:
    """Return a function that runs a script of the project in the project folder."""

    def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = project / "src" / f"{name}.py"
        return run_warm(script, arguments, project, timeout=120, PYTHONPATH="")

    return run_script


@pytest.fixture(scope="module")
def one_device_run(project: Path, run: Run) -> Path:
    """Return the folder of a finished run on one device."""
    done = run("train", *SHORT, "hydra.run.dir=logs/one")
    assert done.returncode == 0, done.stdout + done.stderr
    return project / "logs" / "one"


def read_summary(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return content


def read_rows(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv, without columns of throughput and empty cells."""
    with (run_dir / "metrics.csv").open() as file:
        return [
            {k: float(v) for k, v in row.items() if v and "per_second" not in k}
            for row in csv.DictReader(file)
        ]


def load_last(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def iterate_tensors(node: Any, key: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor of a checkpoint with its key; paths in keys are cut to their file names."""
    if isinstance(node, torch.Tensor):
        yield key, node
    elif isinstance(node, dict | list | tuple):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from iterate_tensors(child, f"{key}.{Path(str(name)).name}")


def test_the_classifier_trains_on_one_device(one_device_run: Path) -> None:
    summary = read_summary(one_device_run)
    assert (summary["status"], summary["name"], summary["steps"]) == ("finished", "mlp-s1", 38)
    assert summary["monitor"] == "val/accuracy"
    assert summary["objective"] == summary["metrics"]["val/accuracy"] > 0.5  # chance is 0.1
    assert summary["metrics"]["test/accuracy"] > 0.5
    lines = read_rows(one_device_run)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(3, 38, 3))
    assert [line["rows_seen"] for line in lines if "val/loss" in line] == [1297, 2 * 1297]


@pytest.fixture(scope="module")
def sweep(project: Path, run: Run) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return the folder and the output of a sweep of two jobs on two devices; the first fails."""
    done = run(
        "train",
        *("-m", *SHORT, "trainer.devices=2", "scheduler.max_lr=1e30,0.1"),
        *("hydra.launcher.num_jobs=1", "hydra.sweep.dir=logs/sweep"),
    )
    return project / "logs" / "sweep", done


def test_a_job_that_fails_does_not_stop_the_sweep(
    sweep: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = sweep
    assert done.returncode == 1
    failing, other = read_summary(folder / "0"), read_summary(folder / "1")
    assert (failing["status"], other["status"]) == ("failed", "finished")
    assert "not finite" in failing["error"]
    assert failing["error"] in done.stdout
    assert "train.py rerun=logs/sweep" in done.stdout


def test_one_device_and_two_take_the_same_steps(
    sweep: tuple[Path, subprocess.CompletedProcess[str]], one_device_run: Path
) -> None:
    """The last batch of an epoch has one row, so one of the two devices has no row."""
    two = sweep[0] / "1"
    assert (read_summary(one_device_run)["devices"], read_summary(two)["devices"]) == (1, 2)
    for line, same in zip(read_rows(one_device_run), read_rows(two), strict=True):
        assert same == pytest.approx(line, rel=1e-4)
    weights = load_last(two)["state_dict"]
    for name, value in load_last(one_device_run)["state_dict"].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5)


def test_a_killed_run_resumes_exactly(project: Path, run: Run, one_device_run: Path) -> None:
    """Kill a run of 38 steps after a checkpoint at step 28 and a row of metrics at step 30."""
    killed = project / "logs" / "killed"
    saves = "callbacks.last.every_n_steps=4"
    assert run("killed", *SHORT, saves, f"hydra.run.dir={killed}").returncode == -signal.SIGKILL
    assert (load_last(killed)["global_step"], read_rows(killed)[-1]["step"]) == (28, KILLED_AT)
    done = run("train", f"resume={killed}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [resumed["step"] for resumed in read_summary(killed)["resumed"]] == [28]
    assert read_rows(killed) == read_rows(one_device_run)
    expected, actual = (
        dict(iterate_tensors(load_last(one_device_run))),
        dict(iterate_tensors(load_last(killed))),
    )
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_compare_reads_the_run(project: Path, run: Run, one_device_run: Path) -> None:
    done = run("compare", "runs=logs/one")
    assert done.returncode == 0, done.stdout + done.stderr
    value = f"{read_summary(one_device_run)['metrics']['test/accuracy']:.3f}"
    assert "accuracy" in done.stdout
    assert value in done.stdout
    table = (one_device_run / "compare.md").read_text()
    assert "test/accuracy" in table
    assert value in table


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.hidden_dim=3", "there is no key modle.hidden_dim; did you mean model.hidden_dim?"),
        (
            "+data.nosie=0.2",
            "data.nosie=0.2: digits_classifier.data.DigitsDataModule has no such key; did you mean "
            "data.noise?",
        ),
    ],
)
def test_a_misspelt_override_fails_with_one_line(
    project: Path, run: Run, override: str, message: str
) -> None:
    done = run("train", override, "hydra.run.dir=logs/misspelt")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (project / "logs" / "misspelt").exists()


class ModuleWithSettings:
    """A module whose constructor takes top-level settings of train.yaml."""

    def __init__(self, smoke: bool, sharpness: Positive, **kwargs: Any) -> None: ...


def test_a_module_may_have_top_level_settings() -> None:
    module = {"_target_": f"{__name__}.ModuleWithSettings"}
    config = {"module": module, "smoke": False}
    assert list(check_arguments(config)) == [
        "module.sharpness: missing; it must be a number above 0"
    ]
    assert list(check_arguments({**config, "sharpness": 2.0})) == []
    model = train_arguments(config).model
    (wrong,) = wrong_values(model, {"sharpness": 0, "smoke": True})
    assert wrong == ("sharpness", "a number above 0")


def test_load_run_returns_the_classifier(run: Run, one_device_run: Path) -> None:
    """No trust= is needed, because the class of the model is defined in src/."""
    done = run("loading")
    model_class, accuracy = done.stdout.rsplit(maxsplit=1)
    assert model_class == "<class 'digits_classifier.module.MLP'>", done.stderr
    assert float(accuracy) == pytest.approx(
        read_summary(one_device_run)["metrics"]["test/accuracy"]
    )


PAGE = (ROOT / "docs" / "design" / "harness.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", ["digits_classifier/data.py", "digits_classifier/module.py", "conf/train.yaml"]
)
def test_the_page_shows_the_example(path: str) -> None:
    language = {"py": "python", "yaml": "yaml"}[path.rpartition(".")[2]]
    assert f"```{language}\n{(SCIENCE / path).read_text(encoding='utf-8')}```" in PAGE


def test_the_example_is_short() -> None:
    files = (SCIENCE / "digits_classifier").glob("*.py")
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert count <= 80
    assert f"{count} lines" in PAGE


def test_the_page_lists_every_name_of_settings_py() -> None:
    names = re.findall(r'_setting\(\s*"(\w+)"', inspect.getsource(science))
    section = PAGE.partition("## settings.py")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)", section, re.MULTILINE) == names
