"""Tests of the penalties, which are part of the loss and not of the bound."""

import math

import pytest
import torch

from cvae.models import CVAE, VAE
from cvae.penalties import Adversary, LabelwiseAdversary
from tests.science.test_models import (
    ALL_IMAGES,
    SHAPE,
    make_labels,
    make_labels_for,
    make_network,
    randomize_weights,
)

PenaltyClass = type[Adversary] | type[LabelwiseAdversary]


def make_model_with_adversary(
    model_class: type[VAE] = CVAE, penalty_class: PenaltyClass = Adversary
) -> VAE:
    torch.manual_seed(0)
    model = randomize_weights(
        model_class(make_network, 3, SHAPE, num_classes=4, warmup_steps=0, penalty=penalty_class)
    )
    assert isinstance(model, VAE)
    return model


@pytest.mark.parametrize("penalty_class", [Adversary, LabelwiseAdversary])
@pytest.mark.parametrize("model_class", [VAE, CVAE])
def test_the_adversary_improves_and_the_encoder_opposes_it(
    model_class: type[VAE], penalty_class: PenaltyClass
) -> None:
    """A step of the adversary lowers its loss; a step of the latent raises it."""
    model = make_model_with_adversary(model_class, penalty_class)
    adversary, y = model.penalty, make_labels_for(model, 16)
    assert isinstance(adversary, penalty_class)
    eps = torch.randn(16, 3)
    latent = (eps + 1).requires_grad_()
    before = adversary(latent, y, eps)
    before.sum().backward()
    assert latent.grad is not None
    with torch.no_grad():
        further = adversary(latent - 1e-3 * latent.grad, y, eps)
        assert further.sum() > before.sum()  # the latent moves to where the adversary is worse
        for p in adversary.parameters():
            assert p.grad is not None
            p.sub_(1e-4 * p.grad)
        assert adversary(latent, y, eps).sum() < before.sum()


@pytest.mark.parametrize("penalty_class", [Adversary, LabelwiseAdversary])
def test_the_adversary_moves_the_posterior_of_every_label_to_the_prior(
    penalty_class: PenaltyClass,
) -> None:
    """Its gradient alone moves the codes of four labels, with different means, to N(0, I)."""
    torch.manual_seed(0)
    y = make_labels(512)
    mean = (2 * y).requires_grad_()
    log_std = torch.full((512, 4), -1.0, requires_grad=True)
    adversary = penalty_class(latent_dim=4, condition_size=4, weight=1.0, hidden_dim=64)
    optimizer = torch.optim.Adam([mean, log_std, *adversary.parameters()], lr=0.01)
    for _ in range(400):
        eps = torch.randn(512, 4)
        loss = adversary(mean + log_std.exp() * eps, y, torch.randn(512, 4)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes = (mean + log_std.exp() * torch.randn(512, 4)).detach()
    for label in range(4):
        of_label = codes[label::4]
        assert of_label.mean(0).abs().max() < 0.5
        assert 0.6 < of_label.std(0).min() < of_label.std(0).max() < 1.5
    assert loss.item() / 512 == pytest.approx(math.log(4), abs=0.15)


def test_the_penalty_is_in_the_loss_and_not_in_the_bound() -> None:
    model = make_model_with_adversary()
    terms = model.terms(ALL_IMAGES, make_labels(16), torch.randn(16, 3))
    found = model.metrics(terms)
    assert torch.equal(found["elbo"], terms.reconstruction - terms.kl)
    assert torch.equal(found["penalty"], torch.as_tensor(terms.penalty))
    torch.testing.assert_close(model.loss(terms, 9), terms.penalty - terms.elbo)
    model.loss(terms, 9).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
