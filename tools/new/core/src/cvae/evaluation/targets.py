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


TARGETS: Mapping[str, Target] = {  # * stands for K
    "test/generative_accuracy_k*": Target(at_least=0.985),
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
