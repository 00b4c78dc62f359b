"""Launch of a run: in this process, in one process per device, or under torchrun or srun.

A run on one device trains in this process. A run on several devices, and every job of a sweep,
trains in processes of its own: fresh interpreters, or forks of one that has only imported
libraries. They read only the run folder, so that no argument, environment variable or process group
leaks from one job to the next.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.config.machine import Share, device_count, has_no_gpu, num_cpus, restrict_to_share
from harness.config.paths import SOURCE
from harness.contract.errors import (
    INTERRUPTED,
    STOPPED,
    ConfigError,
    Diverged,
    RunFailed,
    Stopped,
)
from harness.contract.terminal import accept_any_text
from harness.run_folder.folder import RunFolder
from harness.training.forks import Fork, Process, can_fork, fork, run_and_exit
from harness.training.local_ranks import run_ranks
from harness.training.processes import (
    PARENT_VARIABLE,
    die_with_parent,
    exit_with_code,
    raise_on_stop_signal,
)
from harness.training.ranks import check_one_node, disconnect, started_ranks

_RANK_ARGUMENTS = ("-m", __spec__.name, "--rank")
_JOB_ARGUMENTS = ("-m", __spec__.name)
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


def launch(folder: RunFolder, fork_ranks: bool = False) -> float | None:
    """Train the run of a folder, and return its best value of the monitored metric.

    Args:
        folder: the folder of the run.
        fork_ranks: whether to fork the ranks on CPUs from this process, which has only imported
            libraries so far; else they start in fresh interpreters.

    Raises:
        RunFailed: the run failed.
        ConfigError: another process is training the run, or the machine has too few devices.
    """
    if started_ranks() is not None:
        _run_connected_rank(folder)
    else:
        trainer = folder.config.trainer
        check_one_node(trainer.get("num_nodes", 1))
        count = num_processes(trainer.accelerator, trainer.devices)
        with folder.lock():
            if count == 1:
                from harness.training.run import train_run

                train_run(folder)
            else:
                _launch_ranks(folder, count, fork_ranks and _can_fork_ranks(trainer.accelerator))
    return folder.reread().get("objective")


def _run_connected_rank(folder: RunFolder) -> None:
    import torch.distributed as dist

    from harness.training.run import train_run

    dist.barrier()  # rank 0 has written the folder
    train_run(folder)
    disconnect()


def num_processes(accelerator: str, devices: object) -> int:
    """Return the number of processes to start on this machine: one per device.

    Raises:
        ConfigError: the machine has fewer devices.
    """
    count = device_count(devices)
    if count == 1:
        return 1
    import torch

    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if on_gpu:
        available, device_name = torch.cuda.device_count(), "GPUs"
    elif accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        available, device_name = 1, "MPS device"
    else:
        available, device_name = num_cpus(), "cores"
        count = count or 1  # "auto" on a CPU is one process with all cores
    if (count or 1) > available:
        raise ConfigError(f"trainer.devices={devices}: this machine has {available} {device_name}")
    return count or available


def start_process(
    run_dir: Path,
    share: Share,
    environment: Mapping[str, str] | None = None,
    output: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that launches a run, in its own process group.

    Args:
        run_dir: the folder of the run.
        share: the cores and GPUs that the process may use.
        environment: variables to set for the process.
        output: file descriptor for its stdout and stderr; None for those of this process.
    """
    with restrict_to_share(share) as share_variables:
        return subprocess.Popen(
            [sys.executable, *_JOB_ARGUMENTS, str(run_dir)],
            env={**child_environment(environment), **share_variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C reaches only this process, which passes it on once
        )


def child_environment(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for child processes: PYTHONPATH, the parent's id, no rank.

    Args:
        added: further variables.
    """
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
    own_variables = {"PYTHONPATH": os.pathsep.join(paths), PARENT_VARIABLE: str(os.getpid())}
    return {**inherited, **own_variables, **(added or {})}


def exception_for(folder: RunFolder, code: int, message: str = "") -> BaseException:
    """Return the exception to raise for a process that ended before its run was finished.

    Set the status in the summary to "failed" if the process could not do so.

    Args:
        folder: the folder of the run.
        code: the exit code; negative for a signal.
        message: error message that the process reported, if there is one.
    """
    if code in (INTERRUPTED, -signal.SIGINT):
        return KeyboardInterrupt()
    if code in STOPPED:
        return SystemExit(code)
    if code < 0:
        exit_text = f"killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        exit_text = f"ended with exit code {code}"
    run_dir, summary = folder.path, folder.reread()
    reason = message.partition(f"{run_dir}: ")[2]
    cause = reason or exit_text
    # another rank, stopped because of this failure, may have written "interrupted" after it
    if summary.get("status") == "interrupted":
        cause = summary.get("error") or reason or message or exit_text
    if (
        summary.get("status") in ("pending", "running", "interrupted")
        and code != ConfigError.exit_code
    ):
        with contextlib.suppress(OSError):  # the disk may be full
            folder.update(status="failed", error=cause)
    rank = f"rank {summary['rank']}: " if summary.get("rank") else ""
    exception_class = Diverged if code == Diverged.exit_code else RunFailed
    return exception_class(f"{run_dir}: {rank}{summary.get('error', cause)}")


def _can_fork_ranks(accelerator: str) -> bool:
    """Return whether a fork of this process can train: a GPU does not survive a fork."""
    return can_fork() and (accelerator == "cpu" or has_no_gpu())


def _launch_ranks(folder: RunFolder, count: int, fork_ranks: bool = False) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def start(variables: Mapping[str, str]) -> Process:
        environment = child_environment(variables)
        if fork_ranks:
            return Fork(fork(lambda: _become_rank(folder, environment)))
        environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it on import
        command = [sys.executable, *_RANK_ARGUMENTS, str(folder.path)]
        return subprocess.Popen(command, env=environment, process_group=0)

    try:
        with raise_on_stop_signal():
            run_ranks(count, folder.path.name, start)
    except Stopped as error:
        folder.update(status="interrupted")
        raise SystemExit(error.exit_code) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message["message"] if isinstance(failure.message, dict) else ""
        if failure.exitcode < 0 and not message:  # with a message, it failed before the signal
            killed = f"killed by signal {-failure.exitcode}"
            folder.update(status="failed", error=killed, rank=rank)
        if failure.exitcode == ConfigError.exit_code:
            summary = folder.reread()
            text = summary.get("error") or message.partition(": ")[2]
            if summary.get("status") == "interrupted":  # another rank was stopped
                folder.update(status="failed", error=text)
            raise ConfigError(text) from None
        raise exception_for(folder, failure.exitcode, message) from None


def _become_rank(folder: RunFolder, environment: Mapping[str, str]) -> None:
    """Train as a rank, in a fork of the process that launches the run."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from harness.tracking.wandb import make_temporary_folders

    os.setpgid(0, 0)
    os.environ.update(environment)
    make_temporary_folders()
    # Lightning read RANK on import, before the fork
    rank_zero_only.rank = int(environment["RANK"])  # type: ignore[attr-defined]
    run_process(str(folder.path), is_rank=True)


def _run_spawned_rank(folder: RunFolder) -> None:
    """Train as one of several processes, and report an error to the process that started them."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from harness.training.run import train_run

    try:
        train_run(folder)
        disconnect()
    except Exception as error:
        # write the error atomically, because this process may be killed meanwhile
        reply = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
        draft = reply.with_suffix(".part")
        os.environ["TORCHELASTIC_ERROR_FILE"] = str(draft)
        with contextlib.suppress(OSError):  # the disk may be full
            get_error_handler().record_exception(error)
            draft.replace(reply)
        raise


def run_process(path: str, is_rank: bool = False, fork_ranks: bool = False) -> None:
    """Launch the run in a folder, or train it as a rank, and exit with the code of its error.

    Args:
        path: the run folder.
        is_rank: whether this process is one of several ranks.
        fork_ranks: as for :func:`launch`.
    """
    # SIGKILL for ranks: they could wait for each other forever
    die_with_parent(getattr(signal, "SIGKILL", signal.SIGTERM) if is_rank else signal.SIGTERM)
    if not is_rank:
        # a shell starts background jobs with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = RunFolder(Path(path))
    with exit_with_code(folder):
        if is_rank:
            _run_spawned_rank(folder)
        else:
            launch(folder, fork_ranks)


if __name__ == "__main__":
    accept_any_text()
    *options, run_folder = sys.argv[1:]
    run_and_exit(lambda: run_process(run_folder, is_rank=bool(options)))
