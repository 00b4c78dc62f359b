"""Ranks started by torchrun, on one node and two, and by srun."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.callbacks import Callbacks
from omegaconf import OmegaConf
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from harness.command_line import hooks
from harness.command_line.hooks import TrainChecks
from harness.command_line.messages import report_errors
from harness.contract.errors import ConfigError, RunFailed
from harness.run_folder import reading
from harness.run_folder.folder import RunFolder
from harness.training import launch, ranks
from harness.training.ranks import Ranks, started_ranks
from tests.conftest import ROOT, clean_environment, run_light, run_script, tiny
from tests.tally import Promise, Survived

TRAIN = str(ROOT / "src/train.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def find_free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def run_in_parallel(commands: list[list[str]], environments: list[dict[str, str]]) -> list[Any]:
    """Run commands in parallel; return the output, errors and exit code of each."""
    started = [
        subprocess.Popen(
            command,
            env={**clean_environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        return [(*process.communicate(timeout=120), process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()


def make_overrides(data_dir: Path, run_dir: Path, *more: str) -> list[str]:
    return [*tiny(data_dir, run_dir), "device=cpu", *more]


def make_torchrun_commands(nodes: int) -> tuple[list[list[str]], list[dict[str, str]]]:
    if nodes == 1:
        return [[*TORCHRUN, "--nproc-per-node=2", TRAIN]], [{}]
    where = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    where.append(f"--master-port={find_free_port()}")
    return [[*TORCHRUN, *where, f"--node-rank={n}", TRAIN] for n in range(2)], [{}, {}]


def make_srun_commands(tasks: int = 2) -> tuple[list[list[str]], list[dict[str, str]]]:
    step = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "a job",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "MASTER_PORT": find_free_port(),
    }
    each = [{**step, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r)} for r in range(tasks)]
    return [[sys.executable, TRAIN] for _ in range(tasks)], each


LAUNCHERS = [
    pytest.param(make_torchrun_commands(1), id="torchrun"),
    pytest.param(make_torchrun_commands(2), id="torchrun on two nodes", marks=pytest.mark.engines),
    pytest.param(make_srun_commands(), id="srun", marks=pytest.mark.engines),
]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_share_one_run(
    launcher: tuple[list[list[str]], list[dict[str, str]]],
    finished_run: Path,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "runs" / "one"
    commands, environments = launcher
    commands = [[*command, *make_overrides(data_dir, run_dir)] for command in commands]
    results = run_in_parallel(commands, environments)
    assert [code for _, _, code in results] == [0] * len(results), results
    assert sum(out.count("run folder:") for out, _, _ in results) == 1
    assert sum(out.count("epoch 2/2") for out, _, _ in results) == 1
    assert [p.name for p in run_dir.parent.iterdir()] == ["one"]
    summary = json.loads((run_dir / "summary.json").read_text())
    one_device = json.loads((finished_run / "summary.json").read_text())
    assert summary["devices"] == 2
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 1
    assert (run_dir / "figures" / "label_grid.png").is_file()
    for name, value in one_device["metrics"].items():  # with 33 test images, an odd number
        assert summary["metrics"][name] == pytest.approx(value, rel=2e-6, abs=1e-6)


@pytest.mark.engines
def test_ranks_with_different_settings_do_not_train(data_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    commands, environments = make_srun_commands()
    commands = [
        [*command, *make_overrides(data_dir, run_dir, f"seed={rank}")]
        for rank, command in enumerate(commands)
    ]
    results = run_in_parallel(commands, environments)
    assert [code for _, _, code in results] == [2, 2]
    assert "rank 1 has other settings" in results[0][1]
    assert not run_dir.exists()


@pytest.mark.parametrize("silent", [True, pytest.param(False, marks=pytest.mark.engines)])
def test_a_rank_times_out_if_another_is_missing(
    silent: bool, data_dir: Path, tmp_path: Path
) -> None:
    """Without the timeout, torch would wait forever for a port that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address, port = server.getsockname()
        if not silent:
            server.close()
        rank = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(port)}
        overrides = make_overrides(data_dir, tmp_path / "run", "rank_timeout=2")
        start = time.monotonic()
        done = run_script("train", *overrides, **rank)
    assert done.returncode == 1
    # by the timeout or by torch
    assert re.search("failed: .* did not (answer|meet|connect)", done.stderr), done.stderr
    assert time.monotonic() - start < 40  # includes imports on a busy machine
    assert not (tmp_path / "run").exists()


