"""Tests of ``python src/evaluate.py``."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from cvae.evaluation.settings import QUICK, Claim
from harness.config.checks import validate
from harness.run_folder import reading
from tests.conftest import NUM_TEST, ROOT, run_script
from tests.project.test_conf import compose, to_plain

BAD_OVERRIDES = [
    ("claims=buond", ["claims=buond", "bound"]),
    ("claims=[bound,x]", ["claims", "one of bound"]),
    ("accelerator=tpu", ["accelerator=tpu", "auto, cpu, gpu"]),
    ("num_samples=0", ["num_samples=0", "from 1 to"]),
    ("run=/no/such/run", ["run=/no/such/run", "no such folder"]),
]


@pytest.mark.parametrize(
    ("override", "fragments"), BAD_OVERRIDES, ids=[override for override, _ in BAD_OVERRIDES]
)
def test_bad_input_fails_with_one_clear_message(override: str, fragments: list[str]) -> None:
    done = run_script("evaluate", override)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) <= 3
    assert all(part in done.stderr for part in fragments)


def test_the_config_is_valid() -> None:
    assert validate(to_plain(compose(config="evaluate")), "evaluate") == []


@pytest.fixture(scope="module")
def evaluated(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return a copy of the finished run, evaluated by every claim, and the finished process."""
    run_dir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished_run, run_dir)
    done = run_script(
        "evaluate", f"run={run_dir}", "num_samples=4", "num_generated=20", COLUMNS="80"
    )
    assert done.returncode == 0, done.stderr
    return run_dir, done


def test_evaluate_agrees_with_the_end_of_training(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, done = evaluated
    evaluated_metrics = json.loads((run_dir / "evaluation.json").read_text())["metrics"]
    trained = json.loads((run_dir / "summary.json").read_text())["metrics"]
    for key in ("test/elbo", "test/kl", "test/reconstruction", "test/nll_k4"):
        assert evaluated_metrics[key]["value"] == pytest.approx(trained[key], rel=1e-5)
        assert evaluated_metrics[key]["standard_error"] > 0
        assert f"{evaluated_metrics[key]['value']:.2f}" in done.stdout
    assert f"{NUM_TEST} test images" in done.stdout
    of_labels = set(get_args(Claim)) - {"attribute_control", "latent_content"}
    assert {metric["claim"] for metric in evaluated_metrics.values()} >= of_labels
    table = [line for line in done.stdout.splitlines() if "±" in line]
    assert len(table) > 5
    finished = re.findall(r"^(\w+) \((\d+) of 11\): ", done.stderr, re.MULTILINE)
    assert finished == [(claim, str(i)) for i, claim in enumerate(get_args(Claim), start=1)]
    assert max(map(len, table)) <= 80


def test_an_evaluation_saves_figures_and_updates_the_tracked_run(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, _ = evaluated
    traversals = ("traversal_thickness", "traversal_slant") if "style" in get_args(Claim) else ()
    for name in ("label_grid", *traversals):
        with Image.open(run_dir / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 100
    run_id = json.loads((run_dir / "summary.json").read_text())["run_id"]
    files = list(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert {file.name for file in files} == {f"run-{run_id}.wandb"}


def test_the_reference_lists_every_metric(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, _ = evaluated
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    names = re.findall(r"`((?:train|val|test|samples|latent|style|oracle)/\w+)`", "".join(rows))
    # without metrics of runs with other settings
    names = [n for n in names if "NAME" not in n and "_density" not in n]
    columns = (run_dir / "metrics.csv").read_text().partition("\n")[0].strip().split(",")
    measured = {*columns, *json.loads((run_dir / "evaluation.json").read_text())["metrics"]}
    written = {re.sub(r"_k\d+$", "_kK", name) for name in measured if "/" in name}
    of_autoencoder = {f"samples/frechet_distance_{kind}" for kind in ("gaussian", "mixture")}
    has_codes = "prior_samples" in get_args(Claim)
    assert written | (of_autoencoder if has_codes else set()) == set(names)


def test_a_second_evaluation_is_added_to_the_first(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, _ = evaluated
    before = json.loads((run_dir / "evaluation.json").read_text())
    overrides = ["claims=bound", "num_samples=6", "num_generated=20", "figures=false"]
    done = run_script("evaluate", f"run={run_dir}", *overrides)
    assert done.returncode == 0, done.stderr
    after = json.loads((run_dir / "evaluation.json").read_text())
    assert set(after["metrics"]) > set(before["metrics"])
    assert {"test/nll_k1", "test/nll_k4", "test/nll_k6"} <= set(after["metrics"])
    other = {"checkpoint_digest": "of other weights"}
    reading.update_evaluation(run_dir, other, {"metrics": {}})
    assert reading.read_evaluation(run_dir)["metrics"] == {}  # metrics of other weights are dropped


def test_quick_measures_a_few_claims(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(evaluated[0], run_dir)
    (run_dir / "evaluation.json").unlink()
    done = run_script(
        "evaluate", f"run={run_dir}", "claims=quick", "num_samples=4", "num_generated=20"
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((run_dir / "evaluation.json").read_text())
    assert {*measured["seconds"], *measured["left_out"]} == set(QUICK)
