"""Tests of the distance of z from N(0, I) and of the probes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cvae.evaluation import aggregated_posterior
from cvae.evaluation.oracle import Oracle
from cvae.evaluation.probes import logistic_predictions, mlp_predictions
from cvae.evaluation.subject import Posterior
from cvae.models import CVAE
from tests.science.evaluation.sampled.subjects import make_subject
from tests.science.evaluation.synthetic import randn


def test_mmd_is_zero_on_average_only_for_equal_distributions() -> None:
    values = [
        aggregated_posterior.mmd_squared(randn(i, 300, 4), randn(1000 + i, 300, 4))[0]
        for i in range(60)
    ]
    mean, error = np.mean(values), np.std(values) / 60**0.5
    assert abs(mean) < 4 * error  # unbiased
    assert min(values) < 0
    away, _ = aggregated_posterior.mmd_squared(randn(1, 300, 4) + 0.5, randn(2, 300, 4))
    assert away > 10 * max(values)


def test_the_standard_error_of_mmd_is_its_spread_over_draws() -> None:
    found = [
        aggregated_posterior.mmd_squared(randn(i, 200, 4) + 0.5, randn(1000 + i, 300, 4))
        for i in range(100)
    ]
    values, errors = zip(*found, strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


def test_mmd_is_the_sum_over_pairs() -> None:
    a, b = randn(0, 5, 2), randn(1, 4, 2)

    def k(u: Tensor, v: Tensor) -> float:
        return sum(
            math.exp(-float((u - v).square().sum()) / (2 * s * 2)) for s in (0.25, 0.5, 1, 2, 4)
        )

    by_hand = (
        sum(k(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j) / 20
        + sum(k(u, v) for i, u in enumerate(b) for j, v in enumerate(b) if i != j) / 12
        - 2 * sum(k(u, v) for u in a for v in b) / 20
    )
    assert aggregated_posterior.mmd_squared(a, b)[0] == pytest.approx(by_hand, abs=1e-5)


def test_the_null_quantile_is_exceeded_once_in_twenty(
    trained_oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(CVAE, trained_oracle)
    limit, spread = aggregated_posterior.mmd_null(subject, 200)
    draws = [
        aggregated_posterior.mmd_squared(randn(i, 200, 2), randn(5000 + i, 200, 2))[0]
        for i in range(200)
    ]
    assert 2 <= sum(value > limit for value in draws) <= 24  # 10 expected
    assert spread == pytest.approx(np.std(draws, ddof=1), rel=0.25)
    # a degenerate U-statistic scales as 1 / size
    monkeypatch.setattr(aggregated_posterior, "_NULL_SIZE", 100)
    big = aggregated_posterior.mmd_null(subject, 400)[0]
    small = aggregated_posterior.mmd_null(subject, 100)[0]
    assert big == pytest.approx(small / 4)


def test_dimensions_whose_mean_varies_are_active() -> None:
    mean = randn(0, 500, 4) * torch.tensor([1.0, 0.5, 0.05, 0.0])
    posterior = Posterior(mean, mean, torch.ones(500, 4), lambda z: z)
    assert aggregated_posterior.active_units(posterior) == 2


def test_dimensions_of_pure_noise_are_not_active() -> None:
    """With a flow prior, the posterior mean is estimated from a few samples, which vary."""
    draws = randn(0, 16, 2000, 3)
    draws[..., 0] += randn(1, 2000)
    error = draws.var(0).mean(0) / 16
    found = Posterior(draws.mean(0), draws[0], draws[0], lambda z: z, error)
    assert aggregated_posterior.active_units(found) == 1


def sample_ring(seed: int, count: int = 1500) -> tuple[Tensor, Tensor]:
    """Return points, and labels for inside and outside a circle, which no line separates."""
    z = randn(seed, count, 2)
    return z, (z.square().sum(1) > 2 * math.log(2)).long()


def test_a_perceptron_probe_separates_labels_that_a_linear_probe_cannot() -> None:
    z, truth = sample_ring(1)
    linear = (logistic_predictions(sample_ring(2), z) == truth).float().mean()
    perceptron = (
        (mlp_predictions(lambda e: sample_ring(10 + e), sample_ring(3), z, 2) == truth)
        .float()
        .mean()
    )
    assert linear < 0.65
    assert perceptron > 0.95


def test_a_probe_of_pure_noise_is_at_chance() -> None:
    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return randn(seed, 1500, 2), torch.arange(1500) % 2

    z, truth = draw(1)
    right = (mlp_predictions(lambda e: draw(10 + e), draw(2), z, 2) == truth).float().mean()
    assert right == pytest.approx(0.5, abs=0.06)
