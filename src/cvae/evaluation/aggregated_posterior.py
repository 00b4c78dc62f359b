"""Claim: the aggregated posterior approximates a standard normal distribution."""

import math
from statistics import stdev
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cvae.evaluation.claim import Metric, Metrics, standard_error
from cvae.evaluation.probes import Labels, Points, mlp_predictions
from cvae.evaluation.subject import Posterior, Subject

_BANDWIDTHS = (4.0, 2.0, 1.0, 0.5, 0.25)  # _kernel_sums needs each to be half the previous one
_CHUNK_SIZE = 1000
_NULL_SIZE, _NULL_COUNT = 1000, 200
_NULL_QUANTILE = 0.95
_ACTIVE = 0.01  # variance of the posterior mean, as in Burda et al. 2016
_TEST_EPOCH, _VALIDATION_EPOCH, _MMD_EPOCH = 1001, 1002, 1003  # noise that no probe trains on
_TRAIN_EPOCH = 1004
_NULL_EPOCH = 2000


def aggregated_posterior(subject: Subject) -> Metrics:
    """Return how far samples of z, one per test image, are from N(0, I).

    ``mmd_ratio`` is the unbiased squared maximum mean discrepancy, divided by its 95 % quantile for
    two samples of N(0, I). Its floor is the ratio between test and training images, which have
    different writers. ``mmd_ratio_train`` is the ratio for as many training images.
    ``normal_accuracy`` is the held-out accuracy of a 2 x 256 perceptron that separates the samples
    from N(0, I). ``active_units`` is the number of active dimensions; inactive ones match N(0, I)
    trivially. For a plain autoencoder, z is the code.
    """
    z = subject.test_posterior.sample()
    count = len(z)
    subject.progress("maximum mean discrepancy", 0.0)
    train_z = subject.train_posterior.sample(_TRAIN_EPOCH)[:count]  # independent noise
    prior = subject.sample_prior(count, _MMD_EPOCH)
    null, null_error = mmd_null(subject, count)
    pairs = ((z, prior), (train_z, prior), (z, train_z))
    (ratio, error), (train_ratio, train_error), (floor, floor_error) = (
        (squared / null, math.hypot(error, null_error) / null)
        for squared, error in (mmd_squared(a, b) for a, b in pairs)
    )
    test_points, is_posterior = _label_by_source(z, subject.sample_prior(count, _TEST_EPOCH))
    validation = subject.validation_posterior.sample()
    predicted = mlp_predictions(
        lambda epoch: _label_by_source(
            subject.train_posterior.sample(epoch),
            subject.sample_prior(len(subject.train.labels), epoch + 1),
        ),
        _label_by_source(validation, subject.sample_prior(len(validation), _VALIDATION_EPOCH)),
        test_points,
        2,
        lambda share: subject.progress("posterior against N(0, I)", share),
    )
    return {
        "latent/mmd_ratio": Metric(ratio, "", error, floor, floor_error=floor_error),
        "latent/mmd_ratio_train": Metric(train_ratio, "", train_error),
        "latent/normal_accuracy": Metric.share(predicted == is_posterior, 0.5),
        "latent/active_units": Metric(float(active_units(subject.test_posterior)), "dims"),
    }


def _label_by_source(posterior: Points, prior: Points) -> tuple[Points, Labels]:
    points = torch.cat([posterior, prior])
    return points, (torch.arange(len(points), device=points.device) < len(posterior)).long()


def active_units(posterior: Posterior) -> int:
    """Return the number of dimensions whose posterior mean has a variance above 0.01."""
    return int((posterior.mean.var(dim=0) - posterior.mean_variance > _ACTIVE).sum())


class _KernelSums(NamedTuple):
    """Kernel sums over all pairs, and over the other set for each point."""

    total: float
    per_a: Float[Tensor, " num_a"]
    per_b: Float[Tensor, " num_b"]


def _kernel_sums(a: Points, b: Points) -> _KernelSums:
    r"""Return sums over pairs of :math:`\sum_s \exp(-|a-b|^2 / (2 s d))`, d being latent_dim."""
    total, per_a, per_b = 0.0, [], torch.zeros(len(b), device=b.device)
    scale = 2 * _BANDWIDTHS[0] * a.shape[1]
    b_squared = (b**2).sum(1)
    for rows in a.split(_CHUNK_SIZE):
        squared = torch.addmm((rows**2).sum(1)[:, None] + b_squared, rows, b.T, alpha=-2)
        kernel: Float[Tensor, "rows num_points"] = torch.exp(squared.clamp_min_(0) / -scale)
        row_sums = torch.zeros(len(rows), device=rows.device)
        for _ in _BANDWIDTHS:
            total += float(kernel.sum(dtype=torch.float64))
            row_sums += kernel.sum(1)
            per_b += kernel.sum(0)
            kernel = kernel * kernel  # half the bandwidth
        per_a.append(row_sums)
    return _KernelSums(total, torch.cat(per_a), per_b)


def mmd_squared(a: Points, b: Points) -> tuple[float, float]:
    """Return the unbiased squared maximum mean discrepancy (Gretton et al. 2012, lemma 6).

    The kernel is a sum of Gaussians with squared widths of 1/4, 1/2, 1, 2 and 4 times latent_dim.

    Returns:
        The estimate and its first-order standard error, from the influence of each point. This
        error vanishes if both sets have the same distribution: add the s.d. of :func:`mmd_null`.
    """
    m, n = len(a), len(b)
    diagonal = float(len(_BANDWIDTHS))  # kernel of a point with itself
    aa, bb, ab = _kernel_sums(a, a), _kernel_sums(b, b), _kernel_sums(a, b)
    within_a = (aa.total - m * diagonal) / (m * (m - 1))
    within_b = (bb.total - n * diagonal) / (n * (n - 1))
    influence_a = (aa.per_a - diagonal) / (m - 1) - ab.per_a / n
    influence_b = (bb.per_a - diagonal) / (n - 1) - ab.per_b / m
    error = 2 * math.hypot(standard_error(influence_a), standard_error(influence_b))
    return within_a + within_b - 2 * ab.total / (m * n), error


def mmd_null(subject: Subject, size: int) -> tuple[float, float]:
    """Return the 95 % quantile and the s.d. of :func:`mmd_squared` for two samples of N(0, I).

    Both come from 200 pairs of samples, each of at most 1,000 points. A degenerate U-statistic
    scales as 1/size.
    """
    small = min(size, _NULL_SIZE)
    values = []
    for i in range(_NULL_COUNT):
        subject.progress("maximum mean discrepancy", i / _NULL_COUNT)
        pair = subject.sample_prior(2 * small, _NULL_EPOCH + i)
        values.append(mmd_squared(pair[:small], pair[small:])[0])
    scale = small / size
    return float(torch.tensor(values).quantile(_NULL_QUANTILE)) * scale, stdev(values) * scale
