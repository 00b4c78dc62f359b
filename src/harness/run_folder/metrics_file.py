"""Logger that writes metrics.csv, one row each time that metrics are logged."""

import csv
import errno
import io
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from harness.contract import files


def _select_integer_columns(names: Iterable[str]) -> list[str]:
    """Return the columns of whole numbers, which come first: step, epoch and *_seen."""
    columns = list(names)
    seen = [name for name in columns if name.endswith("_seen")]
    return [name for name in ("step", "epoch", *seen) if name in columns]


class MetricsFile(Logger):
    """Logger that appends each row to metrics.csv at once, without a buffer.

    A row with new columns rewrites the file atomically, with a longer header.

    Args:
        path: the file; if it exists, rows are appended.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file), [])

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        axes = {"step": step, **{k: metrics[k] for k in _select_integer_columns(metrics)}}
        row = {**metrics, **{k: int(v) for k, v in axes.items() if v is not None}}
        if new_columns := sorted(set(row) - set(self._columns)):
            self._add_columns(new_columns)
        line = io.StringIO(newline="")
        csv.DictWriter(line, self._columns).writerow(row)
        size = self.path.stat().st_size
        try:
            with self.path.open("ab", buffering=0) as file:
                content = line.getvalue().encode()
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.truncate(self.path, size)  # remove the incomplete line
            raise files.make_write_error(self.path, error) from error

    def rewind(self, step: int) -> None:
        """Drop the rows that a run writes again after it resumes at ``step``.

        These are the rows of later steps, the rows of the test set, and an incomplete last line.
        """
        if not self._columns:
            return
        complete_lines = self.path.read_bytes().rpartition(b"\n")[0].decode()
        rows = [
            row for row in csv.DictReader(io.StringIO(complete_lines)) if None not in row.values()
        ]
        kept = [row for row in rows if int(row["step"]) <= step and not has_test_metrics(row)]
        with files.atomic_write(self.path) as file:
            writer = csv.DictWriter(lines := io.StringIO(newline=""), self._columns)
            writer.writeheader()
            writer.writerows(kept)
            file.write(lines.getvalue().encode())

    def _add_columns(self, new_columns: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self._columns:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        first = _select_integer_columns(new_columns)
        self._columns = self._columns + first + [c for c in new_columns if c not in first]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        with files.atomic_write(self.path) as file:
            file.write(table.getvalue().encode())

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing, because config.yaml holds all hyperparameters."""


def has_test_metrics(row: Mapping[str, str]) -> bool:
    return any(value and column.startswith("test/") for column, value in row.items())
