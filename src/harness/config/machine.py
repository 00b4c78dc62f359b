"""Counts the cores and devices of this machine and divides them among jobs, without torch."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


def num_cpus() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_no_gpu() -> bool:
    """Return whether this machine certainly has no GPU, without importing torch.

    It looks for the drivers' device files on Linux, and returns False elsewhere.
    """
    drivers = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/accel")
    return sys.platform == "linux" and not any(Path(path).exists() for path in drivers)


def device_count(devices: Any) -> int | None:
    """Return the number of devices that a setting asks for; None if it depends on the machine."""
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    try:
        count = int(devices)
    except ValueError:
        return None  # "auto", or a list written as text
    return count if count > 0 else None


class Share(NamedTuple):
    """Cores and GPUs of this machine that one job may use."""

    cores: list[int]
    gpus: list[str]


def divide_machine(count: int) -> list[Share]:
    """Divide this machine equally; jobs share no core and no GPU if there are enough."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(num_cpus()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    gpus = [str(i) for i in range(len(devices))] if visible is None else visible.split(",")
    cores_each, gpus_each = max(1, len(cores) // count), max(1, len(gpus) // count)
    return [
        Share(
            [cores[(i * cores_each + j) % len(cores)] for j in range(cores_each)],
            [gpus[(i * gpus_each + j) % len(gpus)] for j in range(gpus_each)] if gpus else [],
        )
        for i in range(count)
    ]


@contextmanager
def restrict_to_share(share: Share) -> Iterator[dict[str, str]]:
    """Restrict the processes that this thread starts to a share of the machine.

    Yields:
        environment variables to set for them.
    """
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if share.gpus else {}
    if not hasattr(os, "sched_setaffinity"):
        if len(share.cores) < num_cpus():
            environment["OMP_NUM_THREADS"] = str(len(share.cores))
        yield environment
        return
    before = os.sched_getaffinity(0)  # a new process inherits it from this thread
    os.sched_setaffinity(0, share.cores)
    try:
        yield environment
    finally:
        os.sched_setaffinity(0, before)
