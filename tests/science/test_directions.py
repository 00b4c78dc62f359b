"""Tests that each direction in latent space changes the factor that it is named after."""

from typing import Any

import numpy as np
import pytest
import torch

from cvae import directions
from cvae.conditions import Attributes
from cvae.models import CVAE, VAE, Autoencoder
from cvae.morphology import FACTORS
from cvae.networks import MLP
from cvae.types import Batch

MIDDLE = 14


def make_network(**kwargs: Any) -> MLP:
    return MLP(hidden_dim=8, encoder_blocks=1, decoder_blocks=1, **kwargs)


def draw_bars(values: torch.Tensor) -> torch.Tensor:
    """Return upright bars, (n, 1, 28, 28): width from the first column, shear from the second."""
    rows, columns = torch.arange(28.0)[:, None], torch.arange(28.0)[None]
    width = (4 + values[:, 0, None, None]).clamp(1, 9)
    shift = 0.25 * values[:, 1, None, None] * (MIDDLE - rows)
    inside = width / 2 + 0.5 - (columns - MIDDLE - shift).abs()
    is_within = (rows > 4) & (rows < 24)
    return (inside.clamp(0, 1) * is_within)[:, None]


class Bars(CVAE):
    """Model whose latent is width and shear, rotated by 30 degrees."""

    rotation = torch.tensor([[0.866, 0.5], [-0.5, 0.866]])

    def embed(self, x: Any, y: Any = None) -> torch.Tensor:
        return x[:, 0, 0, :2] @ self.rotation

    def decode(self, z: Any, y: Any = None) -> Any:
        class Means:
            mean = draw_bars(z @ self.rotation.T)

        return Means()


def make_batch(count: int, seed: int = 0) -> Batch:
    """Return images whose first two pixels are the width and the shear to draw."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 28, 28, generator=generator)
    return Batch(x, torch.eye(10)[torch.arange(count) % 10], torch.arange(count), count)


def test_style_directions_change_the_factor_of_their_name_only() -> None:
    model = Bars(make_network, 2)
    thickness, slant = directions.style_directions(model, make_batch(300), FACTORS)
    assert (thickness.name, slant.name) == ("thickness", "slant")
    torch.testing.assert_close(thickness.vector, Bars.rotation[0], atol=0.1, rtol=0)
    torch.testing.assert_close(slant.vector, Bars.rotation[1], atol=0.1, rtol=0)
    steps = torch.linspace(-2, 2, 5)
    for direction in (thickness, slant):
        assert (direction.low, direction.high, direction.share) == (-3.0, 3.0, None)
        points = directions.traverse(torch.zeros(1, 2), direction.vector, steps)[0]
        measured = FACTORS[direction.name](model.decode(points).mean)
        assert (np.diff(measured) > 0.3).all()


def test_differences_between_labels_do_not_change_a_direction() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(2000) % 4
    points = generator.normal(size=(2000, 3)) + labels[:, None]
    values = points @ [1.0, -2.0, 0.5] + 100.0 * labels
    assert directions._covariance(points, values, labels) == pytest.approx([1, -2, 0.5], abs=0.1)


def test_a_dimension_that_hardly_varies_has_no_part_in_a_direction() -> None:
    """In a regression, this dimension would have the coefficient 1,000."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(500, 2)) * [1.0, 0.001]
    values = points @ [1.0, 1000.0]
    covariance = directions._covariance(points, values, np.zeros(500, dtype=np.int64))
    assert abs(covariance[1]) < 0.01 * covariance[0]


def test_a_factor_that_is_constant_or_undefined_has_no_direction() -> None:
    factors = {
        "constant": lambda images: np.ones(len(images)),
        "undefined": lambda images: np.full(len(images), np.nan),
        "mean": lambda images: images.mean((1, 2, 3)).double().numpy(),
    }
    found = directions.style_directions(Bars(make_network, 2), make_batch(60), factors)
    assert [direction.name for direction in found] == ["mean"]


def test_color_and_other_conditions_have_no_style_directions() -> None:
    color = VAE(make_network, 2, image_shape=(3, 28, 28))
    colored = make_batch(20)._replace(x=make_batch(20).x.repeat(1, 3, 1, 1))
    assert directions.style_directions(color, colored, FACTORS) == []
    model = VAE(make_network, 2, condition=Attributes({"label": 10}))
    assert directions.style_directions(model, make_batch(20), FACTORS) == []


class Codes(Autoencoder):
    """Autoencoder whose codes are the first pixels, scaled and shifted."""

    def embed(self, x: Any, y: Any = None) -> torch.Tensor:
        return x[:, 0, 0, : self.latent_dim] * torch.tensor([1.0, 5.0, 2.0]) + 10


def test_principal_directions_are_ordered_orthogonal_and_of_unit_length() -> None:
    images = make_batch(4000)
    components = directions.principal_directions(Codes(make_network, 3), images, count=3)
    assert [direction.name for direction in components] == [f"component {i}" for i in (1, 2, 3)]
    vectors = torch.stack([direction.vector for direction in components])
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3))
    expected = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    torch.testing.assert_close(vectors, expected, atol=0.05, rtol=0)
    shares = [direction.share for direction in components]
    assert shares == pytest.approx([25 / 30, 4 / 30, 1 / 30], abs=0.02)
    assert [components[0].low, components[0].high] == pytest.approx([10 - 15, 10 + 15], abs=0.8)
    assert directions.center(Codes(make_network, 3), images)[0].tolist() == pytest.approx(
        [10] * 3, abs=0.3
    )


def test_few_images_have_fewer_components() -> None:
    model = Codes(make_network, 3)
    assert len(directions.principal_directions(model, make_batch(2), count=3)) == 1
    assert directions.principal_directions(model, make_batch(1), count=3) == []


def test_the_center_of_a_vae_is_the_mean_of_its_prior() -> None:
    assert directions.center(VAE(make_network, 4), make_batch(5)).tolist() == [[0.0] * 4]
