"""Read the attributes of image files from a CSV file next to them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.contract.errors import DataError

_FILE = "file"  # the column of paths


def read_attributes(path: Path, files: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the values of each attribute, (N,), in the order of the files.

    An attribute is int64 if all its values are whole numbers, else float64.

    The first line of the CSV file names the columns: ``file``, the path of an image relative to the
    folder of the CSV file, and one column for each attribute.

    Raises:
        DataError: the file is unreadable, a column or row is missing or repeated, an attribute is
            named label, or a value is not a number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(i, line) for i, line in enumerate(csv.reader(file, strict=True), 1) if line]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None
    columns = [name.strip() for name in lines[0][1]] if lines else []
    names = [name for name in columns if name != _FILE]
    if _FILE not in columns or not names:
        raise DataError(f"{path}: must have a column {_FILE} and a column for each attribute")
    for name in columns:
        if not name or columns.count(name) > 1:
            raise DataError(f"{path}: the column {name!r} is empty or repeated: rename it")
    if "label" in names:
        raise DataError(f"{path}: the folders are the labels: rename the column label")
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    for number, cells in lines[1:]:
        row = dict(zip(columns, cells, strict=False))
        if len(cells) != len(columns):
            raise DataError(f"{path}: line {number}: {len(cells)} cells, not {len(columns)}")
        if row[_FILE] in rows:
            raise DataError(f"{path}: line {number}: {row[_FILE]} appears twice: remove a row")
        rows[row[_FILE]] = number, row
    values: dict[str, list[float]] = {name: [] for name in names}
    for image in files:
        if image not in rows:
            raise DataError(f"{path}: no row for {image}")
        number, row = rows[image]
        for name in names:
            values[name].append(_to_number(row[name], f"{path}: line {number}: {name}"))
    return {name: _to_int_if_whole(np.array(column)) for name, column in values.items()}


def _to_number(cell: str, location: str) -> float:
    try:
        if "_" in cell:  # Python reads 1_5 as 15
            raise ValueError
        return float(cell)
    except ValueError:
        raise DataError(f"{location}={cell}: must be a number") from None


def _to_int_if_whole(values: NDArray[np.float64]) -> NDArray[Any]:
    """Convert to int64 if all values are whole; categorical attributes must be integers."""
    is_whole = (np.abs(values) < 2**53).all() and (values == np.floor(values)).all()
    return values.astype(np.int64) if is_whole else values
