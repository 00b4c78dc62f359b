"""Exceptions that end a command, and their exit codes. Imports no torch.

====  ==================================================================================
code  meaning
====  ==================================================================================
0     success
1     :class:`RunFailed`, and any other exception
2     :class:`ConfigError`: an invalid setting, file or machine
3     :class:`Diverged`: a loss or gradient was not finite
130   interrupted (Ctrl-C)
128+n :class:`Stopped` by signal n: 143 for SIGTERM, 138 for SIGUSR1; 141 for a closed pipe
====  ==================================================================================
"""

import signal

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)
SIGNALS = [  # signals that stop a run
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]
STOPPED = {128 + number for number in SIGNALS}


class ConfigError(Exception):
    """A setting, a file or a machine is invalid; the message says what to change."""

    exit_code = 2


class DataError(ConfigError):
    """The data are missing or damaged; the message says what to do."""


class Busy(ConfigError):  # noqa: N818
    """Another process is training this run."""


class RunFailed(Exception):  # noqa: N818
    """A run failed; its log and the terminal show the cause."""

    exit_code = 1


class Diverged(RunFailed):
    """A loss or gradient was not finite; the weights were not updated with it."""

    exit_code = 3


class NotFiniteError(FloatingPointError):
    """A loss or gradient is not finite.

    Args:
        step: optimizer steps taken before it.
    """

    def __init__(self, step: int) -> None:
        super().__init__(
            f"loss or gradient not finite at step {step} (weights not updated): lower "
            "optimizer.lr or trainer.gradient_clip_val, or set trainer.precision=32-true"
        )


class Stopped(BaseException):  # so that no library's "except Exception" catches it
    """A signal stopped the run.

    A run that was training with checkpoints has saved its state, unless its data workers stalled.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class RunPruned(Exception):  # noqa: N818
    """A search stopped a run that fell behind the others."""
