"""Resuming runs that were killed, stopped, damaged or changed."""

import contextlib
import csv
import functools
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import hydra
import pytest
import torch

from harness.config import resume_overrides
from harness.config.hydra_versions import INITIALIZE_OPTIONS
from harness.contract.errors import ConfigError, Stopped
from harness.run_folder import reading, resuming
from harness.run_folder.folder import RunFolder
from harness.run_folder.metrics_file import MetricsFile
from harness.training.outcome import raise_hidden_stop
from harness.training.processes import check_shared_memory
from tests.conftest import (
    ROOT,
    StartedScript,
    clean_environment,
    run_fork,
    run_script,
    tiny,
    wait_for_end,
)
from tests.project.test_conf import compose
from tests.tally import Promise, Survived

FAST = ["callbacks.figures=null", "device=cpu", "logger=csv", "data.batch_size=16"]
BUDGET = ["trainer.max_epochs=4", "callbacks.last.every_n_steps=3"]
SAVE = "harness.training.resume:LastCheckpoint._save"
MODULE = "cvae.lightning_module:VAEModule"
KILLS_AROUND_SAVES = [  # kills around saves, and at the ends of validations, epochs and training
    [SAVE, 2, "before"],
    [SAVE, 3, "after"],
    [f"{MODULE}.training_step", 5, "after"],
    [f"{MODULE}.on_validation_epoch_end", 1, "before"],
    [f"{MODULE}.on_validation_epoch_end", 1, "after"],
    [f"{MODULE}.on_train_epoch_end", 1, "after"],
    ["os:replace", 5, "before"],
    ["os:replace", 6, "after"],
    ["harness.training.resume:LastCheckpoint.on_train_end", 1, "after"],
    ["harness.training.run:_record_result", 1, "before"],
]
NOT_COMPARED = ("seconds", "_path", "dirpath", "best_k_models", "provenance", "loops", "config")


def archive_run(data_dir: Path, run_dir: Path, *overrides: str) -> Path:
    """Return a run folder with a config, ready to start."""
    cfg = compose(*tiny(data_dir), *FAST, *BUDGET, *overrides)
    RunFolder.archive(cfg, run_dir)
    return run_dir


class Attempts(NamedTuple):
    """Exit codes of the ranks in each attempt, and the seconds of the last attempt."""

    exit_codes: list[list[int]]
    seconds: float


def train_with_kills(run_dir: Path, plan: list[Any], num_ranks: int = 1) -> Attempts:
    """Train with the planned kills, then to the end."""
    done = run_fork(
        ROOT / "tests" / "kills.py",
        [str(run_dir), json.dumps(plan), str(num_ranks)],
        timeout=600,
        forks=False,
        first=ROOT / "src",  # else tests/harness would hide the package harness
    )
    log = run_dir / "attempts.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.is_file() else "")
    return Attempts(**json.loads(done.stdout))


