"""Jobs of a sweep: run folders that are trained a few at a time, each in its own process.

All jobs have a folder with status "pending" before the first one starts, so that an interrupted
sweep can be finished from its folders alone. A search creates its jobs in batches.
"""

import contextlib
import math
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from harness.config.machine import Share, device_count, divide_machine, has_no_gpu, num_cpus
from harness.config.paths import display_path, python_command
from harness.contract.errors import Busy, ConfigError, RunFailed
from harness.run_folder.folder import RunFolder
from harness.run_folder.reading import (
    CONFIG,
    JOURNAL,
    load_config,
    load_untrusted_config,
    read_summary,
    trust_override,
    update_summary,
)
from harness.run_folder.trust import resolve_inside
from harness.sweeps.fork_server import ForkServer
from harness.training.forks import Process, stop
from harness.training.launch import exception_for, start_process
from harness.training.processes import exit_on_sigterm

TERMINAL_LOG = "terminal.log"  # output of a job, if several jobs run at a time
_SEARCH_OVERRIDES = ("+callbacks.pruning=", "test=", "hydra.")  # overrides that a search adds
_POLL = 0.05  # seconds
_STOP_TIMEOUT = 15  # seconds between the stop signal to a job and SIGKILL


# configs of jobs that are composed and validated already, by overrides; for the launcher
composed_configs: dict[tuple[str, ...], DictConfig] = {}


class Job(NamedTuple):
    """A run of a sweep: its folder and summary."""

    run_dir: Path
    summary: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        return self.summary.get("status") in ("finished", "pruned", "smoke")


def is_search(sweeper: str) -> bool:
    """Return whether a sweeper class is a search, which chooses jobs by earlier results."""
    return not sweeper.endswith(("BasicSweeper", "CheckedSweeper"))


def check_num_parallel(cfg: Mapping[str, Any], num_parallel: int) -> None:
    """Raise if the jobs that run at a time need more cores than this machine has.

    Args:
        cfg: the config of a job.
        num_parallel: jobs at a time.

    Raises:
        ConfigError: they need more cores.
    """
    accelerator, devices = cfg["trainer"]["accelerator"], cfg["trainer"]["devices"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and has_no_gpu())
    needed = num_parallel * (device_count(devices) or 1)
    if on_cpu and num_parallel > 1 and needed > num_cpus():
        raise ConfigError(
            f"hydra.launcher.num_jobs={num_parallel}: {num_parallel} jobs at a time with "
            f"trainer.devices={devices} need {needed} cores; this machine has {num_cpus()}"
        )


def find_jobs(sweep_dir: Path) -> list[Job]:
    """Return the runs in a folder and its subfolders, by job number.

    Raises:
        ConfigError: there are no runs.
    """
    candidates = [Job(p.parent, read_summary(p.parent)) for p in sweep_dir.rglob(CONFIG)]
    jobs = [job for job in candidates if job.summary]
    if not jobs:
        raise ConfigError(f"{sweep_dir}: no runs in this folder")
    return sorted(jobs, key=lambda job: (len(job.run_dir.name), str(job.run_dir)))


def run_unfinished(sweep_dir: Path, num_parallel: int, trust: Any = None) -> None:
    """Train the unfinished runs of a sweep, except those that another process is training.

    Args:
        num_parallel: jobs at a time.
        trust: packages whose classes the configs may also name.

    Raises:
        ConfigError: the folder holds no runs, or it holds a search, or a config names code that is
            not trusted.
        RunFailed: some runs did not finish.
    """
    jobs = find_jobs(sweep_dir)
    if (sweep_dir / JOURNAL).exists():
        raise ConfigError(f"rerun={sweep_dir}: is a search; to resume it, repeat its command")
    unfinished = [job.run_dir for job in jobs if not job.is_finished]
    num_finished = len(jobs) - len(unfinished)
    print(f"{num_finished} of {len(jobs)} runs are finished, {len(unfinished)} to train")
    for run_dir in list(unfinished):
        cfg = load_untrusted_config(run_dir, trust)
        folder = RunFolder(run_dir)
        try:
            with folder.lock():
                folder.write_config(cfg)  # with paths in the current folder of the run
        except Busy:
            print(f"run {run_dir.name}: skipped, another process is training it")
            unfinished.remove(run_dir)
    server = ForkServer(sweep_dir, num_parallel) if len(unfinished) > 1 else None
    run_jobs(unfinished, num_parallel, server=server)
    if not print_report(sweep_dir):
        raise RunFailed(f"{sweep_dir}: not all runs finished")


