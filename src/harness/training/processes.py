"""The manners of a process that trains: how it ends, and with what exit code."""

import ctypes
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

from harness.config import science
from harness.config.instantiation import explained
from harness.contract.errors import (
    INTERRUPTED,
    SIGNALS,
    TERMINATED,
    Busy,
    ConfigError,
    RunFailed,
    Stopped,
)
from harness.run_folder.folder import RunFolder

_SHARED_MEMORY = "/dev/shm"
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
PARENT = "HARNESS_PARENT_PID"  # the variable that tells a process who has started it


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
    """Let a signal raise ``Stopped``, wherever nobody else listens to it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

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
        os._exit(RunFailed.exit_code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def exit_codes(folder: RunFolder) -> Iterator[None]:
    """End with a code that says how the run ended; what was rejected gets a line."""
    try:
        yield
    except (ConfigError, InstantiationException) as error:
        text = explained(error) if isinstance(error, InstantiationException) else str(error)
        waits = folder.reread().get("status") in ("pending", "running")
        if waits and not isinstance(error, Busy):
            folder.update(status="failed", error=text)
        if "RANK" not in os.environ:  # whoever started the ranks tells it once
            print(f"error: {text}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except RunFailed as error:  # it stands in the summary and in the log
        sys.exit(error.exit_code)


def out_of_memory(error: BaseException | None, less_memory: str | None) -> str | None:
    """Return a line with the remedy if an error, or its cause, is a lack of memory; else None.

    Args:
        less_memory: settings that the line names; None for none.
    """
    while error is not None:
        text = " ".join(str(error).split())
        is_torchs = isinstance(error, RuntimeError | OSError) and _OUT_OF_MEMORY.search(text)
        if isinstance(error, MemoryError) or is_torchs:
            size = re.search(r"allocate ([\d.]+ ?\w+)", text)
            wanted = f" ({size[1]} could not be allocated)" if size else ""
            remedy = f"lower {less_memory}" if less_memory else "free some memory"
            return f"out of memory{wanted}: {remedy}"
        error = error.__cause__
    return None


def check_shared_memory(cfg: Mapping[str, Any]) -> None:
    """Reject data workers whose batches do not fit into /dev/shm.

    Args:
        cfg: of a run.

    Raises:
        ConfigError: they do not fit; torch would wait forever for the lost batches.
    """
    data = cfg["data"]
    workers = data.get("num_workers") or 0
    sizes = [data.get(key) or 0 for key in ("batch_size", "eval_batch_size")]
    if not workers or not hasattr(os, "statvfs") or not Path(_SHARED_MEMORY).is_dir():
        return
    row = science.of_config(cfg).bytes_per_row(data)
    batches = 2 * workers + 1  # the two that each worker prepares, and the one in use
    needed = batches * max(sizes) * row  # all ranks of a machine share one batch
    room = os.statvfs(_SHARED_MEMORY)
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise ConfigError(
            f"data.num_workers={workers}: the batches of the workers need {needed / 2**20:.1f} MiB "
            f"in {_SHARED_MEMORY}, which has {free / 2**20:.1f} MiB free; use data.num_workers=0, "
            "or enlarge it (docker run --shm-size=1g)"
        )
