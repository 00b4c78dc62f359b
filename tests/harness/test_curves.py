"""Tests that curves show the whole history of metrics.csv, in readable panels."""

import io
from pathlib import Path

import numpy as np
import pytest

from harness.contract.curves import draw_curves, read_curves, select_panels
from harness.run_folder.metrics_file import MetricsFile


@pytest.fixture
def metrics_path(tmp_path: Path) -> Path:
    """Return the metrics.csv of a run of 40 steps, which was resumed at step 20."""
    log_steps(tmp_path / "metrics.csv", range(0, 31, 5), 1.0)
    logger = MetricsFile(tmp_path / "metrics.csv")
    logger.rewind(20)
    log_steps(tmp_path / "metrics.csv", range(25, 41, 5), 2.0)
    logger.log_metrics({"test/loss": 7.0}, 40)
    return tmp_path / "metrics.csv"


def log_steps(metrics_path: Path, steps: range, offset: float) -> None:
    logger = MetricsFile(metrics_path)
    for step in steps:
        epoch = step // 10
        train = {"train/loss": offset + step, "train/learning_rate": 0.1, "epoch": epoch}
        logger.log_metrics({**train, "train/rows_per_second": 9.0}, step)
        if step % 10 == 0:
            logger.log_metrics(
                {"val/loss": -float(step), "val/accuracy": 0.5, "epoch": epoch}, step
            )


def test_curves_cover_the_steps_before_and_after_a_resume(metrics_path: Path) -> None:
    curves = read_curves(metrics_path)
    assert [step for step, _ in curves["loss"]["train"]] == list(range(0, 41, 5))
    assert dict(curves["loss"]["train"])[20] == 21.0
    assert dict(curves["loss"]["train"])[25] == 27.0
    assert curves["loss"]["val"] == [(0, 0.0), (10, -10.0), (20, -20.0), (30, -30.0), (40, -40.0)]
    assert "test" not in curves["loss"]


def test_panels_are_validated_quantities_and_the_learning_rate(metrics_path: Path) -> None:
    curves = read_curves(metrics_path)
    assert select_panels(curves, ["absent", "loss"]) == ["loss", "accuracy", "learning_rate"]
    unvalidated = {name: {"train": [(0, 1.0)]} for name in ("loss", "rows_per_second")}
    assert select_panels(unvalidated) == ["loss"]
    many = {f"metric_{i}": {"val": [(0, 1.0)]} for i in range(20)} | {"learning_rate": {}}
    assert select_panels(many)[-1] == "learning_rate"
    assert len(select_panels(many)) == 9


def test_each_split_has_a_line_of_its_own_color(metrics_path: Path) -> None:
    figure = draw_curves(metrics_path, {"loss": "nats per row"})
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes][:2] == ["loss, nats per row", "accuracy"]
    figure.savefig(content := io.BytesIO(), format="rgba")
    pixels = np.frombuffer(content.getvalue(), np.uint8).reshape(-1, 4)[:, :3]
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels == color).all(axis=1).sum() > 100


def test_a_run_without_curves_has_no_picture(tmp_path: Path) -> None:
    assert draw_curves(tmp_path / "metrics.csv") is None
    MetricsFile(tmp_path / "metrics.csv").log_metrics({"test/loss": 1.0}, 1)
    assert draw_curves(tmp_path / "metrics.csv") is None


def test_a_value_that_is_not_finite_and_a_single_step_are_drawn(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "metrics.csv")
    logger.log_metrics({"val/loss": float("nan"), "train/loss": float("inf")}, 1)
    figure = draw_curves(tmp_path / "metrics.csv")
    assert figure is not None
    figure.savefig(io.BytesIO())