CONTRADICTORY = [("trainer.devices=3", "has started 2"), ("-m", "-m")]


@pytest.mark.parametrize(("override", "message"), CONTRADICTORY)
def test_settings_that_contradict_the_ranks_are_rejected(
    override: str, message: str, tmp_path: Path
) -> None:
    rank = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    done = run_light("train", override, f"hydra.run.dir={tmp_path / 'run'}", **rank)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_launcher_of_the_ranks_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_ranks() is None
    with monkeypatch.context() as torchrun:
        for key, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
            torchrun.setenv(key, value)
        assert started_ranks() == Ranks(3, 4, 2, "torchrun")
    # a batch script without srun is one process
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert started_ranks() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert started_ranks() == Ranks(1, 4, 2, "srun")


def parse_variables(text: str) -> dict[str, str]:
    return dict(word.split("=") for word in text.split())


ONE_RANK = [
    "RANK=0 WORLD_SIZE=1",
    "RANK=0",
    "WORLD_SIZE=1",
    "RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=1",
]


@pytest.mark.parametrize("text", ONE_RANK)
def test_a_world_size_of_one_is_a_plain_run(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in parse_variables(text).items():
        monkeypatch.setenv(name, value)
    assert started_ranks() is None
    assert ranks.is_rank_zero()
    assert not {"RANK", "WORLD_SIZE"} & launch.child_environment().keys()


INVALID_VARIABLES = [
    ("RANK=x WORLD_SIZE=2", "RANK=x: must be an integer"),
    ("RANK=5 WORLD_SIZE=2", "RANK=5: must be below the number of processes, 2"),
    ("RANK=-1 WORLD_SIZE=2", "RANK=-1: must be an integer"),
    ("RANK=1", "WORLD_SIZE: is not set"),
    ("WORLD_SIZE=2", "RANK: is not set"),
    ("RANK=0 WORLD_SIZE=0", "RANK=0: must be below the number of processes, 0"),
    ("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=0", "multiple of the 0"),
    ("RANK=0 WORLD_SIZE=3 LOCAL_WORLD_SIZE=2", "multiple of the 2"),
    ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=2", "LOCAL_RANK=2: must be below"),
    ("SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID: is not set"),
    ("SLURM_STEP_NUM_TASKS=a", "SLURM_STEP_NUM_TASKS=a: must be an integer"),
]


@pytest.mark.fault(Promise.INPUT, "rank variables that are missing or contradictory")
def test_inconsistent_rank_variables_are_rejected(
    monkeypatch: pytest.MonkeyPatch, survived: Survived, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, message in INVALID_VARIABLES:
        with monkeypatch.context() as patched:
            for name, value in parse_variables(text).items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as exited, report_errors():
                started_ranks()
            assert exited.value.code == 2
            assert message in capsys.readouterr().err
        survived(1)


def test_a_missing_master_address_or_port_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in parse_variables("RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="MASTER_PORT: is not set, but WORLD_SIZE=2 is"):
        ranks.connect_ranks(tmp_path, "", 1)


@pytest.mark.fault(Promise.INPUT, "an exception in the checks before a run")
@pytest.mark.parametrize("name", ["on_run_start", "on_multirun_start", "on_multirun_end"])
def test_an_error_in_a_hook_ends_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra itself would only warn and continue."""
    hydra = {"overrides": {"task": []}, "job": {"config_name": "train"}}
    config = OmegaConf.create({"hydra": hydra})  # without the keys that the hooks read

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(hooks, "started_ranks", fail)
    monkeypatch.setattr("harness.sweeps.jobs.is_search", fail)
    OmegaConf.update(config, "rerun", None, force_add=True)
    OmegaConf.update(config, "hydra.sweeper", {"_target_": "x"}, force_add=True)
    callbacks = Callbacks()
    callbacks.callbacks = [TrainChecks()]
    with pytest.raises(SystemExit) as exited:
        getattr(callbacks, name)(config=config)
    assert exited.value.code == 1
    assert capsys.readouterr().err.startswith("failed: ZeroDivisionError: a bug")


FREES_TENSORS_WHILE_IT_EXITS = """
import os
import sys
import time
import types
import torch
import torch.distributed as dist
from harness.training import launch

class FreedSlowly:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)

def train_run(folder):
    for _ in range(50):
        dist.all_gather([torch.empty(1), torch.empty(1)], torch.ones(1), async_op=True)

sys.modules["harness.training.run"] = types.SimpleNamespace(train_run=train_run)
children = []
for number in range(6):
    child = os.fork()
    if not child:
        break
    children.append(child)
if children[5:]:
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
else:  # a rank, which exits as an interpreter does
    kept = FreedSlowly()
    pair, rank = divmod(number, 2)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}{pair}", rank=rank,
                            world_size=2)
    launch._run_spawned_rank(None)
