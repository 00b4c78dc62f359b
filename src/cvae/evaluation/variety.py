"""Claim: samples vary as much as real digits and are not copies of training images."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from cvae.evaluation.claim import Metric, Metrics, bootstrap_error
from cvae.evaluation.sampled import SampledSubject
from cvae.evaluation.subject import reject_attributes
from cvae.types import Image

_NEIGHBOURS = 5
_MAX_PER_LABEL = 1000

Features = Float[Tensor, "_ num_features"]
Labels = Int64[Tensor, " _"]


def variety(subject: SampledSubject) -> Metrics:
    """Return recall, coverage, spread of style and distance to the nearest training image.

    Recall (Kynkäänniemi et al. 2019) and coverage (Naeem et al. 2020) compare decoder means with
    test digits in the oracle's features, with k = 5 and up to 1,000 of each per label.
    ``sd_*_ratio``, for grey images only, is the s.d. of thickness or slant within labels, divided
    by that of test digits.
    ``nearest_train_distance`` is the mean Euclidean distance to the nearest training image of the
    same label; it is small for copies. Its floor is the distance of test images. The other floors
    are measured on training images.
    """
    reject_attributes(subject)
    samples, test = subject.samples, subject.test
    metrics: Metrics = {}
    real = (subject.test_prediction.features, test.labels)
    reference = (subject.reference_features, subject.reference.labels)
    for name, measure in (("recall", is_recalled), ("coverage", is_covered)):
        subject.progress(name, 0.0)
        is_hit = _measure_per_label(measure, *real, samples.features, samples.labels)
        floor = _measure_per_label(measure, *real, *reference)
        metrics[f"samples/{name}"] = Metric.share(is_hit, float(floor.mean()))
    for name, factor in subject.factors.items() if subject.is_grey else ():
        labels, classes = samples.labels.cpu().numpy(), test.labels.unique().tolist()
        std = within_label_std(factor.test, test.labels.cpu().numpy(), classes)
        reference_factor = (factor.reference, subject.reference.labels.cpu().numpy())
        spread = within_label_std(factor.samples, labels, classes) / std
        floor_spread = within_label_std(*reference_factor, classes) / std
        error = bootstrap_error(
            lambda i, v=factor.samples, y=labels, c=classes, r=std: (  # type: ignore[misc]
                within_label_std(v[i], y[i], c) / r
            ),
            len(labels),
        )
        metrics[f"samples/sd_{name}_ratio"] = Metric(spread, "", error, floor_spread)
    subject.progress("nearest training images", 0.0)
    distances = nearest_distances(subject, samples.means, samples.labels)
    test_distances = nearest_distances(subject, subject.test_grey, test.labels)
    metrics["samples/nearest_train_distance"] = Metric.mean(
        distances, floor=float(test_distances.mean())
    )
    return metrics


def is_recalled(real: Features, fake: Features, k: int = _NEIGHBOURS) -> Bool[Tensor, " num_real"]:
    """Return whether each real point lies within the k-nearest-neighbor ball of a fake point."""
    return (torch.cdist(real, fake) <= _radii(fake, k)).any(dim=1)


def is_covered(real: Features, fake: Features, k: int = _NEIGHBOURS) -> Bool[Tensor, " num_real"]:
    """Return whether the k-nearest-neighbor ball of each real point contains a fake point."""
    return (torch.cdist(fake, real) <= _radii(real, k)).any(dim=0)


def _radii(points: Features, k: int) -> Float[Tensor, " num_points"]:
    """Return the distance of each point to its k-th nearest neighbor."""
    k = min(k, len(points) - 1)
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values  # the first is the point


def _measure_per_label(
    measure: Callable[[Features, Features], Tensor],
    real: Features,
    real_labels: Labels,
    fake: Features,
    fake_labels: Labels,
) -> Float[Tensor, " num_measured"]:
    """Return 1 or 0 for up to 1,000 real points of each label, measured against its fake points."""
    measured = []
    for c in real_labels.unique():
        real_points = real[real_labels == c][:_MAX_PER_LABEL]
        fake_points = fake[fake_labels == c][:_MAX_PER_LABEL]
        enough = len(real_points) > 1 and len(fake_points) > 1
        is_hit = (
            measure(real_points, fake_points)
            if enough
            else torch.zeros(len(real_points), device=real_points.device)
        )
        measured.append(is_hit.double())
    return torch.cat(measured)


def within_label_std(
    values: NDArray[np.float64], labels: NDArray[np.int64], classes: Iterable[int]
) -> float:
    """Return the root of the mean within-label variance over ``classes``, ignoring nan."""
    groups = [values[(labels == c) & ~np.isnan(values)] for c in classes]
    variances = [g.var(ddof=1) for g in groups if len(g) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else 0.0


def nearest_distances(
    subject: SampledSubject, images: Image, labels: Int64[Tensor, " n"]
) -> Float[Tensor, " num_measured"]:
    """Return the distance of images, in [0, 1], to the nearest training image of their label."""
    distances = []
    for c in labels.unique():
        train = subject.train.grey[subject.train.labels == c].flatten(1).float() / 255.0
        if len(train):
            rows = images[labels == c].flatten(1).split(_MAX_PER_LABEL)
            distances += [torch.cdist(r, train).amin(dim=1) for r in rows]
    return torch.cat(distances)
