"""Claim: z encodes style, such as stroke thickness and slant."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from cvae import directions, figures
from cvae.directions import label_means
from cvae.evaluation.claim import Metric, Metrics, bootstrap_error
from cvae.evaluation.probes import Points
from cvae.evaluation.sampled import SampledSubject
from cvae.evaluation.subject import reject_attributes
from cvae.morphology import FACTORS, Values
from cvae.types import Latent

_EXTENT, _STEPS = 2.5, 11  # traversals: -2.5 to 2.5 standard deviations of the prior, in 11 steps
_NUM_STYLES = 100  # z to traverse, at most
_EPOCH = 2  # epoch key of the prior noise; samples use 0, classification_accuracy uses 1


def style(subject: SampledSubject) -> Metrics:
    """Return how well z predicts a factor of style, controls it, and transfers it between labels.

    ``r2`` is R^2 of a ridge regression from the posterior mean to the factor, both centered per
    label, fitted on training and scored on test images. ``rho`` is Spearman's rho of the measured
    factor along the ridge direction, at 11 points from -2.5 to 2.5 standard deviations, averaged
    over 100 z and all labels. ``correlation``, for conditional models only, compares the factor
    between digits that are decoded from the same z, averaged over pairs of labels.

    Raises:
        NotApplicable: the images have color, or the condition is not one label.
    """
    reject_attributes(subject)
    metrics: Metrics = {}
    fits = fit_ridges(subject)
    for name, ridge in fits.items():
        errors, centered = ridge.test_errors**2, ridge.test_centered**2
        metrics[f"style/r2_{name}"] = Metric.r2(errors, centered)
    for name, ridge in fits.items():
        rhos = _rank_correlations(subject, name, ridge.direction)
        metrics[f"style/rho_{name}"] = Metric.mean(rhos, independent_means=rhos.mean(axis=0))
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
    """Ridge regression of a factor on z, both centered per label."""

    direction: Latent  # in which the factor rises; unit length, (1, latent_dim)
    test_errors: Values
    test_centered: Values


def fit_ridges(subject: SampledSubject) -> dict[str, FactorRidge]:
    """Return the ridge regression of every factor."""
    train_z = subject.train_posterior.mean[: len(subject.reference.labels)].double().cpu().numpy()
    test_z = subject.test_posterior.mean.double().cpu().numpy()
    train_y, test_y = subject.reference.labels.cpu().numpy(), subject.test.labels.cpu().numpy()
    fits = {}
    for name, factor in subject.factors.items():
        known_train, known_test = ~np.isnan(factor.reference), ~np.isnan(factor.test)
        x, v, y = train_z[known_train], factor.reference[known_train], train_y[known_train]
        ridge = Ridge(alpha=1.0).fit(
            x - label_means(x, y, subject.num_classes)[y],
            v - label_means(v, y, subject.num_classes)[y],
        )
        test_x, test_v, labels = test_z[known_test], factor.test[known_test], test_y[known_test]
        centered = test_v - label_means(v, y, subject.num_classes)[labels]
        predicted = ridge.predict(test_x - label_means(x, y, subject.num_classes)[labels])
        direction = torch.from_numpy(ridge.coef_)[None].float().to(subject.device)
        fits[name] = FactorRidge(
            direction / direction.norm().clamp_min(1e-12), centered - predicted, centered
        )
    return fits


def mean_correlation(by_label: Values) -> float:
    """Return the mean Pearson correlation over pairs of rows, without constant rows."""
    if by_label.shape[1] < 2:
        return 0.0
    varying = by_label[np.ptp(by_label, axis=1) > 0]
    if len(varying) < 2:
        return 0.0
    return float(np.corrcoef(varying)[np.triu_indices(len(varying), k=1)].mean())


def traverse(z: Points, direction: Points) -> Points:
    """Return every z with its component along the direction set to 11 values from -2.5 to 2.5.

    The 11 rows of a z are adjacent.
    """
    steps = torch.linspace(-_EXTENT, _EXTENT, _STEPS, device=z.device)
    return directions.traverse(z, direction[0], steps).flatten(0, 1)


def draw_traversals(subject: SampledSubject) -> dict[str, PILImage.Image]:
    """Return grids of images along the direction of every factor: traversal_thickness, ..."""
    model, grids = subject.model, {}
    for name, ridge in fit_ridges(subject).items():
        classes = subject.classes if model.conditional else torch.arange(10, device=subject.device)
        rows = "Row: requested label" if model.conditional else "Row: one latent sample z"
        count = len(classes)
        z = traverse(figures.fixed_latents(model, 1).expand(count, -1), ridge.direction)
        if not model.conditional:
            z = traverse(figures.fixed_latents(model, count), ridge.direction)
        images = subject.decode(z, classes.repeat_interleave(len(z) // count))
        grids[f"traversal_{name}"] = figures.image_grid(
            images.unflatten(0, (count, -1)),
            figures.class_labels(classes.tolist(), subject.class_names)
            if model.conditional
            else (),
            title=f"{rows}. Column: z shifted along {name}, -2.5 to 2.5 s.d.",
        )
    return grids


def _rank_correlations(subject: SampledSubject, name: str, direction: Latent) -> Values:
    """Return Spearman's rho between position along the direction and factor, (labels, styles)."""
    count = min(_NUM_STYLES, subject.num_generated)
    z = traverse(subject.sample_prior(count, _EPOCH), direction)
    rhos = []
    labels = subject.classes.tolist() if subject.model.conditional else [0]
    for i, c in enumerate(labels):
        subject.progress(f"traversing {name}", i / len(labels))
        images = subject.decode(z, torch.full((len(z),), c, device=z.device))
        values = FACTORS[name](images).reshape(-1, _STEPS)
        rhos.append([_spearman_rho(row) for row in values])
    return np.array(rhos)


def _spearman_rho(values: Values) -> float:
    """Return Spearman's rho of values in order; 0 if they are constant or contain nan."""
    if np.isnan(values).any() or np.ptp(values) == 0:
        return 0.0
    return float(spearmanr(np.arange(len(values)), values).statistic)
