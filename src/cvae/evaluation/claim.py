"""What a measurement is: a value with its unit, its standard error and its target."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_SEED = 0  # never a run's: all runs are measured with the same noise
_NUM_RESAMPLES = 200  # of the bootstrap

Values = NDArray[np.float64] | Tensor


class Metric(NamedTuple):
    """One measured quantity."""

    value: float
    unit: str = ""  # "%" for a share, of which value is the fraction; nats, bits, dims
    standard_error: float | None = None  # over images or over draws of z; None where unknown
    floor: float | None = None  # the same quantity of real images, or by chance
    at_least: float | None = None  # from cvae.evaluation.targets
    at_most: float | None = None
    floor_error: float | None = None  # standard error of the floor, for the target alone

    @classmethod
    def mean(
        cls,
        values: Values,
        unit: str = "",
        floor: float | None = None,
        independent: Values | None = None,
    ) -> "Metric":
        """Average values and find the standard error of their mean.

        Args:
            values: one an image.
            floor: the same quantity of real images, or by chance.
            independent: means over values that depend on each other; None where none do.
        """
        error = standard_error(values if independent is None else independent)
        return cls(float(values.mean()), unit, error, floor)

    @classmethod
    def share(
        cls, right: Tensor, floor: float | None = None, independent: Values | None = None
    ) -> "Metric":
        """Count the share of images that are right, each 0 or 1."""
        return cls.mean(right.double(), "%", floor, independent)

    @property
    def scale(self) -> int:
        """What values are multiplied by to be shown in the unit."""
        return 100 if self.unit == "%" else 1

    @property
    def is_met(self) -> bool | None:
        """Whether the value is within its target; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def standing(self) -> Literal["met", "near", "missed"] | None:
        """Whether the target is met; "near" within two standard errors of it, None without one."""
        if self.is_met is None:
            return None
        margin = 2 * (self.standard_error or 0.0)
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if any(abs(self.value - bound) <= margin for bound in bounds) and margin > 0:
            return "near"
        return "met" if self.is_met else "missed"


Metrics = dict[str, Metric]


class NotApplicable(Exception):  # noqa: N818 - a fact about a model, not an error
    """Why a claim says nothing about a model."""


def standard_error(values: Values) -> float:
    """Of the mean of independent values."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else 0.0


def bootstrap_error(statistic: Callable[[NDArray[np.int64]], float], size: int) -> float:
    """Standard error of a statistic of ``size`` observations, given their resampled indices."""
    rng = np.random.default_rng(_SEED)
    values = [statistic(rng.integers(0, size, size)) for _ in range(_NUM_RESAMPLES)]
    return float(np.nanstd(values))
