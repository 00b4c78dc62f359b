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

    They are int64 if all values are whole numbers, else float64.

    The first line of the CSV file names the columns: ``file``, the path of an image relative to the
    folder of the CSV file, and one column for each attribute.

    Raises:
        DataError: the file is unreadable, lacks an image, or holds anything but numbers.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            names = [name for name in columns if name != _FILE]
            rows = {row.get(_FILE): (reader.line_num, row) for row in reader}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None
    if _FILE not in columns or not names:
        raise DataError(f"{path}: must have a column {_FILE} and a column for each attribute")
    values: dict[str, list[float]] = {name: [] for name in names}
    for image in files:
        if image not in rows:
            raise DataError(f"{path}: no row for {image}")
        line, row = rows[image]
        for name in names:
            try:
                values[name].append(float(row[name]))
            except (TypeError, ValueError):
                raise DataError(
                    f"{path}: line {line}: {name}={row[name]}: must be a number"
                ) from None
    return {name: _whole_as_int(np.array(column)) for name, column in values.items()}


def _whole_as_int(values: NDArray[np.float64]) -> NDArray[Any]:
    """Return whole numbers as integers, which a categorical attribute must be."""
    is_whole = np.isfinite(values).all() and (values == np.floor(values)).all()
    return values.astype(np.int64) if is_whole else values
