"""How a run gets its processes: one, several, or those that torchrun or srun has started.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cvae import runs
from cvae.processes import (
    BAD_INPUT,
    DIVERGED,
    INTERRUPTED,
    PARENT,
    STOPPED,
    answered_within,
    die_with_parent,
    exit_codes,
)
from cvae.schema import ConfigError, device_count, num_cpus
from cvae.terminal import accept_any_text

_RANK = ("-m", "cvae.launch", "--rank")
_ELASTIC_LOGGERS = (
    "torch.distributed.elastic",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
)
_JOB = ("-m", "cvae.launch")
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


class Ranks(NamedTuple):
    """The processes of a run that torchrun or srun has started, this one among them."""

    rank: int
    world_size: int
    local_world_size: int  # on this node
    launcher: str


def started_ranks() -> Ranks | None:
    """Return this process's place among those that torchrun or srun started, or None if alone.

    A world of one needs no rendezvous: some clusters set RANK=0 WORLD_SIZE=1 for every process.

    Raises:
        ConfigError: the variables that name the rank are incomplete or contradict each other.
    """
    env = os.environ
    if (num_tasks := _count("SLURM_STEP_NUM_TASKS", 1)) > 1 and "RANK" not in env:
        nodes = _count("SLURM_STEP_NUM_NODES", 0) or _count("SLURM_NNODES", 1)
        rank = _count("SLURM_PROCID", None)
        return _checked(Ranks(rank, num_tasks, num_tasks // max(1, nodes), "srun"), "SLURM_PROCID")
    if "RANK" not in env and "WORLD_SIZE" not in env:
        return None
    rank = _count("RANK", 0 if env.get("WORLD_SIZE") == "1" else None)
    world_size = _count("WORLD_SIZE", 1 if rank == 0 else None)
    local = _count("LOCAL_WORLD_SIZE", world_size)
    ranks = _checked(Ranks(rank, world_size, local, "torchrun"), "RANK")
    if _count("LOCAL_RANK", 0) >= local:
        raise ConfigError(f"LOCAL_RANK={env['LOCAL_RANK']}: must be below LOCAL_WORLD_SIZE={local}")
    return None if world_size == 1 else ranks


def _count(variable: str, default: int | None) -> int:
    """Return the number in an environment variable."""
    text = os.environ.get(variable) or ("" if default is None else str(default))
    if not text:
        raise ConfigError(
            f"{variable}: is not set, but other variables of distributed training are; set RANK, "
            "WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or none of them, or start with torchrun"
        )
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{variable}={text}: must be an integer of at least 0")
    return int(text)


def _checked(ranks: Ranks, variable: str) -> Ranks:
    """Return the ranks if they are consistent, else raise ConfigError."""
    rank, size, local, _ = ranks
    if rank >= size:
        raise ConfigError(f"{variable}={rank}: must be below the number of processes, {size}")
    if local < 1 or size % local:
        source = (
            "SLURM_STEP_NUM_TASKS"
            if ranks.launcher == "srun"
            else "WORLD_SIZE and LOCAL_WORLD_SIZE"
        )
        raise ConfigError(
            f"{size} processes: must be a multiple of the {local} on each node; check {source}"
        )
    return ranks


def join(run_dir: Path, settings: str, timeout: float) -> Path:
    """Meet the other ranks that were started with this one; the folder that all share, rank 0's.

    Args:
        run_dir: where this rank would write.
        settings: the composed configuration, as text.
        timeout: seconds after which a rank that does not answer ends the run.

    Raises:
        ConfigError: the ranks have different settings, or MASTER_ADDR or MASTER_PORT is not set.
        runs.RunFailed: they did not meet; the process ends where it waits for longer than that.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of torch, which must not be there yet
    ranks = started_ranks()
    assert ranks is not None
    if ranks.launcher == "torchrun":
        for variable in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(variable):
                raise ConfigError(
                    f"{variable}: is not set, but WORLD_SIZE={ranks.world_size} is; set it, or "
                    "start the ranks with torchrun"
                )
        _count("MASTER_PORT", None)

    import torch.distributed as dist

    if ranks.launcher == "srun":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ.update(
            RANK=str(ranks.rank),
            WORLD_SIZE=str(ranks.world_size),
            LOCAL_RANK=str(slurm.local_rank()),
            MASTER_ADDR=slurm.main_address,
            MASTER_PORT=str(slurm.main_port),
        )
    import torch

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with answered_within(timeout):
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]  # and C++ frames
            raise runs.RunFailed(f"the ranks did not meet: {reason}") from error
    said: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(said, (str(run_dir), settings))
    different = [rank for rank, (_, given) in enumerate(said) if given != said[0][1]]
    if different:
        with contextlib.suppress(RuntimeError):  # of a rank that the others have left already
            dist.barrier()  # or one could leave before the others have heard
        raise ConfigError(f"rank {different[0]} was given other settings than rank 0")
    return Path(said[0][0])


