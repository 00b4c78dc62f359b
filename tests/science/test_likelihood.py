"""Tests of the importance-weighted bound."""

import pytest
import torch
from torch import Tensor

from cvae import noise
from cvae.bounds import importance_weighted_nll, importance_weighted_nlls, split_nlls
from cvae.models import CVAE, VAE
from cvae.types import Split
from tests.science.test_models import (
    ALL_IMAGES,
    compute_log_evidence,
    make_labels_for,
    make_model,
    make_network,
)


@pytest.mark.parametrize("max_rows", [1, 7, 64, 100_000])
@pytest.mark.parametrize("batch", [1, 5, 16])
def test_the_bound_does_not_depend_on_chunk_or_batch_size(max_rows: int, batch: int) -> None:
    model = make_model(CVAE)
    assert isinstance(model, CVAE)
    index, y = torch.arange(16), make_labels_for(model, 16)
    assert y is not None
    expected = importance_weighted_nll(model, ALL_IMAGES, y, index, 51)
    parts = [
        importance_weighted_nll(model, ALL_IMAGES[i], y[i], i, 51, max_rows)
        for i in index.split(batch)
    ]
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=0)


def test_the_bound_of_one_sample_matches_the_formula() -> None:
    model = make_model(VAE)
    assert isinstance(model, VAE)
    index = torch.arange(16)
    eps = noise.standard_normal(index, (1, 3), seed=0, stream=noise.Stream.IMPORTANCE)
    weights = model.log_weights(ALL_IMAGES, None, eps)
    q = model.encode(ALL_IMAGES)
    z = q.mean + q.stddev * eps[:, 0]
    by_hand = (
        model.decode(z).log_prob(ALL_IMAGES)
        + torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
        - q.log_prob(z)
    )
    torch.testing.assert_close(weights[:, 0], by_hand, atol=1e-4, rtol=1e-5)
    nll = importance_weighted_nll(model, ALL_IMAGES, None, index, 1)
    torch.testing.assert_close(nll, -by_hand, atol=1e-4, rtol=1e-5)


def test_zero_samples_are_rejected() -> None:
    with pytest.raises(ValueError, match="num_samples=0"):
        importance_weighted_nll(make_model(VAE), ALL_IMAGES, None, torch.arange(16), 0)  # type: ignore[arg-type]


def test_bounds_of_several_k_share_their_samples() -> None:
    model = make_model(CVAE)
    assert isinstance(model, CVAE)
    index, y = torch.arange(16), make_labels_for(model, 16)
    for max_rows in (16, 48, 100_000):
        found = importance_weighted_nlls(model, ALL_IMAGES, y, index, (1, 5, 50), max_rows)
        for k, values in found.items():
            alone = importance_weighted_nll(model, ALL_IMAGES, y, index, k)
            torch.testing.assert_close(values, alone, atol=1e-4, rtol=0)


def test_chunks_change_no_value_at_k_5000() -> None:
    """Within 1e-3 nats per image and 1e-4 in the mean, in float32, on images of 784 pixels."""
    torch.manual_seed(0)
    model = CVAE(make_network, latent_dim=6)
    index = torch.arange(3)
    x = (torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) > 1).float()
    y = torch.eye(10)[index]
    few, many = (importance_weighted_nll(model, x, y, index, 5000, rows) for rows in (300, 15_000))
    assert (few - many).abs().max() < 1e-3
    assert (few.mean() - many.mean()).abs() < 1e-4


class Linear(torch.nn.Module):
    """Network with logits w z, for a one-dimensional latent."""

    def __init__(self, image_shape: tuple[int, ...], **kwargs: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.w = torch.nn.Parameter(torch.tensor([1.5, -2.0, 0.5, 1.0]))

    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.stack([0.3 * x.flatten(1).sum(1) - 0.6, torch.full((len(x),), -0.1)], dim=1)

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        return (z * self.w).view(-1, *self.image_shape)


def test_the_bound_converges_to_the_evidence() -> None:
    """The reference is a quadrature over z; the expected nll falls as K grows."""
    model = VAE(Linear, 1, image_shape=(1, 2, 2), num_classes=4)
    truth = -compute_log_evidence(model.double(), ALL_IMAGES.double(), None).detach().float()
    model = model.float()
    found = importance_weighted_nlls(model, ALL_IMAGES, None, torch.arange(16), (1, 50, 5000))
    torch.testing.assert_close(found[5000], truth, atol=0.05, rtol=0)
    assert found[1].mean() > found[50].mean() > found[5000].mean() - 0.01
    assert torch.exp(-truth).sum() == pytest.approx(1.0, abs=1e-3)


def test_the_bound_of_a_split_agrees_with_that_of_its_images() -> None:
    """Bounds are in the order of the split, and noise is keyed by the position of an image."""
    model = make_model(CVAE)
    assert isinstance(model, CVAE)
    count = 300  # more than one batch
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 2, (count, *model.image_shape), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % model.num_classes
    split = Split(pixels * 255, pixels * 255, labels)
    found = split_nlls(model, split, [3])[3]
    index = torch.tensor([0, 127, 128, 299])
    y = torch.nn.functional.one_hot(labels[index], model.num_classes).float()
    alone = importance_weighted_nll(model, pixels[index].float(), y, index, 3)
    torch.testing.assert_close(found[index], alone, atol=1e-5, rtol=0)
