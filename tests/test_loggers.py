"""The record on disk, and its mirror on Weights & Biases."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cvae.loggers import MetricsFile, has_wandb_account, log_evaluation, wandb_mode
from tests.conftest import run_script, tiny


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    record = MetricsFile(path)
    record.log_metrics({"a": 1.5, "images_seen": 20_000_001.0}, step=1)
    assert read(path) == [{"step": "1", "images_seen": "20000001", "a": "1.5"}]
    record.log_metrics({"b": 2.0}, step=2)
    record.log_metrics({"a": 3.0}, step=3)
    assert [row["a"] for row in read(path)] == ["1.5", "", "3.0"]
    assert [row["b"] for row in read(path)] == ["", "2.0", ""]
    MetricsFile(path).log_metrics({"b": 4.0}, step=4)  # a resumed run adds to it
    assert [row["step"] for row in read(path)] == ["1", "2", "3", "4"]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def records(run_dir: Path) -> list[dict[str, Any]]:
    """What W&B's own reader finds in the offline file of a run.

    W&B has a process of its own, which may write on when that of the run is over.
    """
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    wandb = Path(sys.executable).parent / "wandb"
    for _ in range(20):
        done = subprocess.run(
            [wandb, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True
        )
        found = [json.loads(line) for line in done.stdout.splitlines()]
        if any(r["type"] == "exit" for r in found):
            break
        time.sleep(0.5)
    return found


def test_the_offline_file_holds_config_metrics_and_pictures(finished_run: Path) -> None:
    found = records(finished_run)
    told = json.loads((finished_run / "summary.json").read_text())
    (run,) = [r["run"] for r in found if r["type"] == "run"]
    assert run["run_id"] == told["run_id"]
    assert run["display_name"] == "cvae-mlp-adversary-z3-kmnist-s1"
    assert run["project"] == "conditional-vae"
    assert run["job_type"] == "train"
    config: dict[str, Any] = {}
    for r in found:
        if r["type"] == "config":
            config |= r["config"].get("update", {})
    assert config["latent_dim"] == 3
    assert config["batch_size"] == 32
    assert "git_commit" in config
    history = [r["history"]["item"] for r in found if r["type"] == "history"]
    steps = [row["trainer/global_step"] for row in history if "train/loss" in row]
    assert steps == list(range(1, 15))
    assert all({"epoch", "images_seen"} <= row.keys() for row in history if "val/elbo" in row)
    pictures = {k.partition(".")[0] for row in history for k in row if k.startswith("figures/")}
    names = ("label_grid", "reconstructions", "style_transfer", "traversals")
    log = (finished_run / "train.log").read_text()
    assert pictures == {f"figures/{name}" for name in names}, log
    files = [
        row[f"figures/{name}.filenames"]
        for row in history
        for name in names
        if f"figures/{name}.filenames" in row
    ]
    assert len(files) == len(names)
    for (name,) in files:
        (file,) = finished_run.glob(f"wandb/offline-run-*/files/{name}")
        assert file.stat().st_size > 500
    (end,) = [r["exit"] for r in found if r["type"] == "exit"]
    assert end.get("exit_code", 0) == 0
    defined = {
        r["metric"].get("name") or r["metric"].get("glob_name")
        for r in found
        if r["type"] == "metric"
    }
    assert {"images_seen", "epoch", "val/elbo"} <= defined
    final = {
        k: v for r in found if r["type"] == "summary" for k, v in r["summary"]["update"].items()
    }
    assert final["test/elbo"] == pytest.approx(told["metrics"]["test/elbo"])


def test_a_failed_run_is_marked_failed(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def explode(**_):\n    raise ZeroDivisionError\n")
    run_dir = tmp_path / "run"
    more = ["optimizer._target_=mine.explode", "optimizer._partial_=true"]
    more += [f"~optimizer.{key}" for key in ("betas", "weight_decay", "fused", "lr")]
    (tmp_path / "mine.py").write_text("def explode(groups):\n    raise ZeroDivisionError\n")
    done = run_script("train", *tiny(data_dir, run_dir), *more, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    (end,) = [r["exit"] for r in records(run_dir) if r["type"] == "exit"]
    assert end["exit_code"] == 1


def test_an_account_is_found_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not has_wandb_account()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_wandb_account()
    monkeypatch.setenv("HOME", "/nowhere")
    assert not has_wandb_account()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert has_wandb_account()


def test_a_server_that_refuses_does_not_stop_a_run(data_dir: Path, tmp_path: Path) -> None:
    """Online by the key, refused by the server: on it goes, offline, and says so."""
    run_dir = tmp_path / "run"
    done = run_script(
        "train",
        *tiny(data_dir, run_dir),
        "trainer.max_epochs=1",
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tracked offline" in done.stdout
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "finished"


def test_an_evaluation_does_not_fail_for_the_sake_of_its_mirror(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def start() -> Any:
        raise RuntimeError("the server is away")

    log_evaluation(start, {"test/nll_k50": {"value": 84.0}}, {})
    assert "the server is away" in caplog.text


@pytest.mark.parametrize(
    ("there", "environment", "mode"),
    [
        ("run-20260101-abc", "", "auto"),
        ("offline-run-20260101-abc", "", "offline"),
        ("run-20260101-abc", "disabled", None),
        (None, "", None),
    ],
)
def test_how_to_add_to_a_tracked_run(
    there: str | None,
    environment: str,
    mode: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    if there is not None:
        (tmp_path / "wandb" / there).mkdir(parents=True)
    assert wandb_mode(tmp_path) == mode
