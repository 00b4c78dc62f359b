"""Tests of the networks of the project and of a user, with every model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvae.bounds import score_batch
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP, Conv
from cvae.types import Batch
from tests.science.test_models import randomize_weights


def mlp(**kwargs: Any) -> MLP:
    return MLP(hidden_dim=8, encoder_blocks=1, decoder_blocks=1, **kwargs)


def deep_mlp(**kwargs: Any) -> MLP:
    return MLP(hidden_dim=5, encoder_blocks=4, decoder_blocks=3, latent_skips=True, **kwargs)


def conv(**kwargs: Any) -> Conv:
    plain: dict[str, Any] = {"patch_size": 1, "latent_blocks": 0}
    return Conv(channels=[2, 4, 4], num_blocks=1, hidden_dim=8, **plain, **kwargs)


def flat_conv(**kwargs: Any) -> Conv:
    plain: dict[str, Any] = {"patch_size": 1, "latent_blocks": 0}
    return Conv(channels=[3], num_blocks=2, hidden_dim=8, **plain, **kwargs)


def patched_conv(**kwargs: Any) -> Conv:
    return Conv(
        channels=[2, 4], num_blocks=1, hidden_dim=8, patch_size=2, latent_blocks=1, **kwargs
    )


class Linear(nn.Module):
    """Minimal network of a user."""

    def __init__(
        self,
        image_shape: tuple[int, ...],
        latent_dim: int,
        num_statistics: int,
        condition_size: int,
        num_parameters: int,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.to_latent = nn.Linear(784 + condition_size, num_statistics * latent_dim)
        self.to_image = nn.Linear(latent_dim + condition_size, 784)

    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.to_latent(torch.cat([x.flatten(1)] + ([] if y is None else [y]), dim=1))

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        return self.to_image(torch.cat([z] + ([] if y is None else [y]), dim=1)).view(
            -1, *self.image_shape
        )


class BatchNorm(Linear):
    """Network with batch normalization of feature maps."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalize: nn.Module = nn.BatchNorm2d(1)

    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return super().encode(self.normalize(x), y)


class FlatBatchNorm(BatchNorm):
    """Network with batch normalization of features, which needs at least two images."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalize = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784))


ALL_NETWORKS = [mlp, deep_mlp, conv, flat_conv, patched_conv, Linear, BatchNorm, FlatBatchNorm]


@pytest.mark.parametrize("network", ALL_NETWORKS)
@pytest.mark.parametrize("model_class", [Autoencoder, VAE, CVAE])
def test_an_empty_batch_has_no_scores(
    network: Callable[..., Any], model_class: type[Autoencoder]
) -> None:
    model = model_class(network, latent_dim=4).eval()
    rows = Batch(torch.rand(3, 1, 28, 28).round(), torch.eye(10)[:3], torch.arange(3), 3)
    none = Batch(rows.x[:0], rows.y[:0], rows.indices[:0], 1)
    scores, no_scores = score_batch(model, rows, 2), score_batch(model, none, 2)
    assert [len(v) for v in scores.values()] == [3] * len(scores)
    assert [len(v) for v in no_scores.values()] == [0] * len(scores)
    assert scores.keys() == no_scores.keys()


@pytest.mark.parametrize("network", [mlp, deep_mlp, conv, flat_conv, patched_conv, Linear])
@pytest.mark.parametrize("model_class", [Autoencoder, VAE, CVAE])
def test_every_network_trains_in_every_model(
    network: Callable[..., Any], model_class: type[Autoencoder]
) -> None:
    torch.manual_seed(0)
    model = model_class(network, latent_dim=4)
    x = torch.rand(6, 1, 28, 28).round()
    y = torch.eye(10)[:6] if model.conditional else None
    assert model.reconstruct(x, y).shape == x.shape
    before = -model.terms(x, y, torch.zeros(6, 4)).reconstruction.sum()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        loss = model.loss(model.terms(x, y, torch.zeros(6, 4)), step).sum()
        loss.backward()
        optimizer.step()
    after = -model.terms(x, y, torch.zeros(6, 4)).reconstruction.sum()
    assert after < 0.95 * before


@pytest.mark.parametrize("network", [mlp, deep_mlp, conv, flat_conv, patched_conv])
def test_every_parameter_is_used(network: Callable[..., Any]) -> None:
    """Blocks start as the identity, so a falling loss does not show that they are used."""
    torch.manual_seed(0)
    model = randomize_weights(CVAE(network, latent_dim=4))
    x, y = torch.rand(6, 1, 28, 28).round(), torch.eye(10)[:6]
    model.loss(model.terms(x, y, torch.randn(6, 4)), step=0).sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@pytest.mark.parametrize("skips", [True, False])
def test_latent_skips_connect_z_to_every_block_of_the_decoder(skips: bool) -> None:
    network = mlp(
        image_shape=(1, 4, 4),
        latent_dim=3,
        num_statistics=2,
        condition_size=10,
        num_parameters=1,
        latent_skips=skips,
    )
    with torch.no_grad():
        for p in network.decoder.stem.parameters():
            p.zero_()  # the first layer ignores z
        for p in network.decoder.blocks.parameters():
            p.add_(torch.randn_like(p))
    one, other = network.decode(torch.randn(2, 3), torch.eye(10)[[4, 4]])
    assert torch.equal(one, other) != skips


@pytest.mark.parametrize("network", [mlp, conv])
def test_the_output_of_an_image_does_not_depend_on_its_batch(network: Callable[..., Any]) -> None:
    model = CVAE(network, latent_dim=4).eval()
    x, y = torch.rand(6, 1, 28, 28), torch.eye(10)[:6]
    whole, alone = model.reconstruct(x, y), model.reconstruct(x[2:3], y[2:3])
    torch.testing.assert_close(whole[2:3], alone)


def test_an_image_size_that_cannot_be_halved_is_rejected() -> None:
    with pytest.raises(ValueError, match="a multiple of 4"):
        Conv((1, 30, 30), 2, 2, 0, 1, channels=[2, 2, 2], num_blocks=1, hidden_dim=4, patch_size=1)
