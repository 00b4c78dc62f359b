"""Conditions y: known properties of an image, as a float vector of named parts.

The data module writes y, in the units of the data, into :class:`cvae.types.Batch`. The model passes
``condition(y)`` to its networks and its prior.

To add a condition, write a class with the attributes and methods of :class:`ConditionSpec` and name
it in ``_target_`` of a YAML file in conf/data/condition/.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cvae.settings import column_problems
from cvae.types import Condition
from harness.contract.settings import Count, Size

_MAX_ROUNDING = 1e-3  # rounding error of float32, in standard deviations of an attribute
_MARGIN = 0.01  # tolerance at both ends of the training range, as a fraction of its width
Values = Tensor | NDArray[Any] | Sequence[Any] | np.generic | float | int
# a mapping from parts to values; or a label, one label per row, or one-hot rows; or rows of y
Labels = Values | Mapping[str, Values]


class Part(NamedTuple):
    """One part of a condition: columns ``start`` to ``start + size`` of y."""

    kind: Literal["categorical", "continuous", "image"]
    start: int
    size: int  # categorical: number of classes; continuous: 1; image: channels x given pixels

    def select(self, y: Condition) -> Tensor:
        """Return the class (int64) or the value (float) of each row; not for an image."""
        assert self.kind != "image"
        columns = y[:, self.start : self.start + self.size]
        return columns.argmax(1) if self.kind == "categorical" else columns[:, 0]


@runtime_checkable
class ConditionSpec(Protocol):
    """Meaning and encoding of y, for properties of the whole image.

    To condition on a part of the image, use :class:`cvae.given_pixels.Quadrants`.
    """

    size: int  # length of y
    embedding_size: int  # length of the vector that networks and priors take
    parts: Mapping[str, Part]

    def encode(self, y: Labels, rows: Tensor) -> Condition:
        """Return y for each row, (rows, size), from the values that a user writes.

        Args:
            y: for each part, one value for all rows or one per row; or rows of y.
            rows: the images or latents that y belongs to. The result has their number, type and
                device.

        Raises:
            ValueError: a name is unknown, a value is out of range, or the numbers of values and
                rows differ.
        """
        ...

    def from_columns(self, columns: Mapping[str, Values]) -> Condition:
        """Return y of each image, (images, size), from the columns of the data set.

        Args:
            columns: ``label`` and the attributes of the data set, each with one value per image.

        Raises:
            ValueError: a column is missing, or has wrong values.
        """
        ...

    def fit(self, y: Condition) -> None:
        """Set statistics such as means from y of the training images, (images, size)."""
        ...

    def examples(self, count: int) -> Condition:
        """Return y of ``count`` possible images, (count, size), all different if possible."""
        ...

    def __call__(self, y: Condition) -> Condition:
        """Return the vectors that networks and priors take, (batch, embedding_size)."""
        ...


def to_tensor(
    y: Values, name: str = "y", allowed: str = "integer labels or one-hot rows"
) -> Tensor:
    """Convert values that a user writes to a tensor.

    Raises:
        ValueError: the values are not numbers.
    """
    try:
        return torch.as_tensor(np.array(y) if isinstance(y, np.ndarray) else y)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} of type {type(y).__name__}: must be {allowed}") from None


def one_hot(y: Values, num_classes: int, rows: Tensor) -> Condition:
    """Return a one-hot label for each row.

    One-hot tensors of the type and device of ``rows`` are returned unchanged, without a copy or a
    GPU synchronization.

    Args:
        y: one integer for all rows, one integer per row, or one-hot rows.
        rows: the images or latents that the labels belong to.

    Raises:
        ValueError: a label is out of range, or there is not one label per row.
    """
    y, expected = to_tensor(y), (rows.shape[0], num_classes)
    if not y.is_floating_point() and y.ndim < 2:
        y = _encode_integers(y.to(rows.device).long(), *expected)
    y = y.to(rows)
    if y.shape != expected:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, not {expected}: "
            f"must be integers from 0 to {num_classes - 1} or one-hot rows"
        )
    return y


def _encode_integers(labels: Tensor, count: int, num_classes: int, name: str = "y") -> Tensor:
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"{name}={int(outside[0])}: labels must be from 0 to {num_classes - 1}")
    if labels.ndim == 1 and len(labels) != count:
        raise ValueError(f"{name} has {len(labels)} labels for {count} rows: must be one per row")
    return F.one_hot(labels.expand(count), num_classes)


def count_rows(y: Labels | None) -> int | None:
    """Return the number of rows that y implies; None if y has one value for all rows."""
    if isinstance(y, Mapping):
        counts = (count_rows(values) for values in y.values())
        return next((count for count in counts if count is not None), None)
    if y is None:
        return None
    values = to_tensor(y)
    is_one = values.ndim == 0 or (values.ndim == 4 and len(values) == 1)  # a label, or an image
    return None if is_one else len(values)


class OneHot(nn.Module):
    """One class label, as a one-hot vector.

    Example::

        images = model.sample(y=7, num_samples=10)  # or y={"label": 7}

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: Size) -> None:
        super().__init__()
        self.size = self.embedding_size = num_classes
        self.parts: Mapping[str, Part] = {"label": Part("categorical", 0, num_classes)}

    def encode(self, y: Labels, rows: Tensor) -> Condition:
        if isinstance(y, Mapping):
            _check_names(y, self.parts, lambda name: f"0 to {self.size - 1}")
            y = y["label"]
        return one_hot(y, self.size, rows)

    def from_columns(self, columns: Mapping[str, Values]) -> Condition:
        labels = to_tensor(columns["label"])
        return one_hot(labels, self.size, torch.zeros(len(labels), 1))

    def fit(self, y: Condition) -> None: ...

    def examples(self, count: int) -> Condition:
        return torch.eye(self.size)[torch.arange(count) % self.size]

    def forward(self, y: Condition) -> Condition:
        return y


