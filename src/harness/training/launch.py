"""Starts the processes of a run: one, several, or those that torchrun or srun started.

A single run on one device trains in this process; several devices train in fresh processes, and so
does every job of a sweep. All of them read nothing but the run folder: no argument, environment or
process group leaks from one job to the next.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness.config.machine import Share, confined, device_count, num_cpus
from harness.config.paths import SOURCE
from harness.contract.errors import INTERRUPTED, STOPPED, ConfigError, Diverged, RunFailed
from harness.contract.terminal import accept_any_text
from harness.run_folder.folder import RunFolder
from harness.training.processes import PARENT, die_with_parent, exit_codes
from harness.training.ranks import check_one_node, started_ranks

_RANK = ("-m", __spec__.name, "--rank")
_ELASTIC_LOGGERS = (
    "torch.distributed.elastic",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
)
_JOB = ("-m", __spec__.name)
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


def launch(folder: RunFolder) -> float | None:
    """Train what the folder's config describes; the value of the monitored metric.

    Raises:
        RunFailed: it was not trained to the end.
        ConfigError: another process trains it now, or the machine cannot.
    """
    if started_ranks() is not None:
        _run_as_rank(folder)
    else:
        trainer = folder.config.trainer
        check_one_node(trainer.get("num_nodes", 1))
        count = num_processes(trainer.accelerator, trainer.devices)
        with folder.claimed():
            if count == 1:
                from harness.training.run import run

                run(folder)
            else:
                _start_several(folder, count)
    return folder.reread().get("objective")


def _run_as_rank(folder: RunFolder) -> None:
    import torch.distributed as dist

    from harness.training.run import run

    dist.barrier()  # rank 0 has written the folder
    run(folder)
    dist.destroy_process_group()


def num_processes(accelerator: str, devices: object) -> int:
    """Processes on this machine: one a device.

    Raises:
        ConfigError: the machine has fewer.
    """
    count = device_count(devices)
    if count == 1:
        return 1
    import torch

    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if on_gpu:
        there, what = torch.cuda.device_count(), "GPUs"
    elif accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        there, what = 1, "MPS device"
    else:
        there, what = num_cpus(), "cores"
        count = count or 1  # "auto" on a CPU is one process with all cores
    if (count or 1) > there:
        raise ConfigError(f"trainer.devices={devices}: this machine has {there} {what}")
    return count or there


def start(
    run_dir: Path,
    share: Share,
    environment: Mapping[str, str] | None = None,
    output: int | None = None,
) -> subprocess.Popen[bytes]:
    """A fresh process, in a process group of its own, that launches a run.

    Args:
        share: the cores and GPUs that it sees.
        environment: variables to set for it.
        output: a file descriptor for what it prints; None for this terminal.
    """
    with confined(share) as of_share:
        return subprocess.Popen(
            [sys.executable, *_JOB, str(run_dir)],
            env={**_environment(), **(environment or {}), **of_share},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C reaches whoever started it, who passes it on once
        )


def _environment() -> dict[str, str]:
    """The environment, with what a process that this one starts must know."""
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), PARENT: str(os.getpid())}


def failure(folder: RunFolder, code: int, said: str = "") -> BaseException:
    """What to raise for a process that ended with an exit code, or by a signal, before its run.

    Args:
        said: its last words, where they came another way than by the summary.
    """
    if code in (INTERRUPTED, -signal.SIGINT):
        return KeyboardInterrupt()
    if code in STOPPED:
        return SystemExit(code)
    if code < 0:
        killed = f"killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        killed = f"ended with exit code {code}"
    run_dir, summary = folder.path, folder.reread()
    told = said.partition(f"{run_dir}: ")[2]
    cause = told or killed
    # interrupted: a sibling was told to stop because of this failure, and wrote after it
    if summary.get("status") == "interrupted":
        cause = summary.get("error") or told or said or killed
    if (
        summary.get("status") in ("pending", "running", "interrupted")
        and code != ConfigError.exit_code
    ):
        with contextlib.suppress(OSError):  # a full disk may be what it died of
            folder.update(status="failed", error=cause)
    rank = f"rank {summary['rank']}: " if summary.get("rank") else ""
    kind = Diverged if code == Diverged.exit_code else RunFailed
    return kind(f"{run_dir}: {rank}{summary.get('error', cause)}")


def _start_several(folder: RunFolder, count: int) -> None:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = tempfile.mkdtemp(prefix="ranks-")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=folder.path.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=10,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )
    for name in _ELASTIC_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failure() tells
    before = dict(os.environ)
    os.environ.update(_environment())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        elastic_launch(config, sys.executable)(*_RANK, str(folder.path))
    except SignalException as error:
        folder.update(status="interrupted")
        raise SystemExit(128 + int(error.sigval)) from None
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode < 0:
            killed = f"killed by signal {-first.exitcode}"
            folder.update(status="failed", error=killed, rank=rank)
        said = first.message["message"] if isinstance(first.message, dict) else ""
        if first.exitcode == ConfigError.exit_code:
            text = folder.reread().get("error") or said.partition(": ")[2]
            raise ConfigError(text) from None
        raise failure(folder, first.exitcode, said) from None
    finally:
        shutil.rmtree(logs, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def _rank(folder: RunFolder) -> None:
    """What each of several processes does."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from harness.training.run import run

    try:
        run(folder)
    except Exception as error:
        # for whoever started it, whole or not at all: this process may be killed meanwhile
        reply = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
        draft = reply.with_suffix(".part")
        os.environ["TORCHELASTIC_ERROR_FILE"] = str(draft)
        with contextlib.suppress(OSError):  # no room
            get_error_handler().record_exception(error)
            draft.replace(reply)
        raise


if __name__ == "__main__":
    accept_any_text()
    *options, named = sys.argv[1:]
    # ranks could wait for each other for ever
    die_with_parent(getattr(signal, "SIGKILL", signal.SIGTERM) if options else signal.SIGTERM)
    if not options:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    this = RunFolder(Path(named))
    with exit_codes(this):
        (_rank if options else launch)(this)
