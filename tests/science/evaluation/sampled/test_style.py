"""Tests of stroke thickness and slant, and of their relation to z."""

import math

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw
from skimage.transform import AffineTransform, warp
from torch import Tensor

from cvae.evaluation import style
from cvae.evaluation.oracle import Oracle
from cvae.evaluation.sampled import Factor
from cvae.evaluation.subject import Posterior
from cvae.models import CVAE
from cvae.morphology import slant, thickness
from tests.science.evaluation.sampled.subjects import make_subject
from tests.science.evaluation.synthetic import TEST, TRAIN, randn


def draw_stroke(width: float, shear: float = 0.0) -> np.ndarray:  # type: ignore[type-arg]
    """Draw an upright bar of a width in pixels, sheared to the right."""
    page = PILImage.new("L", (56 * 8, 56 * 8))
    middle, half = 28 * 8, width * 4
    ImageDraw.Draw(page).rectangle((middle - half, 14 * 8, middle + half - 1, 42 * 8 - 1), fill=255)
    fine = np.asarray(page, dtype=np.float64) / 255
    # output (x, y) comes from input (x + shear (y - middle), y); rows go down
    to_upright = AffineTransform(np.array([[1, shear, -shear * middle], [0, 1, 0], [0, 0, 1.0]]))
    fine = warp(fine, to_upright)
    return fine.reshape(56, 8, 56, 8).mean(axis=(1, 3))


def stack_images(*pictures: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(np.stack(pictures)).float()[:, None]


def test_thickness_matches_the_width_of_drawn_strokes() -> None:
    widths = [2.0, 3.0, 4.0, 6.0]
    found = thickness(stack_images(*(draw_stroke(w) for w in widths)))
    assert found == pytest.approx(widths, abs=0.35)
    assert (np.diff(found) > 0.6).all()


@pytest.mark.parametrize("shear", [-0.6, -0.2, 0.0, 0.3, 0.7])
def test_slant_matches_the_angle_of_sheared_strokes(shear: float) -> None:
    found = slant(stack_images(draw_stroke(3.0, shear)))[0]
    assert found == pytest.approx(math.degrees(math.atan(shear)), abs=1.0)


def test_slant_does_not_depend_on_thickness() -> None:
    found = slant(stack_images(*(draw_stroke(w, 0.4) for w in (2.0, 5.0))))
    assert found[0] == pytest.approx(found[1], abs=1.5)


def test_an_image_without_ink_has_no_thickness_and_slant() -> None:
    blank = torch.zeros(1, 1, 28, 28)
    assert math.isnan(thickness(blank)[0])
    assert math.isnan(slant(blank)[0])
    assert thickness(torch.ones(1, 1, 8, 8))[0] > 0


def test_a_traversal_follows_the_direction() -> None:
    z, direction = randn(0, 4, 3), torch.tensor([[0.6, 0.0, 0.8]])
    points = style.traverse(z, direction).view(4, -1, 3)
    along = points @ direction[0]
    torch.testing.assert_close(along, torch.linspace(-2.5, 2.5, 11).expand(4, -1))
    across = torch.tensor([[0.8, 0.0, -0.6], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(points @ across.T, (z @ across.T)[:, None].expand(-1, 11, -1))


def test_style_correlation_is_1_for_shared_and_0_for_unrelated_values() -> None:
    shared, noise = (randn(n, n, 4000).double().numpy() for n in (1, 10))
    assert style.mean_correlation(shared.repeat(10, axis=0)) == pytest.approx(1.0)
    assert style.mean_correlation(noise) == pytest.approx(0.0, abs=0.03)
    assert style.mean_correlation(shared + noise) == pytest.approx(0.5, abs=0.03)


def test_the_ridge_regression_recovers_a_factor_and_its_direction(trained_oracle: Oracle) -> None:
    """The factor is 3 z1 - 4 z0 plus 100 per label, and R^2 within labels is still 1."""
    subject = make_subject(CVAE, trained_oracle)
    train_z, test_z = randn(0, len(TRAIN.labels), 2), randn(1, len(TEST.labels), 2)

    def value(z: Tensor, labels: Tensor) -> np.ndarray:  # type: ignore[type-arg]
        return (3 * z[:, 1] - 4 * z[:, 0] + 100 * labels).double().numpy()

    count = len(subject.reference.labels)
    factor = Factor(
        value(test_z, TEST.labels), value(train_z[:count], subject.reference.labels), np.zeros(60)
    )
    for name, z in (("train_posterior", train_z), ("test_posterior", test_z)):
        subject.__dict__[name] = Posterior(z, z, torch.zeros_like(z), lambda w: w)
    subject.__dict__["factors"] = {"slant": factor}
    ridge = style.fit_ridges(subject)["slant"]
    torch.testing.assert_close(ridge.direction, torch.tensor([[-0.8, 0.6]]), atol=0.02, rtol=0)
    r2 = 1 - (ridge.test_errors**2).mean() / (ridge.test_centered**2).mean()
    assert r2 > 0.99


def test_rank_correlation_has_the_sign_of_the_trend() -> None:
    rising = np.arange(11.0)
    assert style._spearman_rho(rising) == pytest.approx(1.0)
    assert style._spearman_rho(-(rising**3)) == pytest.approx(-1.0)
    assert style._spearman_rho(np.zeros(11)) == 0.0
    assert style._spearman_rho(np.where(rising == 3, np.nan, rising)) == 0.0