class Attributes(nn.Module):
    """Several named attributes at once, each categorical or continuous.

    y holds a categorical attribute as a one-hot vector and a continuous one in the unit of the
    data. Networks take continuous attributes standardized by the mean and standard deviation of the
    training values. Checkpoints keep these and the range of the training values.

    Example::

        condition = Attributes({"digit": 10, "angle": "continuous"})
        images = model.sample(y={"digit": 7, "angle": 30.0}, num_samples=10)

    Args:
        columns: for each attribute, its number of classes or "continuous".
    """

    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    is_fitted: Tensor

    def __init__(self, columns: Mapping[str, Count | Literal["continuous"]]) -> None:
        super().__init__()
        if problems := list(column_problems(columns)):
            raise ValueError(f"columns{problems[0]}")
        self.parts: Mapping[str, Part] = dict(_make_parts(columns))
        self.size = self.embedding_size = sum(part.size for part in self.parts.values())
        # EMA averages the buffers with the weights, so they must be finite
        for name, value in (("shift", 0.0), ("scale", 1.0), ("low", 0.0), ("high", 0.0)):
            self.register_buffer(name, torch.full((self.size,), value))
        self.register_buffer("is_fitted", torch.zeros(()))

    def encode(self, y: Labels, rows: Tensor) -> Condition:
        if not isinstance(y, Mapping):
            if not isinstance(y, Tensor):
                y = to_tensor(y, allowed=f"a value for each of {self._describe_parts()}")
            vectors = y.to(rows)
            if vectors.shape != (rows.shape[0], self.size):
                raise ValueError(
                    f"y has shape {tuple(vectors.shape)}: must be a mapping of "
                    f"{self._describe_parts()}, "
                    f"or rows of shape {(rows.shape[0], self.size)} as in a batch"
                )
            return vectors
        _check_names(y, self.parts, self.describe_range)
        columns = [self._encode_part(name, y[name], rows) for name in self.parts]
        if self.is_fitted:
            for name, column in zip(self.parts, columns, strict=True):
                self._check_range(name, column)
        return torch.cat(columns, dim=1)

    def _encode_part(self, name: str, value: Values, rows: Tensor) -> Tensor:
        """Return one part of y, for each row."""
        part, count = self.parts[name], len(rows)
        kind = "an integer" if part.kind == "categorical" else "a number"
        values = to_tensor(value, name, kind)
        if values.ndim > 1 or (values.ndim == 1 and len(values) != count):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}: must be one value or {count} values"
            )
        if part.kind == "categorical":
            if values.is_floating_point():
                example = float(values.flatten()[0])
                raise ValueError(
                    f"{name}={example:g}: must be an integer, {self.describe_range(name)}"
                )
            return _encode_integers(values.to(rows.device).long(), count, part.size, name).to(rows)
        return values.to(rows).expand(count)[:, None]

    def _check_range(self, name: str, column: Tensor) -> None:
        if self.parts[name].kind == "categorical":
            return
        low, high = self.training_range(name)
        margin = _MARGIN * (high - low)
        outside = column[~((column >= low - margin) & (column <= high + margin))]
        if len(outside):
            raise ValueError(f"{name}={float(outside[0]):g}: must be {self.describe_range(name)}")

    def describe_range(self, name: str) -> str:
        """Return the range of a part, as text."""
        part = self.parts[name]
        if part.kind == "categorical":
            return f"0 to {part.size - 1}"
        low, high = self.training_range(name)
        return f"{low:.3g} to {high:.3g}" if self.is_fitted else "a number"

    def training_range(self, name: str) -> tuple[float, float]:
        """Return the smallest and the largest training value of a continuous part."""
        start = self.parts[name].start
        return float(self.low[start]), float(self.high[start])

    def _describe_parts(self) -> str:
        return ", ".join(f"{name} ({self.describe_range(name)})" for name in self.parts)

    def from_columns(self, columns: Mapping[str, Values]) -> Condition:
        if absent := [name for name in self.parts if name not in columns]:
            raise ValueError(f"no attribute {absent[0]}: must be one of {', '.join(columns)}")
        rows, parts = torch.zeros(len(to_tensor(columns[next(iter(self.parts))])), 1), []
        for name, part in self.parts.items():
            column = self._encode_part(name, columns[name], rows)
            if part.kind == "continuous":
                _check_precision(name, to_tensor(columns[name]).double(), column[:, 0].double())
            parts.append(column)
        return torch.cat(parts, dim=1)

    def fit(self, y: Condition) -> None:
        for part in self.parts.values():
            if part.kind == "continuous":
                values, column = y[:, part.start].double(), part.start
                std = values.std(correction=0)
                self.shift[column] = values.mean()
                self.scale[column] = torch.where(std > 0, std, 1.0)
                self.low[column], self.high[column] = values.min(), values.max()
        self.is_fitted.fill_(1.0)

    def examples(self, count: int) -> Condition:
        columns: dict[str, Values] = {}
        for name, part in self.parts.items():
            if part.kind == "categorical":
                columns[name] = torch.arange(count) % part.size
            else:
                columns[name] = torch.linspace(*self.training_range(name), count)
        return self.from_columns(columns)

    def forward(self, y: Condition) -> Condition:
        return (y - self.shift) / self.scale


