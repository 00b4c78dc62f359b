"""A run folder of version 0.1 (runs/0.1) loads, evaluates, compares, resumes and exports."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from cvae import load_run
from harness.run_folder import checkpoints
from tests.conftest import ROOT, run_script, run_warm

RUN_OF_0_1 = ROOT / "tests" / "project" / "runs" / "0.1"

# on 500 images, measured when the evaluation of all 10,000 agreed with runs/0.1/evaluation.json
EXPECTED_METRICS = {
    "test/elbo": -197.96327,
    "test/reconstruction": -197.95951,
    "test/kl": 0.0037612,
    "test/penalty": 1.3864823,
    "test/nll_k1": 197.95919,
    "test/nll_k2": 197.93503,
    "test/joint_nll_k2": 200.23761,
    "test/marginal_nll_k2": 198.07298,
    "test/bits_per_dim_k2": 0.3642345,
}
EVALUATE_FEW = """
import runpy
import sys

from cvae.data import MNISTDataModule

load_all = MNISTDataModule.load_arrays


def load_few(self):
    *train, images, labels = load_all(self)
    return *train, images[:500], labels[:500]


MNISTDataModule.load_arrays = load_few
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN_OF_0_1, tmp_path / "of 0.1"))


def test_an_earlier_run_loads_and_samples(earlier: Path) -> None:
    model = load_run(earlier)
    assert model.sample(y=3, num_samples=2).shape == (2, 1, 28, 28)


def test_an_earlier_run_generates(earlier: Path) -> None:
    done = run_script("generate", f"run={earlier}", "label=all", "num_samples=2")
    assert done.returncode == 0, done.stderr


def test_the_evaluation_of_an_earlier_run_is_unchanged(earlier: Path, tmp_path: Path) -> None:
    before = json.loads((earlier / "evaluation.json").read_text())["metrics"]
    assert before.keys() == EXPECTED_METRICS.keys()
    (earlier / "evaluation.json").unlink()
    script = tmp_path / "evaluate_few.py"
    script.write_text(EVALUATE_FEW)
    overrides = [f"run={earlier}", "claims=bound", "num_samples=2", "figures=false"]
    done = run_warm(script, [str(ROOT / "src" / "evaluate.py"), *overrides], ROOT, 300)
    assert done.returncode == 0, done.stderr
    assert "500 test images of MNIST" in done.stdout
    metrics = json.loads((earlier / "evaluation.json").read_text())["metrics"]
    assert metrics.keys() == EXPECTED_METRICS.keys()
    for name, metric in metrics.items():
        assert metric["value"] == pytest.approx(EXPECTED_METRICS[name], abs=1e-3), name


def test_an_earlier_run_is_compared_with_a_new_one(
    earlier: Path, finished_run: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(earlier, both / "earlier")
    shutil.copytree(finished_run, both / "now", ignore=shutil.ignore_patterns("wandb"))
    done = run_script("compare", f"runs={both}")
    assert done.returncode == 0, done.stderr
    assert "not compared" not in done.stdout
    rows = csv.DictReader((both / "compare.csv").read_text().splitlines())
    titles = {row["group"] for row in rows}
    assert len(titles) == 2
    # the class has only moved to another module
    assert not any("LastCheckpoint" in title for title in titles)


def test_an_earlier_run_resumes(earlier: Path) -> None:
    overrides = [f"resume={earlier}", "trainer.max_epochs=2", "logger=csv"]
    done = run_script("train", *overrides, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at step 30" in done.stdout
    assert checkpoints.load(earlier / "checkpoints" / "last.ckpt")["global_step"] == 60


@pytest.mark.engines
def test_an_earlier_run_is_exported(earlier: Path) -> None:
    done = run_script("export", f"run={earlier}", timeout=300)
    assert done.returncode == 0, done.stderr
    assert load_run(earlier / "export").sample(y=3).shape == (1, 1, 28, 28)
