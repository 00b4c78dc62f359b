"""A sweep: a folder of runs, trained a few at a time, each in a fresh process.

Every job has its folder, with status "pending", before the first one starts; so what a sweep still
has to do can be read from its folders, whatever happened to the process that started it.
"""

import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from harness.config.machine import Share, device_count, num_cpus, shares
from harness.config.paths import python_command, shown
from harness.contract.errors import Busy, ConfigError, RunFailed
from harness.run_folder.folder import RunFolder
from harness.run_folder.reading import (
    CONFIG,
    JOURNAL,
    load_config,
    load_foreign_config,
    read_summary,
    trust_needed,
    update_summary,
)
from harness.run_folder.trust import inside
from harness.training.launch import failure, start
from harness.training.processes import terminated_by_exception

OUTPUT = "terminal.log"  # of a job that shares the terminal with others
_OF_SEARCHES = ("+callbacks.pruning=", "test=", "hydra.")  # overrides that tell a reader nothing
_POLL = 0.05  # seconds
_PATIENCE = 15  # seconds that a job has to end after it was told to


# jobs whose configs have been composed and checked, by their overrides, for the launcher
composed: dict[tuple[str, ...], DictConfig] = {}


class Job(NamedTuple):
    """A run folder of a sweep, and how it went."""

    run_dir: Path
    summary: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        return self.summary.get("status") in ("finished", "pruned", "smoke")


def is_search(sweeper: str) -> bool:
    """Whether a sweep chooses its jobs while it runs, by the class of its sweeper."""
    return not sweeper.endswith(("BasicSweeper", "CheckedSweeper"))


def check_parallel(cfg: Mapping[str, Any], num_parallel: int) -> None:
    """Reject more jobs at a time than the machine has cores for.

    Raises:
        ConfigError: they would share cores.
    """
    accelerator, devices = cfg["trainer"]["accelerator"], cfg["trainer"]["devices"]
    needed = num_parallel * (device_count(devices) or 1)
    if needed > num_cpus() and num_parallel > 1 and accelerator in ("cpu", "auto"):
        raise ConfigError(
            f"hydra.launcher.num_jobs={num_parallel}: {num_parallel} jobs at a time with "
            f"trainer.devices={devices} need {needed} cores; this machine has {num_cpus()}"
        )


def jobs_of(sweep_dir: Path) -> list[Job]:
    """The runs below a folder, in the order of their numbers.

    Raises:
        ConfigError: there are none.
    """
    found = [Job(p.parent, read_summary(p.parent)) for p in sweep_dir.rglob(CONFIG)]
    jobs = [job for job in found if job.summary]
    if not jobs:
        raise ConfigError(f"{sweep_dir}: no runs in this folder")
    return sorted(jobs, key=lambda job: (len(job.run_dir.name), str(job.run_dir)))


def run_unfinished(sweep_dir: Path, num_parallel: int, trust: Any = None) -> None:
    """Train the runs of a sweep that did not finish, and that nobody trains now.

    Args:
        trust: packages whose code the runs may name, beside ours.

    Raises:
        ConfigError: the folder holds no runs, is that of a search, or names other code.
        RunFailed: some have not finished this time either.
    """
    jobs = jobs_of(sweep_dir)
    if (sweep_dir / JOURNAL).exists():
        raise ConfigError(f"rerun={sweep_dir}: a search goes on where its command is typed again")
    left = [job.run_dir for job in jobs if not job.is_finished]
    print(f"{len(jobs) - len(left)} of {len(jobs)} runs are finished, {len(left)} to train")
    for run_dir in list(left):
        cfg = load_foreign_config(run_dir, trust)
        folder = RunFolder(run_dir)
        try:
            with folder.claimed():
                folder.write_config(cfg)  # its paths in the folder where it lies now
        except Busy:
            print(f"run {run_dir.name} is being trained by another process: left alone")
            left.remove(run_dir)
    run_jobs(left, num_parallel)
    if not report(sweep_dir):
        raise RunFailed(f"{sweep_dir}: not all runs finished")


