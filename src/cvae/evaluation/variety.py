"""The numbers vary in style: as much as real ones, and without being copies of them."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from cvae.evaluation.claim import Metric, Metrics, bootstrap_error
from cvae.evaluation.subject import Subject

_NEIGHBOURS = 5
_MAX_PER_LABEL = 1000

Features = Float[Tensor, "_ num_features"]
Labels = Int64[Tensor, " _"]


def variety(subject: Subject) -> Metrics:
    """Per-digit recall and coverage, spread of style, and the nearest training image.

    Recall (Kynkäänniemi et al. 2019) and coverage (Naeem et al. 2020) of the test digits by decoder
    means, in the oracle's features, k = 5, up to 1,000 against 1,000 of each label, the mean over
    labels; the spread within a digit of thickness and slant over that of real digits; and the mean
    Euclidean distance to the nearest training image of the same digit, which is small for copies.
    The floors are the same of training images.
    """
    samples, test = subject.samples, subject.test
    metrics: Metrics = {}
    real = (subject.test_prediction.features, test.labels)
    reference = (subject.reference_features, subject.reference.labels)
    for name, measure in (("recall", recalled), ("coverage", covered)):
        subject.progress(name, 0.0)
        found = _per_label(measure, *real, samples.features, samples.labels)
        floor = _per_label(measure, *real, *reference)
        metrics[f"samples/{name}"] = Metric.share(found, float(floor.mean()))
    for name, factor in subject.factors.items():
        labels, classes = samples.labels.numpy(), test.labels.unique().tolist()
        std = within_label_std(factor.test, test.labels.numpy(), classes)
        of_reference = (factor.reference, subject.reference.labels.numpy())
        spread = within_label_std(factor.samples, labels, classes) / std
        floor_spread = within_label_std(*of_reference, classes) / std
        error = bootstrap_error(
            lambda i, v=factor.samples, y=labels, c=classes, r=std: (  # type: ignore[misc]
                within_label_std(v[i], y[i], c) / r
            ),
            len(labels),
        )
        metrics[f"samples/sd_{name}_ratio"] = Metric(spread, "", error, floor_spread)
    subject.progress("nearest training images", 0.0)
    distances = _nearest(subject, samples.means, samples.labels)
    own = _nearest(subject, subject.test_grey, test.labels)
    metrics["samples/nearest_train_distance"] = Metric.mean(distances, floor=float(own.mean()))
    return metrics


def recalled(real: Features, fake: Features, k: int = _NEIGHBOURS) -> Bool[Tensor, " num_real"]:
    """Which real points lie in the ball of a fake one that reaches its k-th nearest fake one."""
    return (torch.cdist(real, fake) <= _radii(fake, k)).any(dim=1)


def covered(real: Features, fake: Features, k: int = _NEIGHBOURS) -> Bool[Tensor, " num_real"]:
    """Which real points have a fake one in their ball that reaches their k-th nearest real one."""
    return (torch.cdist(fake, real) <= _radii(real, k)).any(dim=0)


def _radii(points: Features, k: int) -> Float[Tensor, " num_points"]:
    """Distance to the k-th nearest other point."""
    k = min(k, len(points) - 1)
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values  # the nearest is itself


def _per_label(
    measure: Callable[[Features, Features], Tensor],
    real: Features,
    real_labels: Labels,
    fake: Features,
    fake_labels: Labels,
) -> Float[Tensor, " num_measured"]:
    """1 for each real point that is recalled or covered by fake ones of its label, else 0."""
    found = []
    for c in real_labels.unique():
        ours = real[real_labels == c][:_MAX_PER_LABEL]
        theirs = fake[fake_labels == c][:_MAX_PER_LABEL]
        enough = len(ours) > 1 and len(theirs) > 1
        found.append(measure(ours, theirs).double() if enough else torch.zeros(len(ours)).double())
    return torch.cat(found)


def within_label_std(
    values: NDArray[np.float64], labels: NDArray[np.int64], classes: Iterable[int]
) -> float:
    """Return the root of the within-label variance, averaged over ``classes``, without nan."""
    groups = [values[(labels == c) & ~np.isnan(values)] for c in classes]
    variances = [g.var(ddof=1) for g in groups if len(g) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else 0.0


def _nearest(
    subject: Subject, images: Float[Tensor, "n 1 height width"], labels: Int64[Tensor, " n"]
) -> Float[Tensor, " num_measured"]:
    """Distance of images to the nearest training image of their label, in grey levels of [0, 1]."""
    found = []
    for c in labels.unique():
        train = subject.train.grey[subject.train.labels == c].flatten(1).float() / 255.0
        if len(train):
            rows = images[labels == c].flatten(1).split(_MAX_PER_LABEL)
            found += [torch.cdist(r, train).amin(dim=1) for r in rows]
    return torch.cat(found)
