"""A measured metric: its value, unit, standard error and target."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_SEED = 0  # not the run's seed, so that all runs are measured with the same noise
_NUM_RESAMPLES = 200  # bootstrap

Values = NDArray[np.float64] | Tensor
Progress = Callable[[str, float], None]  # takes the current step and the fraction done


class Metric(NamedTuple):
    """One measured quantity."""

    value: float
    unit: str = ""  # nats, bits, dims, or "%" with value as a fraction
    standard_error: float | None = None  # over images or samples of z; None if unknown
    floor: float | None = None  # reference: the value of real images, or chance
    at_least: float | None = None  # from cvae.evaluation.targets
    at_most: float | None = None
    floor_error: float | None = None  # standard error of the floor; only a target uses it

    @classmethod
    def mean(
        cls,
        values: Values,
        unit: str = "",
        floor: float | None = None,
        independent_means: Values | None = None,
    ) -> "Metric":
        """Return the mean of values with its standard error.

        Args:
            values: one per image.
            floor: the value of real images, or chance.
            independent_means: means over groups of dependent values; None for independent values.
        """
        error = standard_error(values if independent_means is None else independent_means)
        return cls(float(values.mean()), unit, error, floor)

    @classmethod
    def share(
        cls, is_correct: Tensor, floor: float | None = None, independent_means: Values | None = None
    ) -> "Metric":
        """Return the share of images that are correct, with its standard error."""
        return cls.mean(is_correct.double(), "%", floor, independent_means)

    @classmethod
    def r2(cls, errors: Values, centered: Values, floor: float | None = None) -> "Metric":
        """Return R², with a standard error from the influence of each image.

        Args:
            errors: squared errors of the predictions.
            centered: squared deviations of the values from their mean.
            floor: the value of a constant prediction.
        """
        r2 = 1 - errors.mean() / centered.mean()
        influence = (errors - (1 - r2) * centered) / centered.mean()
        return cls(float(r2), "", standard_error(influence), floor)

    @property
    def scale(self) -> int:
        """Factor that converts the value to its unit for display."""
        return 100 if self.unit == "%" else 1

    @property
    def is_met(self) -> bool | None:
        """True if the value is within its target; None without a target."""
        if self.at_least is None and self.at_most is None:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def status(self) -> Literal["met", "near", "missed"] | None:
        """Comparison with the target: "near" within two standard errors, None without a target."""
        if self.is_met is None:
            return None
        margin = 2 * (self.standard_error or 0.0)
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if any(abs(self.value - bound) <= margin for bound in bounds) and margin > 0:
            return "near"
        return "met" if self.is_met else "missed"


Metrics = dict[str, Metric]


class NotApplicable(Exception):  # noqa: N818 - a fact about a model, not an error
    """A claim does not apply to a model; the message is the reason."""


def standard_error(values: Values) -> float:
    """Return the standard error of the mean of independent values."""
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    return float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else 0.0


def bootstrap_error(statistic: Callable[[NDArray[np.int64]], float], size: int) -> float:
    """Return the bootstrap standard error of a function of the indices of ``size`` observations."""
    rng = np.random.default_rng(_SEED)
    values = [statistic(rng.integers(0, size, size)) for _ in range(_NUM_RESAMPLES)]
    return float(np.nanstd(values))
