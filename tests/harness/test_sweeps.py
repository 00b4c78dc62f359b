"""Sweeps: each job has its folder and process and does not depend on the others."""

import contextlib
import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.config import machine
from harness.config.machine import num_cpus
from harness.contract import files
from harness.contract.errors import ConfigError
from harness.run_folder import reading
from harness.run_folder.folder import RunFolder
from harness.sweeps import jobs
from tests.conftest import StartedScript, run_fork, run_light, run_script, tiny, wait_for_end
from tests.tally import Promise

FAST = ["callbacks.figures=null", "device=cpu"]
NETWORK = """
from pathlib import Path
from cvae.networks import MLP
class Fragile(MLP):
    def decode(self, z, y):
        if z.shape[1] == 3 and not Path(__file__).with_name("mended").exists():
            raise ZeroDivisionError("as planned")
        return super().decode(z, y)
"""


def read_summary(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "summary.json").read_text()))


def wait_for_processes(folder: Path) -> list[str]:
    """Wait for processes with this folder on their command line; return those that remain."""
    command = ["pgrep", "-f", str(folder)]
    run = partial(subprocess.run, command, capture_output=True, text=True, check=False)
    return wait_for_end(lambda: run().stdout.split())


def list_folders(sweep: Path) -> list[str]:
    return sorted(p.name for p in sweep.iterdir() if p.is_dir())


