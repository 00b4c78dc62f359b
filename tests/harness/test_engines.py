"""Other launchers, the W&B dashboard and W&B sweeps, each with the real package."""

import json
from pathlib import Path

import pytest
import yaml

from harness.config.hydra_versions import INITIALIZE_OPTIONS
from harness.config.paths import CONF
from harness.run_folder.metrics_file import MetricsFile
from tests.conftest import ROOT, run_script, tiny
from tests.harness.test_loggers import read_wandb_records
from tests.project.test_conf import compose, to_plain

FAST = ["callbacks.figures=null", "device=cpu", "logger=csv"]


@pytest.mark.engines
@pytest.mark.parametrize(
    ("launcher", "package"), [("slurm_rehearsal", "submitit"), ("ray_local", "ray")]
)
def test_sweeps_run_with_other_launchers(
    launcher: str, package: str, data_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    sweep = tmp_path / "a sweep"
    overrides = [f"hydra/launcher={launcher}", "seed=1,2", "trainer.devices=2"]
    sweep_dir = f"hydra.sweep.dir={sweep}"
    done = run_script("train", "-m", *tiny(data_dir), *FAST, *overrides, sweep_dir, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = [json.loads((sweep / n / "summary.json").read_text()) for n in ("0", "1")]
    assert [t["status"] for t in summaries] == ["finished"] * 2
    assert [t["devices"] for t in summaries] == [2, 2]
    assert [t["sweep"] for t in summaries] == [sweep.name] * 2
    assert sorted(p.name for p in sweep.iterdir() if not p.name.startswith(".")) == [
        "0",
        "1",
        "multirun.yaml",
    ]


@pytest.mark.engines
def test_a_slurm_job_requests_one_gpu_per_device() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from hydra import compose as compose_all
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONF), **INITIALIZE_OPTIONS):
        cfg = compose_all(
            "train", ["hydra/launcher=slurm", "trainer.devices=4"], return_hydra_config=True
        )
    launcher = cfg.hydra.launcher
    assert (launcher.gpus_per_node, launcher.tasks_per_node, launcher.nodes) == (4, 1, 1)
    assert launcher._target_.endswith("SlurmLauncher")


def test_the_wandb_sweep_file_composes() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    chosen_values = {
        key: {
            "value": spec["value"] if "value" in spec else spec.get("values", [spec.get("min")])[0]
        }
        for key, spec in sweep["parameters"].items()
    }
    arguments = create_sweep_command_args({"args": chosen_values})["args_no_hyphens"]
    cfg = to_plain(compose(*arguments))
    assert cfg["model"]["latent_dim"] == 8
    assert cfg["test"] is False
    assert sweep["metric"] == {"name": "val/elbo", "goal": "maximize"}
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"][-1] == "${args_no_hyphens}"


def test_a_run_of_a_wandb_agent_has_the_id_that_the_agent_gives(
    data_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    overrides = ["callbacks.figures=null", "device=cpu", "trainer.max_epochs=1"]
    done = run_script(
        "train",
        *tiny(data_dir, run_dir),
        *overrides,
        WANDB_SWEEP_ID="abc123",
        WANDB_RUN_ID="named-by-agent",
        WANDB_PROJECT="of-the-sweep",
        WANDB_ENTITY="team",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["run_id"] == "named-by-agent"
    (run,) = [r["run"] for r in read_wandb_records(run_dir) if r["type"] == "run"]
    assert (run["run_id"], run["sweep_id"]) == ("named-by-agent", "abc123")
    assert (run["project"], run["entity"]) == ("of-the-sweep", "team")


@pytest.mark.engines
def test_the_dashboard_shows_logged_metrics_and_pictures(
    finished_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("wandb_workspaces")
    view_path = tmp_path / "view.json"
    done = run_script("dashboard", f"output={view_path}", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "nothing was sent" in done.stdout
    sections = json.loads(view_path.read_text())["spec"]["section"]["panelBankConfig"]["sections"]
    panels = [panel["config"] for section in sections for panel in section["panels"]]
    assert [s["name"] for s in sections][:3] == ["Comparison", "Pictures side by side", "Training"]
    columns = MetricsFile(finished_run / "metrics.csv")._columns
    for panel in panels:
        assert set(panel.get("metrics") or []) <= set(columns)
        for key in panel.get("mediaKeys") or []:
            assert (finished_run / f"{key}.png").is_file()
