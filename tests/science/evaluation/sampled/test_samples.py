"""Tests of distances between sets of samples, and of the variety of samples."""

import numpy as np
import pytest
import torch

from cvae.evaluation import variety
from cvae.evaluation.oracle import Oracle
from cvae.evaluation.prior_samples import frechet_distance, sample_fitted_mixture
from cvae.models import CVAE
from tests.science.evaluation.sampled.subjects import make_subject
from tests.science.evaluation.synthetic import TRAIN, randn


def test_frechet_distance_of_gaussians_matches_the_closed_form() -> None:
    """For Gaussians: |difference of means|^2 + sum of (difference of deviations)^2."""
    a = randn(0, 20_000, 3)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov())).T  # exact moments
    std, shift = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0.0, 3.0, 0.0])
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-4)
    assert frechet_distance(a * std + shift, a) == pytest.approx(9 + 1 + 0.25, rel=1e-3)


def test_fitted_samples_follow_the_codes() -> None:
    codes = torch.cat([randn(0, 500, 2) + 5, randn(1, 500, 2) - 5])
    drawn = sample_fitted_mixture(codes, 2, 1000)
    assert drawn.abs().mean(0).tolist() == pytest.approx([5, 5], abs=0.3)
    assert ((drawn > 0).float().mean(0) - 0.5).abs().max() < 0.1
    one = sample_fitted_mixture(codes, 1, 1000)
    assert one.std(0).tolist() == pytest.approx(codes.std(0).tolist(), rel=0.1)


def test_recall_and_coverage_fall_if_samples_miss_modes() -> None:
    real, fake = randn(0, 400, 2), randn(1, 400, 2)
    for measure in (variety.is_recalled, variety.is_covered):
        assert measure(real, real).all()
        assert measure(real, fake).float().mean() > 0.9
        assert measure(real, fake + 50).float().mean() == 0
        one_mode = measure(real, fake.abs()).float().mean()
        assert one_mode < 0.55  # a quarter of the plane and its neighborhood


def test_outliers_raise_recall_and_not_coverage() -> None:
    """Far fake points widen the balls of fake points, which only recall uses."""
    real, fake = randn(0, 200, 2), randn(1, 200, 2) * 0.05
    spread = torch.cat([fake, torch.tensor([[30.0, 0.0], [-30.0, 0.0], [0.0, 30.0], [0.0, -30.0]])])
    assert variety.is_recalled(real, fake).float().mean() < 0.2
    assert variety.is_recalled(real, spread).float().mean() == 1.0
    few = variety.is_covered(real, fake).float().mean()
    assert variety.is_covered(real, spread).float().mean() == few < 0.2


def test_within_label_std_ignores_differences_between_labels() -> None:
    label = np.arange(4000) % 2
    values = randn(0, 4000).numpy().astype(np.float64) * np.array([1.0, 2.0])[label] + 100 * label
    values[:4] = np.nan
    assert variety.within_label_std(values, label, (0, 1)) == pytest.approx(2.5**0.5, rel=0.05)


def test_the_nearest_training_image_is_of_the_same_label(trained_oracle: Oracle) -> None:
    subject = make_subject(CVAE, trained_oracle)
    grey = TRAIN.grey[:6].float() / 255
    own = variety.nearest_distances(subject, grey, TRAIN.labels[:6])
    assert own.tolist() == pytest.approx([0.0] * 6, abs=5e-3)
    other = variety.nearest_distances(subject, grey, (TRAIN.labels[:6] + 1) % 3)
    by_hand = [
        float(
            (TRAIN.grey[TRAIN.labels == (y + 1) % 3].float() / 255 - x).flatten(1).norm(dim=1).min()
        )
        for x, y in zip(grey, TRAIN.labels[:6].tolist(), strict=True)
    ]
    assert sorted(other.tolist()) == pytest.approx(sorted(by_hand), abs=5e-3)
