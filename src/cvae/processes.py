"""The manners of a process that trains: how it ends, and with what exit code."""

import ctypes
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.errors import InstantiationException

from cvae import runs
from cvae.schema import ConfigError

FAILED, BAD_INPUT, DIVERGED = 1, 2, 3
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)
SIGNALS = [  # that tell a run to stop
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]
STOPPED = {128 + number for number in SIGNALS}


_SHARED_MEMORY = "/dev/shm"
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_LESS_MEMORY = {  # settings that lower the memory of an entry point
    "train": "data.batch_size, data.eval_batch_size, test_num_samples or model.network.hidden_dim",
    "generate": "num_samples",
    "evaluate": "num_samples or num_generated",
}
PARENT = "CVAE_PARENT_PID"  # the variable that tells a process who has started it


def die_with_parent(wanted: signal.Signals) -> None:
    """On Linux, send this process a signal when the one that started it is gone, or is already."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, wanted)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), wanted)


@contextmanager
def terminated_by_exception() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, where this thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stops_at_once() -> Iterator[None]:
    """Let a signal raise :class:`~cvae.runs.Stopped`, wherever nobody else listens to it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise runs.Stopped(number)

    with listening(stop):
        yield


@contextmanager
def listening(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Give a handler the signals that tell a run to stop; a thread has none to give."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            if earlier is not None:  # it was not set from Python
                signal.signal(number, earlier)


@contextmanager
def answered_within(seconds: float) -> Iterator[None]:
    """End this process where it waits for other ranks for longer; torch heeds a limit loosely."""

    def leave() -> None:  # what waits is no Python and could not be interrupted
        print(f"failed: another rank did not answer for {seconds:g} s", file=sys.stderr, flush=True)
        os._exit(FAILED)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def exit_codes(run_dir: Path) -> Iterator[None]:
    """End with a code that says how the run ended; what was refused gets a line."""
    try:
        yield
    except (ConfigError, InstantiationException) as error:
        text = runs.explained(error) if isinstance(error, InstantiationException) else str(error)
        waits = runs.read_summary(run_dir).get("status") in ("pending", "running")
        if waits and not isinstance(error, runs.Busy):
            runs.update_summary(run_dir, status="failed", error=text)
        if "RANK" not in os.environ:  # whoever started the ranks tells it once
            print(f"error: {text}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except runs.Diverged:
        sys.exit(DIVERGED)
    except runs.RunFailed:  # it stands in the summary and in the log
        sys.exit(FAILED)


def out_of_memory(error: BaseException | None, entry_point: str) -> str | None:
    """Return a line with the remedy if an error, or its cause, is a lack of memory; else None.

    Args:
        entry_point: script whose settings the line names.
    """
    while error is not None:
        text = " ".join(str(error).split())
        is_torchs = isinstance(error, RuntimeError | OSError) and _OUT_OF_MEMORY.search(text)
        if isinstance(error, MemoryError) or is_torchs:
            size = re.search(r"allocate ([\d.]+ ?\w+)", text)
            wanted = f" ({size[1]} could not be allocated)" if size else ""
            settings = _LESS_MEMORY.get(entry_point)
            return f"out of memory{wanted}: " + (
                f"lower {settings}" if settings else "free some memory"
            )
        error = error.__cause__
    return None


def check_shared_memory(data: Mapping[str, Any]) -> None:
    """Reject data workers whose batches do not fit into /dev/shm.

    Args:
        data: node of the config.

    Raises:
        ConfigError: they do not fit; torch would wait forever for the lost batches.
    """
    workers = data.get("num_workers") or 0
    sizes = [data.get(key) or 0 for key in ("batch_size", "eval_batch_size")]
    if not workers or not hasattr(os, "statvfs") or not Path(_SHARED_MEMORY).is_dir():
        return
    floats = math.prod(data.get("image_shape") or [0]) + (data.get("num_classes") or 0)
    batches = 2 * workers + 1  # the two that each worker prepares, and the one in use
    needed = batches * max(sizes) * (4 * floats + 8)  # all ranks of a machine share one batch
    room = os.statvfs(_SHARED_MEMORY)
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise ConfigError(
            f"data.num_workers={workers}: the batches of the workers need {needed / 2**20:.1f} MiB "
            f"in {_SHARED_MEMORY}, which has {free / 2**20:.1f} MiB free; use data.num_workers=0, "
            "or enlarge it (docker run --shm-size=1g)"
        )