def run_jobs(
    run_dirs: Sequence[Path],
    num_parallel: int = 1,
    environment: Mapping[str, str] | None = None,
    server: ForkServer | None = None,
) -> list[float]:
    """Train archived runs, each in its own process. A run that fails does not stop the others.

    Args:
        run_dirs: the folders of the runs.
        num_parallel: jobs at a time; they share the cores and GPUs of this machine equally.
        environment: variables to set for the processes.
        server: forks the processes; None to start each in a fresh interpreter.

    Returns:
        The best monitored metric of each run; NaN if the run did not finish.
    """
    waiting = list(enumerate(run_dirs, start=1))
    free_shares = divide_machine(num_parallel)
    running: dict[Process, tuple[int, Path, Share]] = {}
    with exit_on_sigterm():
        try:
            while waiting or running:
                while waiting and free_shares:
                    (number, run_dir), share = waiting.pop(0), free_shares.pop(0)
                    process = _start_job(
                        run_dir, share, num_parallel > 1, environment or {}, server
                    )
                    running[process] = (number, run_dir, share)
                    _print(f"run {run_dir.name} ({number} of {len(run_dirs)}): {_title(run_dir)}")
                time.sleep(_POLL)
                for process, code in [(p, c) for p in running if (c := p.poll()) is not None]:
                    number, run_dir, share = running.pop(process)
                    free_shares.append(share)
                    outcome = _record_outcome(run_dir, code)
                    _print(f"run {run_dir.name} {outcome}")
        except (KeyboardInterrupt, SystemExit) as error:
            stop_signal = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
            stop(list(running), stop_signal, _STOP_TIMEOUT)
            for _, run_dir, _ in running.values():
                if read_summary(run_dir).get("status") == "running":
                    update_summary(run_dir, status="interrupted")
            raise
    return [_objective(run_dir) for run_dir in run_dirs]


def _start_job(
    run_dir: Path,
    share: Share,
    shares_terminal: bool,
    environment: Mapping[str, str],
    server: ForkServer | None = None,
) -> Process:
    """Start a job as a fork of the server, or in a fresh interpreter."""
    with contextlib.ExitStack() as stack:
        output = None
        if shares_terminal:
            file = stack.enter_context(resolve_inside(run_dir, TERMINAL_LOG).open("ab"))
            output = file.fileno()
        forked = None if server is None else server.start(run_dir, share, output)
        return forked or start_process(run_dir, share, environment, output)


def _record_outcome(run_dir: Path, code: int) -> str:
    """Return one line on how a job ended; record a failure in its summary."""
    if code == 0:
        summary, value = read_summary(run_dir), _objective(run_dir)
        shown = "" if math.isnan(value) else f", {summary['monitor']} {value:.2f}"
        return f"{summary['status']}{shown}"
    error = exception_for(RunFolder(run_dir), code)
    status = read_summary(run_dir).get("status")
    return f"failed, {error}" if isinstance(error, RunFailed) else f"{status}, {run_dir}"


def _objective(run_dir: Path) -> float:
    summary = read_summary(run_dir)
    value = summary.get("objective") if summary.get("status") in ("finished", "smoke") else None
    return math.nan if value is None else float(value)


def swept_overrides(overrides: Sequence[str], shared: Sequence[str]) -> list[str]:
    """Return the overrides of one job of a sweep that the other jobs do not share.

    Args:
        overrides: overrides of the job.
        shared: overrides of the whole sweep; key=choice(value) counts as key=value.
    """

    def is_shared(override: str) -> bool:
        key, _, value = override.partition("=")
        return override in shared or f"{key}=choice({value})" in shared

    return [o for o in overrides if not is_shared(o) and not o.startswith(_SEARCH_OVERRIDES)]


def _title(run_dir: Path) -> str:
    summary = read_summary(run_dir)
    return " ".join(summary.get("swept") or summary.get("overrides") or ["defaults"])


def _print(line: str) -> None:
    print(line, flush=True)


def print_report(sweep_dir: Path, for_search: bool = False) -> bool:
    """Print a table of a sweep, and return whether all runs finished (in a search: any run)."""
    jobs = find_jobs(sweep_dir)
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
    print(f"\nsweep folder: {display_path(sweep_dir)}")
    if any(job.summary.get("status") == "finished" for job in jobs):
        folder = shlex.quote(f"runs={display_path(sweep_dir)}")
        print(f"to compare its runs:\n  {python_command('compare')} {folder}")
    if for_search:
        return any(job.is_finished for job in jobs)
    is_complete = all(job.is_finished for job in jobs)
    if not is_complete:
        rerun = shlex.quote(f"rerun={display_path(sweep_dir)}")
        trust = next(filter(None, (trust_override(load_config(j.run_dir)) for j in jobs)), "")
        command = f"{python_command('train')} {rerun} {trust}".rstrip()
        print(f"to train the unfinished runs:\n  {command}")
    return is_complete