def iterate_leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield from iterate_leaves(child, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from iterate_leaves(child, f"{path}[{i}]")
    else:
        yield path, node


def digest_state(run_dir: Path, name: str) -> dict[str, str]:
    """Return digests of weights, averages, optimizer, schedule and metrics of a checkpoint."""
    checkpoint = torch.load(run_dir / "checkpoints" / name, weights_only=True)
    return {
        path: hashlib.sha256(leaf.contiguous().numpy().tobytes()).hexdigest()
        if isinstance(leaf, torch.Tensor)
        else repr(leaf)
        for path, leaf in iterate_leaves(checkpoint)
        if not any(part in path for part in NOT_COMPARED)
    }


def read_metrics(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without the columns of throughput."""
    with (run_dir / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if "per_second" not in k} for row in csv.DictReader(file)
        ]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        assert digest_state(one, name) == digest_state(other, name)
    assert read_metrics(one) == read_metrics(other)
    for key in ("metrics", "steps", "epochs", "images_seen", "objective"):
        assert read_summary(one)[key] == read_summary(other)[key]


def read_summary(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "summary.json").read_text()))


@pytest.fixture(scope="module")
def uninterrupted(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = archive_run(data_dir, tmp_path_factory.mktemp("resume") / "uninterrupted")
    assert train_with_kills(run_dir, []).exit_codes == [[0]]
    return run_dir


@pytest.mark.fault(Promise.EXACT, "SIGKILL around saves and ends of epochs")
def test_a_run_killed_ten_times_matches_an_uninterrupted_run(
    uninterrupted: Path, data_dir: Path, tmp_path: Path, survived: Survived
) -> None:
    run_dir = archive_run(data_dir, tmp_path / "run")
    assert train_with_kills(run_dir, KILLS_AROUND_SAVES).exit_codes == [[-9]] * 10 + [[0]]
    assert_same_run(uninterrupted, run_dir)
    steps = [entry["step"] for entry in read_summary(run_dir)["resumed"]]
    assert steps == sorted(steps)
    assert len(list((run_dir / "checkpoints").iterdir())) == 3  # best, last and last-previous
    survived(len(KILLS_AROUND_SAVES))


LAST = "harness.training.resume:LastCheckpoint"
TRAINER = "lightning.pytorch.trainer.trainer:Trainer"
STOP_POINTS = [  # from building the objects to the end of the test
    ["harness.training.run:build_parts", 1, "before"],
    [f"{TRAINER}._run_stage", 1, "before"],
    [f"{LAST}.on_train_start", 1, "after"],
    [f"{MODULE}.on_validation_epoch_end", 2, "before"],
    [f"{LAST}.on_train_end", 1, "before"],
    [f"{TRAINER}._run_stage", 2, "before"],
    ["harness.training.run:_record_result", 1, "before"],
]


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.fault(
    Promise.STOPS, "SIGTERM to one rank, at points from its start to the end of its test"
)
def test_sigterm_stops_a_rank_at_any_point(
    num_ranks: int, data_dir: Path, tmp_path: Path, survived: Survived
) -> None:
    """The rank exits with 143, and the resumed run matches an uninterrupted run."""
    settings = f"trainer.devices={num_ranks}"
    uninterrupted = archive_run(data_dir, tmp_path / "uninterrupted", settings)
    assert train_with_kills(uninterrupted, [], num_ranks).exit_codes == [[0] * num_ranks]
    plan = [[*where, "SIGTERM", i % num_ranks] for i, where in enumerate(STOP_POINTS)]
    run_dir = archive_run(data_dir, tmp_path / "run", settings)
    *exit_codes, last = train_with_kills(run_dir, plan, num_ranks).exit_codes
    assert [codes[i % num_ranks] for i, codes in enumerate(exit_codes)] == [143] * len(STOP_POINTS)
    assert last == [0] * num_ranks
    assert_same_run(uninterrupted, run_dir)
    survived(len(exit_codes))


class Setting(NamedTuple):
    """Settings of a run that is repeatedly stopped by signals."""

    override: str
    num_ranks: int = 1  # started as torchrun starts them
    signals: tuple[str, ...] = ("SIGKILL",)
    # share of the uninterrupted duration within which the signal is sent
    signal_window: float = 0.6


def make_fault_params(fault: str, setting: Setting, count: int) -> list[Any]:
    marks = [pytest.mark.long, pytest.mark.fault(Promise.EXACT, fault)]
    return [pytest.param(setting, n, marks=marks, id=f"{fault}-{n}") for n in range(count)]


@pytest.fixture(scope="module")
def train_uninterrupted(
    data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Setting], tuple[Path, float]]:
    """Return a function that trains without kills and returns the run folder and its seconds."""

    @functools.cache
    def train_setting(setting: Setting) -> tuple[Path, float]:
        run_dir = archive_run(data_dir, tmp_path_factory.mktemp("whole") / "run", setting.override)
        attempts = train_with_kills(run_dir, [], setting.num_ranks)
        assert attempts.exit_codes == [[0] * setting.num_ranks]
        return run_dir, attempts.seconds

    return train_setting


def test_a_stop_that_a_later_error_hides_is_raised() -> None:
    def stop_and_fail() -> None:
        try:
            raise Stopped(signal.SIGUSR1)
        finally:
            raise RuntimeError("in a teardown")

    with pytest.raises(Stopped), raise_hidden_stop():
        stop_and_fail()
    with pytest.raises(RuntimeError, match="unrelated"), raise_hidden_stop():
        raise RuntimeError("unrelated")


@pytest.mark.parametrize(
    ("setting", "number"),
    [
        *make_fault_params("SIGKILL at random times", Setting("trainer.devices=1"), 14),
        *make_fault_params(
            "SIGKILL at random times with data workers", Setting("data.num_workers=2"), 3
        ),
        *make_fault_params(
            "SIGKILL at random times with gradient accumulation",
            Setting("trainer.accumulate_grad_batches=2"),
            3,
        ),
        *make_fault_params(
            "SIGKILL at random times to one of two ranks", Setting("trainer.devices=2", 2), 8
        ),
        *make_fault_params(
            "SIGKILL at random times to the parent of two ranks", Setting("trainer.devices=2"), 2
        ),
        *make_fault_params(
            "SIGKILL, SIGTERM, SIGINT or SIGUSR1 at random times",
            Setting("trainer.devices=1", 1, ("SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1")),
            4,
        ),
        *make_fault_params(
            "SIGKILL or SIGTERM at random times to one of two ranks",
            Setting("trainer.devices=2", 2, ("SIGKILL", "SIGTERM")),
            3,
        ),
    ],
)
def test_randomly_killed_runs_match_an_uninterrupted_run(
    setting: Setting,
    number: int,
    train_uninterrupted: Callable[[Setting], tuple[Path, float]],
    data_dir: Path,
    tmp_path: Path,
    faults_seed: int,
    survived: Survived,
) -> None:
    uninterrupted, seconds = train_uninterrupted(setting)
    rng = random.Random(f"{setting} {number} {faults_seed}")
    plan: list[dict[str, Any]] = [
        {
            "after": rng.uniform(0.05, setting.signal_window * seconds),
            "signal": rng.choice(setting.signals),
            "rank": rng.randrange(setting.num_ranks),
        }
        for _ in range(8)
    ]
    run_dir = archive_run(data_dir, tmp_path / "run", setting.override)
    exit_codes = train_with_kills(run_dir, plan, setting.num_ranks).exit_codes
    for end, codes in zip(plan, exit_codes[:-1], strict=False):
        number = getattr(signal, str(end["signal"]))  # -number if the handler is not installed yet
        assert codes[int(end["rank"])] in (-number, 128 + number)
    assert exit_codes[-1] == [0] * setting.num_ranks
    assert_same_run(uninterrupted, run_dir)
    survived(len(exit_codes) - 1)


# stop signals


def wait_for_rows(run_dir: Path, count: int) -> None:
    for _ in range(2400):
        if (run_dir / "metrics.csv").is_file() and len(read_metrics(run_dir)) > count:
            return
        time.sleep(0.05)
    raise AssertionError("no rows")


def find_ranks(process: StartedScript) -> list[int]:
    """Return the process ids of the ranks of a run: its children with a group of their own."""
    entries = process.list_processes()
    return sorted(e.pid for e in entries if e.parent == process.pid and e.group == e.pid)


STOPS = [
    (1, signal.SIGTERM, "parent"),
    pytest.param(1, signal.SIGUSR1, "parent", marks=pytest.mark.engines),
    pytest.param(2, signal.SIGINT, "parent", marks=pytest.mark.engines),
    pytest.param(2, signal.SIGTERM, "parent", marks=pytest.mark.engines),
    (2, signal.SIGTERM, "rank 1"),
]


@pytest.mark.fault(Promise.STOPS, "signals to a run or one of its ranks")
@pytest.mark.parametrize(("devices", "number", "recipient"), STOPS)
def test_a_stop_signal_saves_the_run(
    devices: int, number: signal.Signals, recipient: str, data_dir: Path, tmp_path: Path
) -> None:
    overrides = [*FAST, "trainer.max_epochs=400", f"trainer.devices={devices}"]
    run_dir = tmp_path / "a run"
    process = StartedScript("train", *tiny(data_dir), *overrides, f"hydra.run.dir={run_dir}")
    try:
        wait_for_rows(run_dir, 20)
        target = process.pid if recipient == "parent" else find_ranks(process)[1]
        start = time.monotonic()
        os.kill(target, number)
        output = "".join(process.communicate(timeout=30))
        seconds = time.monotonic() - start
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert wait_for_end(process.list_processes) == []
    assert seconds < 10  # on a busy machine
    assert read_summary(run_dir)["status"] == "interrupted"
    assert "resume=" in output
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == int(read_metrics(run_dir)[-1]["step"])  # no step is lost


@pytest.mark.fault(Promise.STOPS, "signals to the process group of a run and its data workers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_saves_the_run(
    number: signal.Signals, data_dir: Path, tmp_path: Path, survived: Survived
) -> None:
    """Ctrl-C in a terminal signals the group. Data workers ignore the signal; the run ends them."""
    run_dir = tmp_path / "run"
    overrides = [*FAST, "trainer.max_epochs=400", "data.num_workers=2", f"hydra.run.dir={run_dir}"]
    process = StartedScript("train", *tiny(data_dir), *overrides)
    try:
        wait_for_rows(run_dir, 20)
        assert len(process.list_processes()) > 2  # the run and its data workers
        os.killpg(process.pid, number)
        output = "".join(process.communicate(timeout=30))
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert wait_for_end(process.list_processes) == []
    assert "Traceback" not in output
    assert read_summary(run_dir)["status"] == "interrupted"
    assert (run_dir / "checkpoints" / "last.ckpt").is_file()
    survived(1)


STALLING = """
import os, signal, time
from torch.utils.data import get_worker_info
from cvae.image_set import ImageSet
from cvae.data import MNISTDataModule

class Stalling(ImageSet):
    count = 0

    def __getitem__(self, rows):
        Stalling.count += get_worker_info() is not None
        if Stalling.count > 7:
            if os.environ.get("FAULT") == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if os.environ.get("FAULT") == "stop":  # before the worker delivers the batch
                os.kill(os.getpid(), signal.SIGSTOP)
            if os.environ.get("FAULT") == "stall":
                time.sleep(600)
        return super().__getitem__(rows)

class DataModule(MNISTDataModule):
    def setup(self, stage=None):
        super().setup(stage)
        self.train.__class__ = Stalling
"""


@pytest.fixture
def stalling(tmp_path: Path) -> str:
    """Return a PYTHONPATH with stalling.DataModule, whose workers fail after 7 batches (FAULT)."""
    (tmp_path / "stalling.py").write_text(STALLING)
    return os.pathsep.join((clean_environment()["PYTHONPATH"], str(tmp_path)))


STALLED = ["data._target_=stalling.DataModule", "data.num_workers=2"]


@pytest.mark.fault(Promise.STOPS, "SIGTERM while data workers deliver no batch")
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.engines)])
def test_a_stop_signal_saves_a_run_that_gets_no_batches(
    devices: int, uninterrupted: Path, data_dir: Path, tmp_path: Path, stalling: str
) -> None:
    run_dir = tmp_path / "run"
    overrides = [*FAST, *BUDGET, *STALLED, f"trainer.devices={devices}", f"hydra.run.dir={run_dir}"]
    process = StartedScript(
        "train", *tiny(data_dir), *overrides, PYTHONPATH=stalling, FAULT="stall"
    )
    try:
        wait_for_rows(run_dir, 14)  # each of two workers returns 7 batches, then stalls
        process.send_signal(signal.SIGTERM)
        output = "".join(process.communicate(timeout=30))
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, output
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == int(read_metrics(run_dir)[-1]["step"])
    assert f"resume={run_dir} trust=stalling" in output
    if devices == 1:
        resume = [f"resume={run_dir}", "trust=stalling"]
        done = run_script("train", *resume, PYTHONPATH=stalling)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_same_run(uninterrupted, run_dir)


@pytest.mark.fault(Promise.RANKS, "data workers stalled or killed")
@pytest.mark.parametrize("fault", ["stall", "stop", "die"])
def test_data_workers_that_stall_or_die_fail_a_run_with_one_line(
    fault: str, data_dir: Path, tmp_path: Path, stalling: str
) -> None:
    overrides = [*FAST, *STALLED, "rank_timeout=5", f"hydra.run.dir={tmp_path / 'run'}"]
    done = run_script("train", *tiny(data_dir), *overrides, PYTHONPATH=stalling, FAULT=fault)
    assert done.returncode == 1, done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "use data.num_workers=0" in done.stderr
    assert read_summary(tmp_path / "run")["status"] == "failed"


LEFT_OVER = """
import torch
from harness.contract.data import _ignore_stop_signals
from harness.contract.workers import WatchedLoader

loader = WatchedLoader(
    torch.zeros(64, 2), num_workers=2, persistent_workers=True,
    worker_init_fn=_ignore_stop_signals,
)
batches = iter(loader)
next(batches)
batches._shutdown_workers = lambda: None  # as after an error
raise SystemExit(7)
"""


@pytest.mark.fault(Promise.STOPS, "exit of a process with live data workers")
def test_a_process_exits_without_waiting_for_its_data_workers(tmp_path: Path) -> None:
    script = tmp_path / "left_over.py"
    script.write_text(LEFT_OVER)
    assert run_fork(script, [], timeout=30).returncode == 7


@pytest.mark.fault(Promise.INPUT, "data workers whose batches do not fit into /dev/shm")
def test_data_workers_without_shared_memory_are_rejected(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"num_workers": 2, "batch_size": 128, "image_shape": [1, 28, 28], "num_classes": 10}
    data["_target_"] = "cvae.data.MNISTDataModule"
    needed = 5 * 128 * 4 * (784 + 10 + 2)
    for free in (needed, needed - 1):
        monkeypatch.setattr(
            os, "statvfs", lambda path, free=free: SimpleNamespace(f_bavail=free, f_frsize=1)
        )
        with (
            pytest.raises(ConfigError, match=r"data.num_workers=2: .* MiB free; use")
            if (free < needed)
            else contextlib.nullcontext()
        ):
            check_shared_memory({"data": data})
    check_shared_memory({"data": {**data, "num_workers": 0}})
    if os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0:
        arguments = [*tiny(data_dir, tmp_path / "run"), "data.num_workers=2"]
        command = [sys.executable, str(ROOT / "src/train.py"), *arguments]
        mounted = "mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", mounted + shlex.join(command)],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "0.2 MiB free" in done.stderr
        assert not (tmp_path / "run").exists()


class BatchJob(NamedTuple):
    """A SLURM job that was stopped by SIGUSR1 and submitted again."""

    run_dir: Path
    exit_codes: list[int]
    requests: list[str]  # to scontrol
    stopped_at: int  # step
    imports: set[str]  # top-level packages that its processes imported


@pytest.fixture(scope="module")
def batch_job(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BatchJob:
    """Run the batch script of the docs twice, with a stub of scontrol that records its arguments.

    The data workers of the first job deliver 14 batches and then no more until the signal.
    """
    folder = tmp_path_factory.mktemp("slurm")
    run_dir = folder / "run"
    (folder / "stalling.py").write_text(STALLING)
    (folder / "data").symlink_to(data_dir)
    settings = " ".join([*tiny(folder / "data"), *FAST, *STALLED])
    page = (ROOT / "docs" / "how-to" / "resume.md").read_text()
    block = re.search(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    assert block is not None
    text = block[1].replace("logs/train/mine", str(run_dir))
    text = text.replace("hydra.run.dir=$DIR", f"hydra.run.dir=$DIR {settings}")
    text = text.replace("resume=$DIR", "resume=$DIR trust=stalling")
    (folder / "script").write_text(text)
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{folder}/requests"\n')
    (folder / "scontrol").chmod(0o755)
    (folder / "requests").touch()
    path = [str(Path(sys.executable).parent), str(folder), os.environ["PATH"]]
    environment = {
        **clean_environment(),
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(folder),
        "PYTHONPROFILEIMPORTTIME": "1",  # prints the modules that it imports
        "SLURM_JOB_ID": "7",
    }

    def submit(**variables: str) -> subprocess.Popen[bytes]:
        with (folder / "errors").open("ab") as errors:
            return subprocess.Popen(
                ["bash", str(folder / "script")],
                env={**environment, **variables},
                cwd=ROOT,
                stderr=errors,
                process_group=0,
            )

    process = submit(FAULT="stall")
    try:
        wait_for_rows(run_dir, 14)
        process.send_signal(signal.SIGUSR1)
        exit_codes = [process.wait(timeout=60)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    stopped_at = int(read_metrics(run_dir)[-1]["step"])
    exit_codes.append(submit().wait(timeout=120))
    lines = (folder / "errors").read_text().splitlines()
    imports = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in lines
        if line.startswith("import time:")
    }
    requests = (folder / "requests").read_text().splitlines()
    return BatchJob(run_dir, exit_codes, requests, stopped_at, imports)


@pytest.mark.fault(Promise.STOPS, "SIGUSR1 to the SLURM batch script, which requeues its job")
def test_the_batch_script_is_requeued_and_resumes(batch_job: BatchJob) -> None:
    assert batch_job.exit_codes == [128 + signal.SIGUSR1, 0]
    assert batch_job.requests == ["requeue 7"]
    summary = read_summary(batch_job.run_dir)
    assert summary["status"] == "finished"
    assert [entry["step"] for entry in summary["resumed"]] == [batch_job.stopped_at]


def test_training_imports_no_packages_that_it_does_not_need(batch_job: BatchJob) -> None:
    unwanted = {"sklearn", "skimage", "tensorboard", "optuna", "ray", "submitit", "wandb", "pandas"}
    assert {"torch", "lightning", "harness", "cvae"} <= batch_job.imports
    assert not unwanted & batch_job.imports


# resume


@pytest.fixture(scope="module")
def killed(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was killed in its second epoch, after a save at step 18."""
    run_dir = archive_run(data_dir, tmp_path_factory.mktemp("killed") / "run")
    assert train_with_kills(run_dir, [[SAVE, 6, "after"], "leave"]).exit_codes == [[-9]]
    return run_dir


@pytest.fixture
def interrupted(killed: Path, tmp_path: Path) -> Path:
    """Return a copy of the killed run in a folder of this test."""
    return Path(shutil.copytree(killed, tmp_path / "interrupted run"))


def test_resume_continues_in_the_same_folder(interrupted: Path, uninterrupted: Path) -> None:
    before = {p.name for p in interrupted.parent.iterdir()}
    done = run_script("train", f"resume={interrupted}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at step 18" in done.stdout
    # with this warning, the best score would be lost
    assert "dirpath has changed" not in done.stdout + done.stderr
    assert {p.name for p in interrupted.parent.iterdir()} == before
    assert_same_run(uninterrupted, interrupted)

    done = run_script("train", f"resume={interrupted}")
    assert done.returncode == 0
    assert "has finished; nothing to do" in done.stdout

    done = run_script("train", f"resume={interrupted}", "trainer.max_epochs=5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trainer.max_epochs: 4, now 5" in done.stdout
    assert "learning rate" in done.stdout
    assert read_summary(interrupted)["epochs"] == 5


def test_resume_rejects_a_run_that_is_training(interrupted: Path) -> None:
    before = (interrupted / "config.yaml").read_bytes()
    with RunFolder(interrupted).lock():
        done = run_script("train", f"resume={interrupted}", "trainer.max_epochs=9")
    assert done.returncode == 2
    assert "another process trains this run" in done.stderr
    assert (interrupted / "config.yaml").read_bytes() == before


def test_resume_rejects_fewer_epochs_than_are_trained(uninterrupted: Path) -> None:
    before = (uninterrupted / "config.yaml").read_bytes()
    done = run_script("train", f"resume={uninterrupted}", "trainer.max_epochs=1")
    assert done.returncode == 2
    assert "trainer.max_epochs=1: 4 epochs are trained already" in done.stderr
    assert (uninterrupted / "config.yaml").read_bytes() == before


def test_resume_rejects_settings_that_affect_training(interrupted: Path) -> None:
    before = (interrupted / "config.yaml").read_bytes()
    done = run_script("train", f"resume={interrupted}", "model.latent_dim=7", "optimizer.lr=1")
    assert done.returncode == 2
    assert "model.latent_dim=7: the run has 3" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert (interrupted / "config.yaml").read_bytes() == before


@pytest.mark.fault(Promise.CHECKPOINTS, "the last checkpoint truncated before a resume")
def test_resume_skips_a_damaged_checkpoint(interrupted: Path, uninterrupted: Path) -> None:
    last = interrupted / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    done = run_script("train", f"resume={interrupted}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "truncated or damaged" in done.stdout
    assert "resuming at step 15, from last-previous.ckpt" in done.stdout
    assert_same_run(uninterrupted, interrupted)


@pytest.mark.fault(Promise.CHECKPOINTS, "all checkpoints of a run emptied before a resume")
def test_resume_rejects_a_run_without_an_intact_checkpoint(interrupted: Path) -> None:
    for path in (interrupted / "checkpoints").glob("last*.ckpt"):
        path.write_bytes(b"")
    rows = (interrupted / "metrics.csv").read_bytes()
    done = run_script("train", f"resume={interrupted}")
    assert done.returncode == 2
    assert "no checkpoint can be read" in done.stderr
    assert (interrupted / "metrics.csv").read_bytes() == rows


@pytest.mark.fault(Promise.DATA, "one flipped bit in a training image before a resume")
def test_resume_rejects_other_data(interrupted: Path, data_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other data"
    shutil.copytree(data_dir, other)
    images = other / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(images.read_bytes())
    content[1000] ^= 1
    images.write_bytes(content)
    (images.parent / "digests.json").unlink(missing_ok=True)
    done = run_script("train", f"resume={interrupted}", f"data.data_dir={other}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "training data are not those" in done.stderr


@pytest.mark.parametrize("path", ["latest/there/is/none", "{folder}"])
def test_resume_rejects_a_folder_without_a_run(path: str, tmp_path: Path) -> None:
    done = run_script("train", f"resume={path.format(folder=tmp_path)}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_resume_latest_selects_the_newest_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "ROOT", tmp_path)
    logs = tmp_path / "logs"
    for hour, name, status in (
        (1, "killed at once", "running"),
        (2, "failed", "failed"),
        (3, "interrupted", "interrupted"),
        (4, "failed later", "failed"),
        (5, "of a wrong argument", "failed"),
        (6, "finished", "finished"),
    ):
        (logs / name).mkdir(parents=True)
        reading.update_summary(logs / name, status=status, started=f"2026-01-01T0{hour}:00:00")
    (logs / "failed later" / "checkpoints").mkdir()
    (logs / "failed later" / reading.LAST).touch()
    for name in ("failed later", "interrupted", "killed at once"):
        assert resuming.find_run_to_resume("latest") == logs / name
        reading.update_summary(logs / name, status="finished")
    with pytest.raises(ConfigError, match="has finished, or failed before its first checkpoint"):
        resuming.find_run_to_resume("latest")


# losses that are not finite, ranks, metrics


@pytest.mark.fault(Promise.NUMBERS, "an overflowing loss, on one device or two")
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.engines)])
def test_a_non_finite_loss_does_not_reach_the_weights(
    devices: int, data_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    overrides = [*FAST, "optimizer.lr=1e30", "callbacks.last.every_n_steps=1", "scheduler=constant"]
    done = run_script("train", *tiny(data_dir, run_dir), *overrides, f"trainer.devices={devices}")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "loss or gradient not finite at step" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
    assert read_summary(run_dir)["status"] == "failed"
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(v.isfinite().all() for v in saved["current_model_state"].values())


@pytest.mark.engines
@pytest.mark.fault(Promise.RANKS, "rank 1 killed or suspended")
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_fails_and_resumes_after_a_rank_dies_or_hangs(
    fault: signal.Signals, data_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    overrides = [
        *FAST,
        "trainer.max_epochs=15",
        "trainer.devices=2",
        "callbacks.last.every_n_steps=5",
    ]
    process = StartedScript(
        "train", *tiny(data_dir), *overrides, "rank_timeout=5", f"hydra.run.dir={run_dir}"
    )
    try:
        wait_for_rows(run_dir, 20)
        os.kill(find_ranks(process)[1], fault)
        output = "".join(process.communicate(timeout=60))
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert output.splitlines()[-1].startswith("failed: ")
    assert wait_for_end(process.list_processes) == []
    done = run_script("train", f"resume={run_dir}", "rank_timeout=60")
    assert done.returncode == 0, done.stdout + done.stderr
    uninterrupted = archive_run(
        data_dir, tmp_path / "whole", *overrides[1:], "callbacks.last.every_n_steps=5"
    )
    assert train_with_kills(uninterrupted, []).exit_codes == [[0]]
    assert read_metrics(run_dir) == read_metrics(uninterrupted)


def test_metrics_are_rewound_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    for step in range(1, 4):
        metrics.log_metrics({"train/loss": step / 2}, step=step)
    metrics.log_metrics({"test/elbo": 1.0}, step=2)
    with path.open("ab") as file:
        file.write(b"4,1.0")  # a line that a kill cut off
    MetricsFile(path).rewind(2)
    with path.open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
    MetricsFile(path).log_metrics({"train/loss": 9.0}, step=3)
    with path.open() as file:
        assert [row["train/loss"] for row in csv.DictReader(file)] == ["0.5", "1.0", "9.0"]


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("logger=wandb", True),
        ("callbacks.progress.refresh_rate=3", True),
        ("callbacks.last.every_n_steps=7", True),
        ("trainer.devices=2", True),
        ("trainer.max_epochs=9", True),
        ("test_num_samples=7", True),
        ("model=vae", False),
        ("model/network=conv", False),
        ("model.network.decoder_blocks=2", False),
        ("seed=2", False),
        ("callbacks.ema.decay=0.5", False),
        ("callbacks.ema=null", False),
        ("data.batch_size=8", False),
        ("trainer.gradient_clip_val=1", False),
        ("+optimizer.eps=1e-3", False),
    ],
)
def test_resume_accepts_only_overrides_that_do_not_affect_training(
    override: str, allowed: bool, data_dir: Path, tmp_path: Path
) -> None:
    cfg = reading.load_config(archive_run(data_dir, tmp_path))
    base = [*tiny(data_dir), *FAST, *BUDGET]
    if override.startswith("model/network="):  # the other network has other keys
        base = [word for word in base if not word.startswith("model.network.")]
    composed = compose(*base, override)
    if not allowed:
        with pytest.raises(ConfigError, match="the run has"):
            resume_overrides.apply_overrides(cfg, composed, [override])
        return
    assert len(resume_overrides.apply_overrides(cfg, composed, [override])) == 1
    assert resume_overrides.apply_overrides(cfg, composed, [override]) == []


def test_the_fingerprint_covers_settings_that_affect_training() -> None:
    conf = ROOT / "conf"
    default = resume_overrides.fingerprint(conf)
    same = ("logger=csv", "trainer.devices=2", "callbacks.figures=null", "data.data_dir=/x")
    assert resume_overrides.fingerprint(conf, same) == default
    for other in ("seed=2", "model=vae", "callbacks.ema=null", "trainer.max_epochs=3"):
        assert resume_overrides.fingerprint(conf, [other]) != default
    with hydra.initialize_config_dir(
        str(conf), **INITIALIZE_OPTIONS
    ):  # within another Hydra context
        assert resume_overrides.fingerprint(conf) == default
        assert hydra.compose("compare").keys() != hydra.compose("train").keys()
