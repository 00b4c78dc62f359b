"""``weights=RUN``: a run that starts from the weights of another."""

import re
from pathlib import Path

import pytest
import torch

from harness.run_folder import loading
from harness.run_folder.reading import BEST
from tests.conftest import run_light, run_script, tiny

SHORT = [
    *("trainer.max_epochs=1", "optimizer.lr=1e-12", "scheduler=constant", "callbacks.ema=null"),
    *("callbacks.figures=null", "logger=csv", "test=false"),
]


def load_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return loading.model_weights(loading.load_checkpoint(run_dir / BEST))


def test_a_run_starts_from_the_weights_of_another(
    finished_run: Path, data_dir: Path, tmp_path: Path
) -> None:
    """With a learning rate of almost 0, the weights and the output bias do not change."""
    overrides = [*tiny(data_dir, tmp_path), *SHORT, f"weights='{finished_run}'"]
    done = run_script("train", *overrides)
    assert done.returncode == 0, done.stderr
    before, after = load_weights(finished_run), load_weights(tmp_path)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=1e-6)


def test_weights_that_do_not_fit_are_named_and_skipped_with_weights_partial(
    finished_run: Path, data_dir: Path, tmp_path: Path
) -> None:
    overrides = [*tiny(data_dir, tmp_path / "a"), *SHORT, f"weights='{finished_run}'"]
    changed = [*overrides, "model.latent_dim=5"]
    done = run_script("train", *changed)
    assert done.returncode == 2
    assert "do not fit the model: network.encoder.head.weight (6x16, not 10x16)" in done.stderr
    assert "weights_partial=true leaves them out" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    changed[-2:-1] = [f"weights='{finished_run}'", f"hydra.run.dir={tmp_path / 'b'}"]
    done = run_script("train", *changed, "weights_partial=true")
    assert done.returncode == 0, done.stderr
    assert "left out: network.encoder.head.weight" in done.stdout
    before, after = load_weights(finished_run), load_weights(tmp_path / "b")
    stem = "network.encoder.stem.linear.weight"
    torch.testing.assert_close(after[stem], before[stem], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("path", ["nothing", "conf"])
def test_missing_weights_are_rejected_before_a_folder_is_made(
    path: str, data_dir: Path, tmp_path: Path
) -> None:
    done = run_light("train", *tiny(data_dir, tmp_path / "run"), f"weights={path}")
    assert done.returncode == 2
    assert re.match(rf"error: weights=.*{path}: no ", done.stderr)
    assert not (tmp_path / "run").exists()
