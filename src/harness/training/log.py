"""Logging of a run to the terminal and to train.log."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.logging import RichHandler

from harness.run_folder.folder import LOG
from harness.run_folder.trust import resolve_inside

_HARNESS = __name__.partition(".")[0]
_LIGHTNING_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")
_VERBOSE_LOGGERS = (  # they log normal events at INFO
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators",
    "lightning.fabric",
)


class _LogFile(logging.FileHandler):
    """Handler for train.log that drops lines on a full disk; writing metrics.csv then fails."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop the record, where logging would print a traceback."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextmanager
def log_to_folder(run_dir: Path, rank: int) -> Iterator[None]:
    """Log to the terminal and to train.log: messages of rank zero, warnings of all ranks."""
    file = _LogFile(resolve_inside(run_dir, LOG), encoding="utf-8", errors="backslashreplace")
    file.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    handlers: list[logging.Handler] = [file]
    if rank == 0:
        if sys.stdout.isatty():
            handlers.append(RichHandler(show_path=False, show_level=False, show_time=False))
        else:
            handlers.append(logging.StreamHandler(sys.stdout))
        handlers[1].setLevel(logging.INFO)
    names = dict.fromkeys(("", _HARNESS, *_LIGHTNING_LOGGERS, *_VERBOSE_LOGGERS))
    loggers = {name: logging.getLogger(name) for name in names}
    before = {k: (g.handlers, g.level, g.propagate) for k, g in loggers.items()}
    for name, logger in loggers.items():
        logger.handlers, logger.propagate = ([] if name else handlers), True
    loggers[""].setLevel(logging.INFO if rank == 0 else logging.WARNING)
    loggers[_HARNESS].setLevel(logging.DEBUG if rank == 0 else logging.WARNING)
    for name in _VERBOSE_LOGGERS:
        loggers[name].setLevel(logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for name, (handlers_before, level, propagate) in before.items():
            logger = loggers[name]
            logger.handlers, logger.propagate = handlers_before, propagate
            logger.setLevel(level)
        file.close()