@pytest.fixture(scope="module")
def sweep_of_two(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of two jobs on two devices each."""
    sweep = tmp_path_factory.mktemp("sweeps") / "two by two"
    overrides = ["model=autoencoder,vae", "trainer.devices=2", f"hydra.sweep.dir={sweep}"]
    done = run_script("train", "-m", *tiny(data_dir), "device=cpu", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("val/elbo -") > 0
    return sweep


def test_two_jobs_on_two_devices_are_two_runs(sweep_of_two: Path) -> None:
    assert list_folders(sweep_of_two) == ["0", "1"]
    summaries = [read_summary(sweep_of_two / name) for name in list_folders(sweep_of_two)]
    assert [t["status"] for t in summaries] == ["finished"] * 2
    assert [t["devices"] for t in summaries] == [2, 2]
    assert [t["swept"] for t in summaries] == [["model=autoencoder"], ["model=vae"]]
    assert [t["sweep"] for t in summaries] == [sweep_of_two.name] * 2
    assert len({t["run_id"] for t in summaries}) == 2


def test_jobs_with_different_models_have_different_monitors(sweep_of_two: Path) -> None:
    autoencoder, vae = (read_summary(sweep_of_two / name) for name in ("0", "1"))
    assert (autoencoder["monitor"], vae["monitor"]) == ("val/reconstruction", "val/elbo")
    assert autoencoder["metrics"].keys() == {"val/reconstruction", "test/reconstruction"}
    assert (sweep_of_two / "0" / "figures" / "samples.png").is_file()


def test_each_job_is_a_wandb_run_in_the_group_of_its_sweep(sweep_of_two: Path) -> None:
    for name in list_folders(sweep_of_two):
        (offline,) = (sweep_of_two / name / "wandb").glob("offline-run-*")
        assert offline.name.endswith(read_summary(sweep_of_two / name)["run_id"])
        tracked = reading.load_config(sweep_of_two / name).logger.wandb
        assert (tracked.group, tracked.job_type) == (sweep_of_two.name, "train")


def test_a_failed_job_is_reported_and_the_others_continue(data_dir: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    (tmp_path / "fragile.py").write_text(NETWORK)
    overrides = ["model.network._target_=fragile.Fragile", "model.latent_dim=3,2", "logger=csv"]
    done = run_script(
        "train",
        "-m",
        *tiny(data_dir),
        *FAST,
        *overrides,
        f"hydra.sweep.dir={sweep}",
        f"hydra.launcher.num_jobs={min(2, num_cpus())}",
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"run {sweep / '0'}: ZeroDivisionError: as planned" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "as planned" in (sweep / "0" / jobs.TERMINAL_LOG).read_text()
    assert [read_summary(sweep / n)["status"] for n in ("0", "1")] == ["failed", "finished"]
    assert done.stdout.rstrip().endswith(f"rerun={sweep} trust=fragile")

    other = (sweep / "1" / "summary.json").read_bytes()
    (tmp_path / "mended").touch()
    done = run_script("train", f"rerun={sweep}", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "trust=fragile" in done.stderr
    with RunFolder(sweep / "0").lock():
        done = run_script("train", f"rerun={sweep}", "trust=fragile", PYTHONPATH=str(tmp_path))
    assert "skipped, another process is training it" in done.stdout
    assert read_summary(sweep / "0")["error"] == "ZeroDivisionError: as planned"
    done = run_script("train", f"rerun={sweep}", "trust=fragile", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 runs are finished, 1 to train" in done.stdout
    assert read_summary(sweep / "0")["status"] == "finished"
    assert "error" not in read_summary(sweep / "0")
    assert (sweep / "1" / "summary.json").read_bytes() == other
    assert list_folders(sweep) == ["0", "1"]

    done = run_script("train", f"rerun={sweep}", "seed=3")
    assert done.returncode == 2
    assert "seed: rerun= keeps the settings of the sweep" in done.stderr

    done = run_script("train", f"rerun={sweep}")
    assert done.returncode == 0
    assert "2 of 2 runs are finished, 0 to train" in done.stdout


@pytest.mark.fault(Promise.STOPS, "signals to a sweep")
@pytest.mark.parametrize(
    ("number", "jobs", "devices"),
    [
        (signal.SIGINT, 1, 2),
        pytest.param(signal.SIGTERM, 2, 1, marks=pytest.mark.engines),
        pytest.param(signal.SIGKILL, 1, 2, marks=pytest.mark.engines),
        pytest.param(signal.SIGKILL, 2, 1, marks=pytest.mark.engines),
    ],
)
def test_a_stopped_sweep_leaves_no_process(
    number: signal.Signals, jobs: int, devices: int, data_dir: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    overrides = [
        "seed=1,2,3",
        "trainer.max_epochs=100000",
        "logger=csv",
        f"hydra.sweep.dir={sweep}",
    ]
    overrides += [f"hydra.launcher.num_jobs={jobs}", f"trainer.devices={devices}"]
    process = StartedScript("train", "-m", *tiny(data_dir), *FAST, *overrides)
    try:
        wanted = [sweep / str(i) / "checkpoints" for i in range(jobs)]
        for _ in range(1200):
            if all(folder.is_dir() for folder in wanted):
                break
            time.sleep(0.05)
        process.send_signal(number)
        code = process.wait(timeout=20)
    finally:
        process.kill()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert wait_for_end(process.list_processes) == []
    assert [read_summary(sweep / str(i))["status"] for i in range(3)] == [
        "interrupted" if i < jobs else "pending" for i in range(3)
    ]


INVALID_SWEEPS = [
    (["hydra.launcher.num_jobs=1000"], "hydra.launcher.num_jobs=1000"),
    (["hydra.launcher.num_jobs=0"], "hydra.launcher.num_jobs=0"),
    (["hydra.sweep.subdir=same"], "two jobs"),
    (["model.latent_dim=interval(1,2)"], "interval"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), INVALID_SWEEPS, ids=[t[0] for t, _ in INVALID_SWEEPS]
)
def test_invalid_sweeps_are_rejected(overrides: list[str], message: str, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    done = run_light("train", "-m", "seed=1,2", *overrides, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not sweep.exists()


def test_a_sweep_rejects_a_folder_with_runs(sweep_of_two: Path) -> None:
    before = (sweep_of_two / "0" / "config.yaml").read_bytes()
    done = run_light("train", "-m", "seed=1,2", f"hydra.sweep.dir={sweep_of_two}")
    assert done.returncode == 2
    assert "rerun=" in done.stderr
    assert (sweep_of_two / "0" / "config.yaml").read_bytes() == before


def test_rerun_rejects_a_folder_without_runs(tmp_path: Path) -> None:
    done = run_light("train", f"rerun={tmp_path}")
    assert done.returncode == 2
    assert "no runs" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    parts = "data: {}\nmodel: {}\noptimizer: {}\n"
    files.write_text(tmp_path / reading.CONFIG, parts + "trainer: {accelerator: cpu, devices: 1}\n")
    script = tmp_path / "launches.py"
    script.write_text("import sys\nfrom harness.training.launch import *\nrun_process(sys.argv[1])")
    with RunFolder(tmp_path).lock():
        done = run_fork(script, [str(tmp_path)])
    assert done.returncode == 2
    assert "another process trains this run" in done.stderr
    with RunFolder(tmp_path).lock():  # the lock is released
        pass


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_of_the_machine_are_disjoint(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8,9")
    parts = machine.divide_machine(count)
    cores = [core for part in parts for core in part.cores]
    gpus = [gpu for part in parts for gpu in part.gpus]
    assert sorted(cores) == list(range(6))
    assert sorted(gpus) == ["4", "5", "6", "7", "8", "9"]


def test_jobs_share_cores_and_gpus_if_there_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    parts = machine.divide_machine(3)
    assert [part.gpus for part in parts] == [["7"]] * 3
    assert [part.cores for part in parts] == [[3], [5], [3]]


def test_swept_overrides_are_those_that_differ_between_jobs() -> None:
    typed = ["model=vae", "seed=1,2"]
    assert jobs.swept_overrides(["model=vae", "seed=1", "test=false"], typed) == ["seed=1"]


@pytest.mark.long
@pytest.mark.parametrize("part", range(5))
def test_sweeps_leave_no_processes_or_files(part: int, data_dir: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for i in range(4):
        overrides = [
            "seed=1,2",
            f"trainer.devices={1 + i % 2}",
            f"hydra.sweep.dir={tmp_path / str(i)}",
        ]
        done = run_script("train", "-m", *tiny(data_dir), *FAST, *overrides, TMPDIR=str(scratch))
        assert done.returncode == 0, done.stdout + done.stderr
    assert wait_for_processes(tmp_path) == []
    assert list(scratch.iterdir()) == []


COMPOSES = """
import sys
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from harness.sweeps import jobs
import train

composed, compose = [], ConfigLoaderImpl.load_sweep_config

def counted(self, *arguments, **named):
    composed.append(str(named.get("sweep_overrides", arguments[1:])))
    return compose(self, *arguments, **named)

ConfigLoaderImpl.load_sweep_config = counted
jobs.run_jobs = lambda folders, *_: [0.0 for _ in folders]  # without training
jobs.print_report = lambda *_: True
sys.argv = ["train.py", "-m", "seed=1,2", *sys.argv[1:]]
train.main()
print(len(composed), len(set(composed)))
"""


def test_each_job_of_a_sweep_is_composed_once(data_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "composes.py"
    script.write_text(COMPOSES)
    overrides = [*tiny(data_dir), f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = run_fork(script, overrides, libraries=("hydra",))
    assert done.stdout.split() == ["2", "2"], done.stdout + done.stderr
    assert (tmp_path / "sweep" / "1" / ".hydra" / "overrides.yaml").is_file()


@pytest.mark.parametrize(
    ("accelerator", "has_gpu", "is_valid"),
    [("cpu", True, False), ("auto", False, False), ("auto", True, True), ("gpu", True, True)],
)
def test_jobs_on_cpus_need_a_core_each(
    accelerator: str, has_gpu: bool, is_valid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "num_cpus", lambda: 2)
    monkeypatch.setattr(jobs, "has_no_gpu", lambda: not has_gpu)
    cfg = {"trainer": {"accelerator": accelerator, "devices": 1}}
    with contextlib.nullcontext() if is_valid else pytest.raises(ConfigError, match="num_jobs=3"):
        jobs.check_num_parallel(cfg, 3)
