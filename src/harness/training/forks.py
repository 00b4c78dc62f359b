"""Forks of this process: start one, wait for it, stop it, and end it as an interpreter ends."""

import atexit
import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from harness.contract.errors import INTERRUPTED, SIGNALS

_POLL = 0.01  # seconds
_TASKS = Path("/proc/self/task")  # one entry per thread of this process, also those of C code


class Fork:
    """Handle of a forked child process, with the methods of ``subprocess.Popen`` used here.

    Args:
        pid: process id of the child.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code of the child, negative for a signal; None while the child runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored, so the code is lost
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """Return the exit code of the child; raise TimeoutExpired after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_POLL)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the child, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL to the child."""
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[bytes] | Fork


def stop(processes: Sequence[Process], number: int, timeout: float) -> None:
    """Send a signal to each process, and SIGKILL to groups that still run after ``timeout`` s."""
    for process in processes:
        process.send_signal(number)
    deadline = time.monotonic() + timeout
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # on Windows
            process.wait()


def can_fork() -> bool:
    """Return whether this process may fork: on Linux, and with a single thread.

    A thread that holds a lock during a fork leaves it locked in the child. The threads of OpenBLAS
    do not count: they end before a fork and start again when needed.
    """
    if sys.platform != "linux":
        return False
    try:
        if len(os.listdir(_TASKS)) == 1:  # noqa: PTH208 - counts names
            return True
        if not (pid := os.fork()):
            os._exit(0)
        Fork(pid).wait()
        return len(os.listdir(_TASKS)) == 1  # noqa: PTH208
    except OSError:
        return False


def fork(function: Callable[[], object]) -> int:
    """Run a function in a fork of this process, and return the process id of the fork.

    The fork starts with the signal handlers and the random numbers of a fresh interpreter.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the fork would write the buffered text again
    # a signal that arrives before the handlers are reset would run those of the parent
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if pid := os.fork():
            return pid
        for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
            finalizer.atexit = False  # temporary folders are the parent's, which removes them
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
    if numpy := sys.modules.get("numpy"):  # Python's own random numbers are reseeded already
        numpy.random.seed()
    return run_and_exit(function)


def run_and_exit(function: Callable[[], object]) -> NoReturn:
    """Run a function, then end this process with its exit code.

    Skips only the last step of an interpreter, which frees all modules and takes a second or two.
    """
    code = 0
    try:
        function()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as at any exit
    atexit._run_exitfuncs()
    gc.collect()  # closes files that only unreachable objects hold
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
