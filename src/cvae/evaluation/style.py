"""The latent space encodes other information, like stroke width or the angle of writing."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from cvae.evaluation.claim import Metric, Metrics, bootstrap_error, standard_error
from cvae.evaluation.morphology import FACTORS, Values
from cvae.evaluation.probes import Points
from cvae.evaluation.subject import Subject
from cvae.types import Latent

_EXTENT, _STEPS = 2.5, 11  # standard deviations of the prior to either side, and points
_NUM_STYLES = 100  # z that are moved, at most
_EPOCH = 2  # of the prior's draws


def style(subject: Subject) -> Metrics:
    """How well z tells a factor of style, steers it, and carries it from digit to digit.

    R^2 of a ridge regression from the posterior mean to the factor, means of every label taken out
    of both, learnt on training and scored on test images; Spearman's rho of the measured factor
    along the ridge direction, 11 points from -2.5 to 2.5 standard deviations, the mean over 100 z
    and all labels; and for a conditional model the correlation of the factor between digits that
    are decoded from one z, the mean over pairs of labels.
    """
    metrics: Metrics = {}
    found = ridges(subject)
    for name, ridge in found.items():
        errors, centred = ridge.test_errors**2, ridge.test_centred**2
        r2 = 1 - errors.mean() / centred.mean()
        influence = (errors - (1 - r2) * centred) / centred.mean()
        metrics[f"style/r2_{name}"] = Metric(float(r2), "", standard_error(influence))
    for name, ridge in found.items():
        rhos = _rank_correlations(subject, name, ridge.direction)
        metrics[f"style/rho_{name}"] = Metric.mean(rhos, independent=rhos.mean(axis=0))
    if not subject.model.conditional:
        return metrics
    for name, factor in subject.factors.items():
        by_label = factor.samples.reshape(len(subject.classes), -1)
        usable = by_label[:, ~np.isnan(by_label).any(axis=0)]
        metrics[f"style/correlation_{name}"] = Metric(
            mean_correlation(usable),
            "",
            bootstrap_error(lambda i, v=usable: mean_correlation(v[:, i]), usable.shape[1]),  # type: ignore[misc]
        )
    return metrics


class FactorRidge(NamedTuple):
    """A ridge regression of a factor on z, label means taken out."""

    direction: Latent  # of unit length, (1, latent_dim): along it the factor rises
    test_errors: Values
    test_centred: Values


def ridges(subject: Subject) -> dict[str, FactorRidge]:
    """One for each factor."""
    train_z = subject.train_posterior.mean[: len(subject.reference.labels)].double().numpy()
    test_z = subject.test_posterior.mean.double().numpy()
    train_y, test_y = subject.reference.labels.numpy(), subject.test.labels.numpy()
    found = {}
    for name, factor in subject.factors.items():
        in_train, in_test = ~np.isnan(factor.reference), ~np.isnan(factor.test)
        x, v, y = train_z[in_train], factor.reference[in_train], train_y[in_train]
        ridge = Ridge(alpha=1.0).fit(
            x - label_means(x, y, subject.num_classes)[y],
            v - label_means(v, y, subject.num_classes)[y],
        )
        test_x, test_v, labels = test_z[in_test], factor.test[in_test], test_y[in_test]
        centred = test_v - label_means(v, y, subject.num_classes)[labels]
        predicted = ridge.predict(test_x - label_means(x, y, subject.num_classes)[labels])
        direction = torch.from_numpy(ridge.coef_)[None].float()
        found[name] = FactorRidge(
            direction / direction.norm().clamp_min(1e-12), centred - predicted, centred
        )
    return found


def label_means(values: Values, labels: NDArray[np.int64], num_classes: int) -> Values:
    """Mean of the values of every label; of all values for a label without any."""
    means = np.repeat(values.mean(axis=0, keepdims=True), num_classes, axis=0)
    for c in np.unique(labels):
        means[c] = values[labels == c].mean(axis=0)
    return means


def mean_correlation(by_label: Values) -> float:
    """Mean Pearson correlation over all pairs of rows; a row that does not vary has none."""
    if by_label.shape[1] < 2:
        return 0.0
    varying = by_label[np.ptp(by_label, axis=1) > 0]
    if len(varying) < 2:
        return 0.0
    return float(np.corrcoef(varying)[np.triu_indices(len(varying), k=1)].mean())


def moved(z: Points, direction: Points) -> Points:
    """Every z at the 11 points of the direction, its own share of that direction taken out.

    Points of one z lie together, from -2.5 to 2.5.
    """
    steps = torch.linspace(-_EXTENT, _EXTENT, _STEPS)
    rest = z - (z @ direction.T) * direction
    return (rest[:, None] + steps[:, None] * direction).flatten(0, 1)


def _rank_correlations(subject: Subject, name: str, direction: Latent) -> Values:
    """Spearman's rho between the step along the direction and the factor, (labels, styles)."""
    count = min(_NUM_STYLES, subject.num_generated)
    z = moved(subject.prior_draws(count, _EPOCH), direction)
    found = []
    labels = subject.classes.tolist() if subject.model.conditional else [0]
    for i, c in enumerate(labels):
        subject.progress(f"moving along {name}", i / len(labels))
        images = subject.decode(z, torch.full((len(z),), c))
        values = FACTORS[name](images).reshape(-1, _STEPS)
        found.append([_rho(row) for row in values])
    return np.array(found)


def _rho(values: Values) -> float:
    """Of values that do not change, or that are not there, 0: nothing was steered."""
    if np.isnan(values).any() or np.ptp(values) == 0:
        return 0.0
    return float(spearmanr(np.arange(len(values)), values).statistic)
