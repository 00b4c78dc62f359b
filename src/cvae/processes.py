"""The manners of a process that trains: how it ends, and with what exit code."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

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
