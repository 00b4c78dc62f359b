"""Signal handling, exit codes and memory checks of a training process."""

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
from harness.config.instantiation import explain_hydra_error
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
PARENT_VARIABLE = "HARNESS_PARENT_PID"  # variable that holds the process id of the parent


def die_with_parent(number: signal.Signals) -> None:
    """Send the signal ``number`` to this process once its parent has ended, on Linux only."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)
        if os.environ.get(PARENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), number)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def raise_on_stop_signal() -> Iterator[None]:
    """Raise ``Stopped`` on a stop signal, unless the body installs another handler."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with handle_stop_signals(stop):
        yield


@contextmanager
def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install a handler for the stop signals; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            if earlier is not None:  # None is a handler that was not set from Python
                signal.signal(number, earlier)


@contextmanager
def exit_after(seconds: float) -> Iterator[None]:
    """End this process if the body takes longer, because torch may exceed its own timeouts."""

    def exit_now() -> None:  # os._exit, because an exception cannot interrupt waiting C++ code
        print(f"failed: another rank did not answer for {seconds:g} s", file=sys.stderr, flush=True)
        os._exit(RunFailed.exit_code)

    timer = threading.Timer(seconds, exit_now)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def exit_with_code(folder: RunFolder) -> Iterator[None]:
    """Exit with the code of the error, if there is one; print one line for invalid settings."""
    try:
        yield
    except (ConfigError, InstantiationException) as error:
        text = (
            explain_hydra_error(error) if isinstance(error, InstantiationException) else str(error)
        )
        is_unfinished = folder.reread().get("status") in ("pending", "running")
        if is_unfinished and not isinstance(error, Busy):
            folder.update(status="failed", error=text)
        if "RANK" not in os.environ:  # for ranks, the process that started them prints it once
            print(f"error: {text}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except RunFailed as error:  # the summary and the log have the reason
        sys.exit(error.exit_code)


def explain_out_of_memory(error: BaseException | None, less_memory: str | None) -> str | None:
    """Return a line with the remedy if an error or its cause is a lack of memory, else None.

    Args:
        less_memory: settings to lower, named in the line; None if there are none.
    """
    while error is not None:
        text = " ".join(str(error).split())
        is_torch_error = isinstance(error, RuntimeError | OSError) and _OUT_OF_MEMORY.search(text)
        if isinstance(error, MemoryError) or is_torch_error:
            size = re.search(r"allocate ([\d.]+ ?\w+)", text)
            size_text = f" ({size[1]} could not be allocated)" if size else ""
            remedy = f"lower {less_memory}" if less_memory else "free some memory"
            return f"out of memory{size_text}: {remedy}"
        error = error.__cause__
    return None


def check_shared_memory(cfg: Mapping[str, Any]) -> None:
    """Raise if the batches of the data workers do not fit into /dev/shm.

    Args:
        cfg: the config of a run.

    Raises:
        ConfigError: they do not fit; torch would wait forever for the lost batches.
    """
    data = cfg["data"]
    workers = data.get("num_workers") or 0
    sizes = [data.get(key) or 0 for key in ("batch_size", "eval_batch_size")]
    if not workers or not hasattr(os, "statvfs") or not Path(_SHARED_MEMORY).is_dir():
        return
    row = science.of_config(cfg).bytes_per_row(data)
    batches = 2 * workers + 1  # two prefetched by each worker, and the one in use
    needed = batches * max(sizes) * row  # the ranks of a machine share each global batch
    file_system = os.statvfs(_SHARED_MEMORY)
    free = file_system.f_bavail * file_system.f_frsize
    if needed > free:
        raise ConfigError(
            f"data.num_workers={workers}: the batches of the workers need {needed / 2**20:.1f} MiB "
            f"in {_SHARED_MEMORY}, which has {free / 2**20:.1f} MiB free; use data.num_workers=0, "
            "or enlarge it (docker run --shm-size=1g)"
        )
