"""A forked job equals one in a fresh interpreter, and imports no large library."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.machine import divide_machine, num_cpus
from harness.run_folder import reading
from harness.sweeps import jobs
from harness.sweeps.fork_server import ForkServer
from tests.conftest import ROOT, clean_environment, run_fork, run_fresh, tiny
from tests.harness.test_sweeps import wait_for_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks only on Linux")

ARCHIVE_SCRIPT = """
import sys
from harness.sweeps import jobs
import train

jobs.run_jobs = lambda folders, *_: [0.0 for _ in folders]
jobs.print_report = lambda *_: True
train.main()
"""
# records the state of its process, then changes state that another job must not see
PROBE = """
import json, logging, os, random, signal, sys, warnings
import lightning, numpy, torch
from wandb.sdk.artifacts.artifact import Artifact
from wandb.sdk.data_types._private import MEDIA_TMP

class Probe(lightning.Callback):
    def __init__(self, path):
        self.path = path
        self.state = {
            "random": [random.random() != float(numpy.random.rand())],
            "signals": [str(signal.getsignal(n)) for n in (signal.SIGHUP, signal.SIGPIPE)],
        }
    def on_train_start(self, trainer, module):
        config = torch.__config__.parallel_info().splitlines()
        found = {
            "leader": os.getpgrp() == os.getpid(),
            "argv": sys.argv[:1],
            "cwd": os.getcwd(),
            "path": sys.path[1:],
            "cores": sorted(os.sched_getaffinity(0)),
            "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
            "parallel": [line for line in config if "hread" in line],
            "drawn": torch.rand(1, generator=torch.Generator()).item(),
            "filters": [str(f[:4]) for f in warnings.filters],
            "handlers": [type(h).__name__ for h in logging.getLogger().handlers],
            "input": os.readlink("/proc/self/fd/0"),
            "environment": dict(os.environ),
            "wandb": [os.path.isdir(folder.name) for folder in (MEDIA_TMP, Artifact._TMP_DIR)],
            "marked": hasattr(torch, "marked") or "MARKED" in os.environ,
            "rank zero": lightning.pytorch.utilities.rank_zero_only.rank,
        }
        open(self.path, "w").write(json.dumps({**self.state, **found}))
        torch.marked = os.environ["MARKED"] = "1"
