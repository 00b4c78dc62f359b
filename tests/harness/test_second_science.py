"""Tests that a copy of the harness trains the classifier in second_science/ without cvae."""

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
from harness.config.instantiation import check_classes
from harness.contract.errors import ConfigError
from tests.conftest import ROOT, run_warm

SCIENCE = ROOT / "tests" / "harness" / "second_science"
MACHINERY = ("harness", "hydra_plugins", "train.py", "compare.py")
GENERIC = (  # files of conf/ that name nothing of cvae
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
    """A project with the harness and the classifier, without cvae."""
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
    # cvae may be installed in the environment
    (copy / "src" / "cvae.py").write_text("raise ImportError('the harness must not need cvae')")
    (copy / "src" / "killed.py").write_text(KILLED)
    (copy / "src" / "loading.py").write_text(LOADING)
    return copy


@pytest.fixture(scope="module")
def run(project: Path) -> Run:
    """Run a script of the project with its folder as the current directory."""

    def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = project / "src" / f"{name}.py"
        return run_warm(script, arguments, project, timeout=120, PYTHONPATH="")

    return run_script


@pytest.fixture(scope="module")
def one(project: Path, run: Run) -> Path:
    """The folder of a finished run on one device."""
    done = run("train", *SHORT, "hydra.run.dir=logs/one")
    assert done.returncode == 0, done.stdout + done.stderr
    return project / "logs" / "one"


def summary(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return content


def rows(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv, without rates and empty cells."""
    with (run_dir / "metrics.csv").open() as file:
        return [
            {k: float(v) for k, v in row.items() if v and "per_second" not in k}
            for row in csv.DictReader(file)
        ]


def last(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def tensors(node: Any, key: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a checkpoint with its key; keys hold file names, not whole paths."""
    if isinstance(node, torch.Tensor):
        yield key, node
    elif isinstance(node, dict | list | tuple):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from tensors(child, f"{key}.{Path(str(name)).name}")


def test_one_device(one: Path) -> None:
    found = summary(one)
    assert (found["status"], found["name"], found["steps"]) == ("finished", "mlp-s1", 38)
    assert found["monitor"] == "val/accuracy"
    assert found["objective"] == found["metrics"]["val/accuracy"] > 0.5  # chance is 0.1
    assert found["metrics"]["test/accuracy"] > 0.5
    lines = rows(one)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(3, 38, 3))
    assert [line["rows_seen"] for line in lines if "val/loss" in line] == [1297, 2 * 1297]


@pytest.fixture(scope="module")
def sweep(project: Path, run: Run) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep of two jobs on two devices each, one after the other; the first job fails."""
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
    failing, other = summary(folder / "0"), summary(folder / "1")
    assert (failing["status"], other["status"]) == ("failed", "finished")
    assert "not finite" in failing["error"]
    assert failing["error"] in done.stdout
    assert "train.py rerun=logs/sweep" in done.stdout


def test_two_devices_take_the_steps_of_one(
    sweep: tuple[Path, subprocess.CompletedProcess[str]], one: Path
) -> None:
    """The last batch of an epoch has one row, so one of the two devices has no row."""
    two = sweep[0] / "1"
    assert (summary(one)["devices"], summary(two)["devices"]) == (1, 2)
    for line, same in zip(rows(one), rows(two), strict=True):
        assert same == pytest.approx(line, rel=1e-4)
    weights = last(two)["state_dict"]
    for name, value in last(one)["state_dict"].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5)


def test_a_killed_run_resumes_exactly(project: Path, run: Run, one: Path) -> None:
    """SIGKILL after a checkpoint at step 28 of 38 and a row of metrics at step 30."""
    killed = project / "logs" / "killed"
    saves = "callbacks.last.every_n_steps=4"
    assert run("killed", *SHORT, saves, f"hydra.run.dir={killed}").returncode == -signal.SIGKILL
    assert (last(killed)["global_step"], rows(killed)[-1]["step"]) == (28, KILLED_AT)
    done = run("train", f"resume={killed}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [resumed["step"] for resumed in summary(killed)["resumed"]] == [28]
    assert rows(killed) == rows(one)
    expected, found = dict(tensors(last(one))), dict(tensors(last(killed)))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_compare(project: Path, run: Run, one: Path) -> None:
    done = run("compare", "runs=logs/one")
    assert done.returncode == 0, done.stdout + done.stderr
    value = f"{summary(one)['metrics']['test/accuracy']:.3f}"
    assert "accuracy" in done.stdout
    assert value in done.stdout
    table = (one / "compare.md").read_text()
    assert "test/accuracy" in table
    assert value in table


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("modle.hidden_dim=3", "there is no key modle.hidden_dim; did you mean model.hidden_dim?"),
        (
            "+data.nosie=0.2",
            "data.nosie: digits_classifier.data.DigitsDataModule does not take it; did you mean "
            "data.noise?",
        ),
    ],
)
def test_what_is_misspelt_is_told_in_a_line(project: Path, run: Run, typed: str, told: str) -> None:
    done = run("train", typed, "hydra.run.dir=logs/misspelt")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (project / "logs" / "misspelt").exists()


class Taking:
    """A module whose constructor names a top-level setting of train.yaml."""

    def __init__(self, smoke: bool, **given: Any) -> None: ...


def test_a_module_may_take_a_setting_of_the_top_level() -> None:
    cfg = {"module": {"_target_": f"{__name__}.Taking"}}
    with pytest.raises(ConfigError, match=r"module\.smoke: is not set"):
        check_classes(cfg)
    check_classes({**cfg, "smoke": False})


def test_load_run(run: Run, one: Path) -> None:
    """Without trust=, because the class of the model is defined in src/."""
    done = run("loading")
    kind, accuracy = done.stdout.rsplit(maxsplit=1)
    assert kind == "<class 'digits_classifier.module.MLP'>", done.stderr
    assert float(accuracy) == pytest.approx(summary(one)["metrics"]["test/accuracy"])


PAGE = (ROOT / "docs" / "harness.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", ["digits_classifier/data.py", "digits_classifier/module.py", "conf/train.yaml"]
)
def test_the_page_shows_the_example(path: str) -> None:
    kind = {"py": "python", "yaml": "yaml"}[path.rpartition(".")[2]]
    assert f"```{kind}\n{(SCIENCE / path).read_text(encoding='utf-8')}```" in PAGE


def test_the_example_is_short() -> None:
    files = (SCIENCE / "digits_classifier").glob("*.py")
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert count <= 80
    assert f"{count} lines" in PAGE


def test_the_page_lists_what_a_science_may_answer() -> None:
    asked = re.findall(r'_asked\(\s*"(\w+)"', inspect.getsource(science))
    section = PAGE.partition("## settings.py")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)", section, re.MULTILINE) == asked
