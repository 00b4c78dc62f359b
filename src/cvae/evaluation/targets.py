"""Target values of the default CVAE on MNIST, by metric."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from cvae.evaluation.claim import Metric, Metrics

Bound = float | Callable[[Metric], float]  # a number, or a function of the measured metric


class Target(NamedTuple):
    """Range of good values, in the unit of the metric; shares are fractions, not percent."""

    at_least: Bound | None = None
    at_most: Bound | None = None


def _eighty_percent_of_floor(metric: Metric) -> float:
    """Return 80 % of the value of real images."""
    assert metric.floor is not None
    return 0.8 * metric.floor


def _two_errors_above_floor(metric: Metric) -> float:
    """Return the value of real data plus two standard errors."""
    assert metric.floor is not None
    assert metric.floor_error is not None
    return metric.floor + 2 * metric.floor_error


TARGETS: Mapping[str, Target] = {  # * stands for K
    "test/generative_accuracy_k*": Target(at_least=0.985),
    "samples/label_agreement": Target(at_least=0.99),
    "samples/label_agreement_drawn": Target(at_least=0.98),
    "samples/label_agreement_worst": Target(at_least=0.97),
    "samples/cas": Target(at_least=0.97),
    "samples/recall": Target(at_least=_eighty_percent_of_floor),
    "samples/coverage": Target(at_least=_eighty_percent_of_floor),
    "samples/sd_thickness_ratio": Target(at_least=0.85, at_most=1.15),
    "samples/sd_slant_ratio": Target(at_least=0.85, at_most=1.15),
    "style/r2_thickness": Target(at_least=0.90),
    "style/r2_slant": Target(at_least=0.85),
    "style/rho_thickness": Target(at_least=0.95),
    "style/rho_slant": Target(at_least=0.95),
    "style/correlation_thickness": Target(at_least=0.7),
    "style/correlation_slant": Target(at_least=0.6),
    "latent/label_accuracy_logistic": Target(at_most=0.20),
    # test digits have other writers, so even a perfect encoder leaves a gap to the z of
    # training images
    "latent/mmd_ratio": Target(at_most=_two_errors_above_floor),
    "latent/mmd_ratio_train": Target(at_most=1.5),
    "latent/normal_accuracy": Target(at_most=0.62),
    "oracle/accuracy": Target(at_least=0.993),
}


def add_targets(metrics: Metrics) -> Metrics:
    """Return the metrics, with the target of each that has one in :data:`TARGETS`."""
    return {name: _with_target(name, metric) for name, metric in metrics.items()}


def _with_target(name: str, metric: Metric) -> Metric:
    for pattern, target in TARGETS.items():
        if fnmatchcase(name, pattern):
            low, high = (bound(metric) if callable(bound) else bound for bound in target)
            return metric._replace(at_least=low, at_most=high)
    return metric
