"""Tests that noise is a function of (seed, stream, epoch, image), with the right distribution."""

import math

import pytest
import torch

from cvae import noise
from cvae.noise import Stream
from harness.contract import seeds


def test_the_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    index = torch.arange(50)
    expected = noise.standard_normal(index, (7,), seed=3, stream=Stream.POSTERIOR, epoch=2)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    part = noise.standard_normal(shuffled, (7,), seed=3, stream=Stream.POSTERIOR, epoch=2)
    assert torch.equal(part, expected[shuffled])


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"epoch": 1}, {"stream": Stream.IMPORTANCE}], ids=str
)
def test_noise_depends_on_seed_epoch_and_stream(other: dict[str, int]) -> None:
    index = torch.arange(20)
    key = {"seed": 0, "epoch": 0, "stream": Stream.POSTERIOR}
    one = noise.standard_normal(index, (10,), **key)  # type: ignore[arg-type]
    two = noise.standard_normal(index, (10,), **{**key, **other})  # type: ignore[arg-type]
    assert not torch.isclose(one, two).any()


def test_start_skips_the_first_samples() -> None:
    index = torch.arange(5)
    expected = noise.standard_normal(index, (20,), seed=0, stream=Stream.IMPORTANCE)
    rest = noise.standard_normal(index, (14,), seed=0, stream=Stream.IMPORTANCE, start=6)
    assert torch.equal(rest, expected[:, 6:])
    with pytest.raises(ValueError, match="even"):
        noise.standard_normal(index, (2,), seed=0, stream=Stream.IMPORTANCE, start=3)


def test_standard_normal_noise_is_normal() -> None:
    draws = noise.standard_normal(torch.arange(2000), (500,), seed=7, stream=Stream.POSTERIOR)
    n = draws.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = (draws.double() ** power).mean().item() - moment
        assert abs(error) < 5 * math.sqrt(variance / n)
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand samples
    uniform = torch.special.ndtr(draws.double().flatten()).sort().values
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (uniform - steps).abs().max() < 1.95 / math.sqrt(n)


def test_noise_of_neighbors_is_uncorrelated() -> None:
    draws = noise.standard_normal(torch.arange(1000), (200,), seed=0, stream=Stream.POSTERIOR)
    limit = 5 / math.sqrt(draws[1:].numel())
    assert (draws[1:] * draws[:-1]).mean().abs() < limit  # neighboring images
    assert (draws[:, 1:] * draws[:, :-1]).mean().abs() < limit  # neighboring positions
    next_epoch = noise.standard_normal(
        torch.arange(1000), (200,), seed=0, stream=Stream.POSTERIOR, epoch=1
    )
    assert (draws * next_epoch).mean().abs() < limit


def test_a_pixel_is_on_with_the_probability_of_its_grey_level() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(4000, 256)
    on = noise.bernoulli(pixels, torch.arange(4000), seed=0).double().mean(0)
    p = torch.arange(256, dtype=torch.float64) / 255
    assert on[0] == 0
    assert on[255] == 1
    assert ((on - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt()).all()
    assert abs((on - p).mean()) < 5 * (p * (1 - p)).sum().sqrt() / (256 * math.sqrt(4000))


def test_the_number_of_pixels_may_be_odd() -> None:
    pixels = torch.full((3, 9), 128, dtype=torch.uint8)
    assert noise.bernoulli(pixels, torch.arange(3), seed=0).shape == (3, 9)


def test_derived_seeds_never_change() -> None:
    """Published results depend on the derived seeds."""
    assert seeds.derive_seed(1, 2, 3) == 2869315087210772132
