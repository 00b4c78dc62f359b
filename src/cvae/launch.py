"""One process or several: a run starts from its archived config alone.

A single run on one device trains in this process. Several devices, and every job of a sweep, train
in fresh processes that read nothing but the run folder: no argument, environment or process group
leaks from one job to the next.
"""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from cvae import runs
from cvae.schema import ConfigError, device_count, num_cpus

_WORKER = ("-m", "cvae.training")


def launch(run_dir: Path, fresh: bool = False) -> float | None:
    """Train what the folder's config describes; the value of the monitored metric.

    Args:
        run_dir: an archived run.
        fresh: always start a process, as for a job of a sweep.
    """
    cfg = runs.load_config(run_dir)
    count = num_processes(cfg.trainer.accelerator, cfg.trainer.devices)
    if count == 1 and not fresh:
        from cvae.training import run

        run(run_dir)
    elif count == 1:
        _start_one(run_dir)
    else:
        _start_several(run_dir, count)
    return runs.read_summary(run_dir).get("objective")


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


def _environment() -> dict[str, str]:
    """The environment, with this package importable in the new process."""
    source = str(Path(__file__).resolve().parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _start_one(run_dir: Path) -> None:
    process = subprocess.Popen([sys.executable, *_WORKER, str(run_dir)], env=_environment())
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        code = process.wait()
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit):
            process.terminate()
        try:
            process.wait(timeout=1)  # Ctrl-C reached it as well
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise _failure(run_dir, code)


def _failure(run_dir: Path, code: int) -> Exception:
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    summary = runs.read_summary(run_dir)
    if summary.get("status") == "running":
        runs.update_summary(run_dir, status="failed", error=f"ended with code {code}")
    rank = f"rank {summary['rank']}: " if summary.get("rank") else ""
    return runs.RunFailed(f"{run_dir}: {rank}{summary.get('error', f'ended with code {code}')}")


def _start_several(run_dir: Path, count: int) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # _failure tells
    before = dict(os.environ)
    os.environ.update(_environment())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        elastic_launch(config, sys.executable)(*_WORKER, str(run_dir))
    except SignalException as error:
        code = 128 + int(error.sigval)
        runs.update_summary(run_dir, status="interrupted", error=f"signal {int(error.sigval)}")
        raise SystemExit(code) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            killed = f"killed by signal {-failure.exitcode}"
            runs.update_summary(run_dir, status="failed", error=killed, rank=rank)
        raise _failure(run_dir, failure.exitcode) from None
    finally:
        os.environ.clear()
        os.environ.update(before)