def is_first() -> bool:
    """Whether this process speaks for the run: the only one, or rank 0."""
    ranks = started_ranks()
    return ranks is None or ranks.rank == 0


def launch(run_dir: Path) -> float | None:
    """Train what the folder's config describes; the value of the monitored metric.

    Raises:
        runs.RunFailed: it was not trained to the end.
        ConfigError: another process trains it now, or the machine cannot.
    """
    if started_ranks() is not None:
        _run_as_rank(run_dir)
    else:
        cfg = runs.load_config(run_dir)
        count = num_processes(cfg.trainer.accelerator, cfg.trainer.devices)
        with runs.claimed(run_dir):
            if count == 1:
                from cvae.training import run

                run(run_dir)
            else:
                _start_several(run_dir, count)
    return runs.read_summary(run_dir).get("objective")


def _run_as_rank(run_dir: Path) -> None:
    import torch.distributed as dist

    from cvae.training import run

    dist.barrier()  # rank 0 has written the folder
    run(run_dir)
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


class Share(NamedTuple):
    """The part of this machine that a job may use."""

    cores: list[int]
    gpus: list[str]


def shares(count: int) -> list[Share]:
    """This machine in equal parts: none shares a core, nor a GPU where there are enough."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(num_cpus()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    gpus = [str(i) for i in range(len(devices))] if visible is None else visible.split(",")
    each, gpus_each = max(1, len(cores) // count), max(1, len(gpus) // count)
    return [
        Share(
            cores[i * each : (i + 1) * each],
            [gpus[(i * gpus_each + j) % len(gpus)] for j in range(gpus_each)] if gpus else [],
        )
        for i in range(count)
    ]


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


@contextmanager
def confined(share: Share) -> Iterator[dict[str, str]]:
    """While it lasts, processes that this thread starts see a share of the machine alone.

    Yields:
        variables to set for them.
    """
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if share.gpus else {}
    if not hasattr(os, "sched_setaffinity"):
        if len(share.cores) < num_cpus():
            environment["OMP_NUM_THREADS"] = str(len(share.cores))
        yield environment
        return
    before = os.sched_getaffinity(0)  # of this thread, which a new process inherits
    os.sched_setaffinity(0, share.cores)
    try:
        yield environment
    finally:
        os.sched_setaffinity(0, before)


def _environment() -> dict[str, str]:
    """The environment, with what a process that this one starts must know."""
    source = str(Path(__file__).resolve().parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), PARENT: str(os.getpid())}


def failure(run_dir: Path, code: int, said: str = "") -> BaseException:
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
    told = said.partition(f"{run_dir}: ")[2]
    cause = told or killed
    summary = runs.read_summary(run_dir)
    # interrupted: a sibling was told to stop because of this failure, and wrote after it
    if summary.get("status") == "interrupted":
        cause = summary.get("error") or told or said or killed
    if summary.get("status") in ("pending", "running", "interrupted") and code != BAD_INPUT:
        with contextlib.suppress(OSError):  # a full disk may be what it died of
            runs.update_summary(run_dir, status="failed", error=cause)
    rank = f"rank {summary['rank']}: " if summary.get("rank") else ""
    kind = runs.Diverged if code == DIVERGED else runs.RunFailed
    return kind(f"{run_dir}: {rank}{summary.get('error', cause)}")


def _start_several(run_dir: Path, count: int) -> None:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = tempfile.mkdtemp(prefix="cvae-ranks-")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=run_dir.name,
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
        elastic_launch(config, sys.executable)(*_RANK, str(run_dir))
    except SignalException as error:
        runs.update_summary(run_dir, status="interrupted")
        raise SystemExit(128 + int(error.sigval)) from None
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode < 0:
            killed = f"killed by signal {-first.exitcode}"
            runs.update_summary(run_dir, status="failed", error=killed, rank=rank)
        said = first.message["message"] if isinstance(first.message, dict) else ""
        if first.exitcode == BAD_INPUT:
            text = runs.read_summary(run_dir).get("error") or said.partition(": ")[2]
            raise ConfigError(text) from None
        raise failure(run_dir, first.exitcode, said) from None
    finally:
        shutil.rmtree(logs, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def _rank(run_dir: Path) -> None:
    """What each of several processes does."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from cvae.training import run

    try:
        run(run_dir)
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
    *options, folder = sys.argv[1:]
    # ranks could wait for each other for ever
    die_with_parent(getattr(signal, "SIGKILL", signal.SIGTERM) if options else signal.SIGTERM)
    if not options:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    with exit_codes(Path(folder)):
        (_rank if options else launch)(Path(folder))
