"""A part of the image as the condition."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvae import figures
from cvae.bounds import importance_weighted_nll
from cvae.data import ImagesDataModule
from cvae.given_pixels import Quadrants
from cvae.models import CVAE, VAE
from cvae.networks import MLP
from cvae.priors import Conditional
from cvae.sampling import requested_rows
from cvae.types import Batch
from harness.contract.errors import ConfigError
from tests.science.test_models import randomize_weights, set_posterior_to_prior

SHAPE = (1, 2, 2)
ALL_IMAGES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(16, *SHAPE).double()


def make_network(**kwargs: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(hidden_dim=12, encoder_blocks=1, decoder_blocks=1, **kwargs)


def make_model(num_given: int, latent_dim: int = 1, shape: tuple[int, int, int] = SHAPE) -> CVAE:
    condition = Quadrants(num_given, shape, hidden_dim=6)
    model = randomize_weights(
        CVAE(make_network, latent_dim, shape, condition=condition, prior=Conditional)
    )
    assert isinstance(model, CVAE)
    return model.double()


@pytest.mark.parametrize(
    ("num_given", "given"),
    [
        (1, [[0, 0], [1, 0]]),
        (2, [[1, 0], [1, 0]]),
        (3, [[1, 1], [1, 0]]),
    ],
)
def test_quadrants_are_added_clockwise_from_the_lower_left(
    num_given: int, given: list[list[int]]
) -> None:
    condition = Quadrants(num_given, (1, 4, 6), hidden_dim=4)
    image = torch.tensor(given).repeat_interleave(2, 0).repeat_interleave(3, 1)
    assert torch.equal(condition.given_index, image.flatten().nonzero()[:, 0])
    assert torch.equal(condition.remaining_index, (1 - image).flatten().nonzero()[:, 0])


@pytest.mark.parametrize("num_given", [1, 2, 3])
def test_probabilities_of_all_completions_sum_to_one(num_given: int) -> None:
    """The sum is over all values of the pixels that are not given, at a fixed z."""
    model = make_model(num_given)
    condition = model.condition
    assert isinstance(condition, Quadrants)
    images = ALL_IMAGES
    same = condition.complete(images, condition.from_images(images[5:6]).expand(16, -1))
    completions = same.unique(dim=0)
    assert len(completions) == 2 ** (4 - num_given)
    y = condition.from_images(completions)
    eps = torch.full((len(completions), 1, 1), 0.3).double()
    zeros = torch.zeros(len(completions), 1).double()
    log_p = model.log_weights(completions, y, eps, posterior=(zeros, zeros))
    w = model.to_base(eps[:, 0], y)
    parameters = model.decode(w, y).parameters
    by_hand = model.likelihood.log_prob(
        condition.select_remaining(completions), condition.select_remaining(parameters)
    )
    assert by_hand.exp().sum().item() == pytest.approx(1)
    log_ratio = log_p[:, 0] - by_hand  # log p(z | y) - log q(z | x, y)
    torch.testing.assert_close(log_ratio, log_ratio[:1].expand_as(log_ratio))


def test_the_bound_converges_to_the_evidence() -> None:
    """Compare with a quadrature over w; the posterior is wide."""
    model = make_model(2)
    set_posterior_to_prior(model)
    condition = model.condition
    assert isinstance(condition, Quadrants)
    with torch.no_grad():
        for p in model.prior.parameters():  # type: ignore[attr-defined]
            p.mul_(0.3)
        model.network.encoder.head.bias[1:] = 1.0  # type: ignore[attr-defined]
    x = ALL_IMAGES[4:8]
    y = condition.from_images(x)
    w = torch.linspace(-8, 8, 4001).double()[:, None]
    log_prior = -0.5 * w[:, 0].square() - 0.5 * math.log(2 * math.pi)
    truth = []
    for image, given in zip(x, y, strict=True):
        parameters = model.decode(w, given[None]).parameters
        rows = condition.select_remaining(image[None]).expand(len(w), -1, -1, -1)
        log_p = model.likelihood.log_prob(rows, condition.select_remaining(parameters))
        truth.append((log_p + log_prior).logsumexp(0) + math.log(16 / 4000))
    found = importance_weighted_nll(model, x, y, torch.arange(4), 20_000)
    torch.testing.assert_close(found, -torch.stack(truth), atol=0.05, rtol=0)


def test_completions_keep_the_given_pixels() -> None:
    model = make_model(1, latent_dim=2, shape=(1, 8, 8))
    x = torch.rand(3, 1, 8, 8).round().double()
    for images in (
        model.sample(y=x, num_samples=3),
        model.sample(y=x, sample_pixels=True),
        model.reconstruct(x, x),
        model.sample(y={"given": x}),
    ):
        assert torch.equal(images[:, :, 4:, :4], x[:, :, 4:, :4])
    five = model.sample(y=x[:1], num_samples=5)
    assert five.shape == (5, 1, 8, 8)
    assert not torch.equal(five[0], five[1])
    assert torch.equal(five[1, :, 4:, :4], x[0, :, 4:, :4])


@pytest.mark.parametrize(
    "y",
    [torch.zeros(3, 5), torch.zeros(2, 1, 8, 8), {"label": 3}, 7],
    ids=["vectors", "too few", "label", "number"],
)
def test_wrong_given_pixels_are_rejected(y: Any) -> None:
    with pytest.raises(ValueError, match=r"y has|contradictory"):
        make_model(1, shape=(1, 8, 8)).sample(y=y, num_samples=3)


def test_every_parameter_gets_a_gradient() -> None:
    model = make_model(1, latent_dim=3)
    y = model.condition.encode(ALL_IMAGES, ALL_IMAGES)
    model.loss(model.terms(ALL_IMAGES, y, torch.randn(16, 3).double()), 1000).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name == "output_bias":  # the biases of given pixels are not used
            used = parameter.grad.flatten().nonzero()[:, 0]
            assert isinstance(model.condition, Quadrants)
            assert torch.equal(used, model.condition.remaining_index)
        else:
            assert (parameter.grad != 0).any(), name


def test_batches_hold_the_given_pixels_of_their_binarized_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 60), ("test", 20)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "noise.npz", **arrays)
    condition = Quadrants(1, (1, 8, 8))
    data = ImagesDataModule(
        tmp_path,
        "noise",
        batch_size=20,
        num_classes=2,
        image_shape=(1, 8, 8),
        validation_size=10,
        condition=condition,
    )
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert set(batch.x.unique().tolist()) == {0.0, 1.0}
            assert torch.equal(batch.y, batch.x[:, 0, 4:, :4].flatten(1))
    for found in data.splits().values():
        assert found.conditions is not None
        x = found.inputs.float() / 255.0
        assert torch.equal(found.conditions, x[:, 0, 4:, :4].flatten(1))


def test_figures_show_completions() -> None:
    model = make_model(1, latent_dim=2, shape=(1, 8, 8)).float()
    x = torch.rand(12, 1, 8, 8).round()
    many = Batch(x, model.condition.encode(x, x), torch.arange(12), 12)
    assert set(figures.draw(model, many, many)) == {
        "reconstructions",
        "completions",
        "traversals",
    }
    with pytest.raises(ConfigError, match=r"figures/completions\.png"):
        requested_rows(model, 7)


def test_quadrants_need_a_conditional_model() -> None:
    with pytest.raises(ValueError, match="must have a conditional model"):
        VAE(make_network, 1, SHAPE, condition=Quadrants(1, SHAPE))