"""


def test_the_exit_of_a_rank_is_not_aborted(tmp_path: Path) -> None:
    """Threads of gloo that free tensors while the interpreter exits abort the process.

    Without ``disconnect``, half of these six ranks are aborted.
    """
    command = [sys.executable, "-c", FREES_TENSORS_WHILE_IT_EXITS, str(tmp_path / "pair")]
    ((output, errors, code),) = run_in_parallel([command], [{"PYTHONPATH": str(ROOT / "src")}])
    assert (output.split(), errors, code) == (["0"] * 6, "", 0)


@pytest.mark.parametrize("killed", [False, True])
def test_the_error_file_of_a_rank_is_complete_or_absent(
    killed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The launcher reads the file at the end, even if a rank was killed while writing it."""
    error_file = tmp_path / "error.json"
    original_dump = json.dump

    def dump(data: Any, file: Any) -> None:
        if killed:
            file.write("{")
            file.flush()
            raise SystemExit
        original_dump(data, file)

    def fail(run_dir: Path) -> None:
        raise ValueError("in the run")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file))
    monkeypatch.setattr(json, "dump", dump)
    monkeypatch.setattr("harness.training.run.train_run", fail)
    with pytest.raises(SystemExit if killed else ValueError):
        launch._run_spawned_rank(RunFolder(tmp_path))
    assert error_file.exists() is not killed
    if not killed:
        assert json.loads(error_file.read_text())["message"]["message"] == "ValueError: in the run"


@pytest.mark.parametrize("fields", [{"error": "ValueError: in rank 1", "rank": 1}, {}])
def test_a_failure_is_reported_if_another_rank_is_interrupted_later(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    """A rank that is stopped because of the failure may overwrite the summary of the failed one."""
    reading.update_summary(tmp_path, status="interrupted", **fields)
    error = launch.exception_for(
        RunFolder(tmp_path), 1, message=f"RunFailed: {tmp_path}: ValueError: in rank 1"
    )
    assert str(error).endswith("ValueError: in rank 1")
    summary = reading.read_summary(tmp_path)
    assert summary["status"] == "failed"
    assert summary["error"] == "ValueError: in rank 1"


@pytest.mark.parametrize("reported", [True, False])
def test_an_error_is_reported_if_the_exit_of_its_rank_is_aborted(
    reported: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error_file = tmp_path / "error.json"
    if reported:
        text = f"RunFailed: {tmp_path}: ValueError: in rank 1"
        error_file.write_text(
            json.dumps({"message": {"message": text, "extraInfo": {"timestamp": 1}}})
        )

    def fail(*arguments: Any) -> None:
        failure = ProcessFailure(local_rank=1, pid=1, exitcode=-6, error_file=str(error_file))
        raise ChildFailedError("ranks", {1: failure})

    monkeypatch.setattr(launch, "run_ranks", fail)
    reading.update_summary(tmp_path, status="running")
    with pytest.raises(RunFailed, match="ValueError: in rank 1" if reported else "rank 1: killed"):
        launch._launch_ranks(RunFolder(tmp_path), 2)
    assert reading.read_summary(tmp_path)["status"] == "failed"


def test_a_resume_on_several_nodes_needs_a_launcher(tmp_path: Path) -> None:
    """Without a launcher, the run would wait for the other nodes and could not be stopped."""
    folder = RunFolder(tmp_path)
    trainer = {"accelerator": "cpu", "devices": 1, "num_nodes": 3}
    folder.config = OmegaConf.create({"trainer": trainer})
    with pytest.raises(ConfigError, match=r"trainer.num_nodes=3: start it on every node"):
        launch.launch(folder)