def run_jobs(
    run_dirs: Sequence[Path],
    num_parallel: int = 1,
    environment: Mapping[str, str] | None = None,
) -> list[float]:
    """Train archived runs, each in a fresh process. One that fails does not stop the others.

    Args:
        num_parallel: jobs at a time, among which the cores and GPUs of this machine are shared out.
        environment: variables to set for them.

    Returns:
        The monitored metric of each run; NaN where it did not finish.
    """
    waiting = list(enumerate(run_dirs, start=1))
    free = shares(num_parallel)
    running: dict[subprocess.Popen[bytes], tuple[int, Path, Share]] = {}
    with terminated_by_exception():
        try:
            while waiting or running:
                while waiting and free:
                    (number, run_dir), share = waiting.pop(0), free.pop(0)
                    process = _start(run_dir, share, num_parallel > 1, environment or {})
                    running[process] = (number, run_dir, share)
                    _tell(f"run {run_dir.name} ({number} of {len(run_dirs)}): {_title(run_dir)}")
                time.sleep(_POLL)
                for process in [p for p in running if p.poll() is not None]:
                    number, run_dir, share = running.pop(process)
                    free.append(share)
                    outcome = _settled(run_dir, process.returncode)
                    _tell(f"run {run_dir.name} {outcome}")
        except (KeyboardInterrupt, SystemExit) as error:
            _stop(list(running), by=signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
            for _, run_dir, _ in running.values():
                if read_summary(run_dir).get("status") == "running":
                    update_summary(run_dir, status="interrupted")
            raise
    return [_objective(run_dir) for run_dir in run_dirs]


def _start(
    run_dir: Path, share: Share, shares_terminal: bool, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    if not shares_terminal:
        return start(run_dir, share, environment)
    with inside(run_dir, OUTPUT).open("ab") as file:
        return start(run_dir, share, environment, output=file.fileno())


def _settled(run_dir: Path, code: int) -> str:
    """How a job ended, in a line; its summary says so too, whatever ended it."""
    if code == 0:
        summary, value = read_summary(run_dir), _objective(run_dir)
        shown = "" if math.isnan(value) else f", {summary['monitor']} {value:.2f}"
        return f"{summary['status']}{shown}"
    error = failure(RunFolder(run_dir), code)
    status = read_summary(run_dir).get("status")
    return f"failed, {error}" if isinstance(error, RunFailed) else f"{status}, {run_dir}"


def _objective(run_dir: Path) -> float:
    summary = read_summary(run_dir)
    value = summary.get("objective") if summary.get("status") in ("finished", "smoke") else None
    return math.nan if value is None else float(value)


def _stop(processes: list[subprocess.Popen[bytes]], by: signal.Signals | None) -> None:
    for process in processes:
        process.send_signal(by or signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # on Windows
            process.wait()


def swept(overrides: Sequence[str], of_all: Sequence[str]) -> list[str]:
    """What was set for one job of a sweep, and not for all.

    Args:
        overrides: of the job.
        of_all: overrides of the whole sweep; key=choice(value) counts as key=value.
    """

    def is_of_all(override: str) -> bool:
        key, _, value = override.partition("=")
        return override in of_all or f"{key}=choice({value})" in of_all

    return [o for o in overrides if not is_of_all(o) and not o.startswith(_OF_SEARCHES)]


def _title(run_dir: Path) -> str:
    summary = read_summary(run_dir)
    return " ".join(summary.get("swept") or summary.get("overrides") or ["defaults"])


def _tell(line: str) -> None:
    print(line, flush=True)


def report(sweep_dir: Path, of_search: bool = False) -> bool:
    """Print how each run of a sweep went; whether all finished, or of a search any."""
    jobs = jobs_of(sweep_dir)
    monitors = {str(job.summary["monitor"]) for job in jobs if "monitor" in job.summary}
    table = Table(box=None, padding=(0, 2, 0, 0))
    columns = ("run", "status", " or ".join(sorted(monitors)) or "objective", "settings")
    for name in columns:
        table.add_column(name, justify="right" if name in columns[2:3] else "left", overflow="fold")
    for job in jobs:
        value = _objective(job.run_dir)
        table.add_row(
            str(job.run_dir.relative_to(sweep_dir)),
            str(job.summary["status"]),
            "" if math.isnan(value) else f"{value:.2f}",
            _title(job.run_dir),
        )
    console = Console(highlight=False, markup=False)
    console.print()
    console.print(table)
    for job in jobs:
        if error := job.summary.get("error"):
            console.print(f"\nrun {job.run_dir}: {error}", soft_wrap=True)
    print(f"\nsweep folder: {shown(sweep_dir)}")
    if any(job.summary.get("status") == "finished" for job in jobs):
        folder = shlex.quote(f"runs={shown(sweep_dir)}")
        print(f"to compare its runs:\n  {python_command('compare')} {folder}")
    if of_search:
        return any(job.is_finished for job in jobs)
    complete = all(job.is_finished for job in jobs)
    if not complete:
        rerun = shlex.quote(f"rerun={shown(sweep_dir)}")
        trust = next(filter(None, (trust_needed(load_config(j.run_dir)) for j in jobs)), "")
        command = f"{python_command('train')} {rerun} {trust}".rstrip()
        print(f"to train what did not finish:\n  {command}")
    return complete