"""
SHORT = ("trainer.max_steps=3", "callbacks.figures=null", "device=cpu", "logger=csv", "test=false")


def archive_sweep(sweep: Path, data_dir: Path, *seeds: int) -> list[Path]:
    """Archive a sweep of jobs with a probe, without training them."""
    script = sweep.parent / "archives.py"
    script.write_text(ARCHIVE_SCRIPT)
    (sweep.parent / "probe.py").write_text(PROBE)
    probe = ["+callbacks.probe._target_=probe.Probe"]
    probe += ["+callbacks.probe.path=${run_dir}/probe.json", f"hydra.sweep.dir={sweep}"]
    paths = os.pathsep.join([str(ROOT / "src"), str(sweep.parent)])
    sweeps = f"seed={','.join(map(str, seeds))}"
    overrides = ["-m", sweeps, *tiny(data_dir), *SHORT, *probe]
    done = run_fork(script, overrides, {"PYTHONPATH": paths}, libraries=("hydra",))
    assert done.returncode == 0, done.stdout + done.stderr
    return [sweep / str(number) for number in range(len(seeds))]


@pytest.fixture
def command_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give jobs the environment that they have when a command starts them."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(ROOT)


def read_probe(run_dir: Path) -> dict[str, Any]:
    assert reading.read_summary(run_dir)["status"] == "finished", reading.read_summary(run_dir)
    state = dict(json.loads((run_dir / "probe.json").read_text()))
    # the server sets these, and Lightning sets the seed, which differs between jobs
    added = ("TORCH_CPP_LOG_LEVEL", "WANDB_SILENT", "WANDB_ERROR_REPORTING", "PL_GLOBAL_SEED")
    for name in added:
        state["environment"].pop(name, None)
    return state


def read_metrics(run_dir: Path) -> list[list[str]]:
    rows = [row.split(",") for row in (run_dir / "metrics.csv").read_text().splitlines()]
    speed = [number for number, name in enumerate(rows[0]) if "per_second" in name]
    return [[cell for i, cell in enumerate(row) if i not in speed] for row in rows]


CASES = [
    pytest.param(1, {}, id="all cores"),
    pytest.param(2, {}, id="one core each", marks=pytest.mark.engines),
    pytest.param(1, {"OMP_NUM_THREADS": "1", "SET": "x"}, id="env_set", marks=pytest.mark.engines),
]


@pytest.mark.usefixtures("command_environment")
@pytest.mark.parametrize(("num_parallel", "environment"), CASES)
def test_a_forked_job_equals_one_in_a_fresh_interpreter(
    num_parallel: int,
    environment: Mapping[str, str],
    data_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A job also survives its server, and the jobs after it start without the server."""
    if num_cpus() < 2:
        pytest.skip("needs two cores")
    *forked, survivor = archive_sweep(tmp_path / "forked", data_dir, 1, 2, 3)
    fresh = archive_sweep(tmp_path / "fresh", data_dir, 1, 2)[:num_parallel]
    shares = divide_machine(num_parallel)
    server = ForkServer(tmp_path, num_parallel, environment)
    try:
        jobs.run_jobs(forked, num_parallel, environment, server)
        job = server.start(survivor, shares[0])
        assert job is not None  # the server has forked all jobs
        assert os.getpgid(job.pid) == job.pid
        server._process.kill()
        server._process.wait()
        assert job.wait(60) == 0
        assert reading.read_summary(survivor)["status"] == "finished"
        assert "the fork server has ended" not in capfd.readouterr().err
        jobs.run_jobs(fresh, num_parallel, environment, server)
        assert "the fork server has ended" in capfd.readouterr().err
    finally:
        server.close()
    expected = read_probe(fresh[0])
    for number, run_dir in enumerate(forked):
        share = shares[number % num_parallel]
        cores = {"cores": share.cores} if num_parallel > 1 else {}
        assert read_probe(run_dir) == {**expected, **cores}
    assert expected["threads"][0] == (1 if environment else len(shares[0].cores))
    for one, other in zip(forked, fresh, strict=False):
        assert read_metrics(one) == read_metrics(other)
        weights = [
            torch.load(folder / reading.LAST, weights_only=True)["state_dict"]
            for folder in (one, other)
        ]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.engines)])
def test_the_jobs_of_a_sweep_import_no_large_library(
    devices: int, data_dir: Path, tmp_path: Path
) -> None:
    more = ["seed=1,2", f"trainer.devices={devices}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = run_fresh(
        ROOT / "src/train.py",
        ["-m", *tiny(data_dir), *SHORT, *more],
        PYTHONPROFILEIMPORTTIME="1",  # each process prints the modules that it imports
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    imported = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    for library in ("torch", "lightning", "torch._dynamo", "wandb"):
        assert imported.count(library) == 1, library
    assert imported.count("cvae.models") == 2 * devices
    assert wait_for_processes(tmp_path) == []
    left = {path.name for path in tmp_path.iterdir()} - {"torchinductor_root"}  # made by torch
    assert left == {"sweep"}


def test_no_server_starts_with_pinned_threads_or_outside_linux(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    share = divide_machine(1)[0]
    assert ForkServer(tmp_path, 2, {"OMP_PROC_BIND": "true"}).start(tmp_path, share) is None
    monkeypatch.setattr(sys, "platform", "darwin")
    server = ForkServer(tmp_path)
    assert server.start(tmp_path, share) is None
    server.close()


FORKS = """
import os, sys, threading, time
from harness.training.forks import Fork, can_fork, fork

def run(code):
    process = Fork(fork(lambda: exec(code)))
    print(process.wait())
    process.kill()

print(can_fork())
for code in sys.argv[1:]:
    run(code)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(can_fork())
"""
EXIT_CODES = {
    "pass": 0,
    "sys.exit()": 0,
    "sys.exit(3)": 3,
    "sys.exit('text')": 1,
    "1 / 0": 1,
    "os.kill(os.getpid(), 9)": -9,
}


def test_a_fork_has_the_exit_code_of_an_interpreter() -> None:
    """A process with a second thread does not fork."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *EXIT_CODES],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", *map(str, EXIT_CODES.values()), "False"], done.stderr
