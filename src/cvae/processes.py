"""The manners of a process that trains: how it ends, and with what exit code."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import InstantiationException

from cvae import runs
from cvae.schema import ConfigError

FAILED, BAD_INPUT, DIVERGED = 1, 2, 3
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)
STOPPED = {INTERRUPTED, TERMINATED, 128 + getattr(signal, "SIGUSR1", 0)}  # told to, and saved


PARENT = "CVAE_PARENT_PID"  # the variable that tells a process who has started it


def die_with_parent(wanted: signal.Signals) -> None:
    """On Linux, send this process a signal when the one that started it is gone, or is already."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, wanted)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), wanted)


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