def _check_precision(name: str, values: Tensor, rounded: Tensor) -> None:
    """Check that values are finite and that float32 resolves their differences.

    Raises:
        ValueError: a value is not finite, or the values vary too little for float32.
    """
    if not rounded.isfinite().all():
        raise ValueError(f"{name} has values that are not finite numbers in float32: replace them")
    error, spread = (rounded - values).abs().max(), values.std(correction=0)
    if spread > 0 and error > _MAX_ROUNDING * spread:
        raise ValueError(
            f"{name} varies by {float(spread):.3g} about {float(values.mean()):.6g}, too little "
            "for float32: subtract a constant"
        )


def _make_parts(columns: Mapping[str, Any]) -> Iterator[tuple[str, Part]]:
    start = 0
    for name, classes in columns.items():
        part = Part("continuous", start, 1)
        if classes != "continuous":
            part = Part("categorical", start, classes)
        yield name, part
        start += part.size


def _check_names(values: Mapping[str, Any], parts: Mapping[str, Part], describe: Any) -> None:
    known = ", ".join(f"{name} ({describe(name)})" for name in parts)
    for name in values:
        if name not in parts:
            raise ValueError(f"y has no part {name}: must be {known}")
    for name in parts:
        if name not in values:
            raise ValueError(f"y lacks {name}: must have {known}")
