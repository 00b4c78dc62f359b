"""A prior is a density over z, and a way to and from its base variable."""

import math
from functools import partial

import pytest
import torch

from cvae.bounds import importance_weighted_nll
from cvae.models import CVAE, VAE
from cvae.priors import Flow, StandardNormal
from tests.science.test_models import ALL_IMAGES, SHAPE, label_for, network, randomized

flow = partial(Flow, num_couplings=3, hidden_dim=8)


def with_flow(kind: type[VAE] = CVAE, latent_dim: int = 2) -> VAE:
    torch.manual_seed(0)
    model = randomized(kind(network, latent_dim, SHAPE, num_classes=4, prior=flow))
    assert isinstance(model, VAE)
    return model


def test_a_new_flow_is_the_standard_normal() -> None:
    z = torch.randn(50, 5)
    w, log_det = flow(latent_dim=5).to_base(z)
    torch.testing.assert_close(w.sort().values, z.sort().values)  # couplings swap halves
    torch.testing.assert_close(log_det, torch.zeros(50))


@pytest.mark.parametrize("latent_dim", [2, 5, 6])
def test_from_base_undoes_to_base_with_the_log_determinant_of_its_jacobian(
    latent_dim: int,
) -> None:
    prior = with_flow(latent_dim=latent_dim).double().prior
    z = torch.randn(20, latent_dim, dtype=torch.float64)
    w, log_det = prior.to_base(z)
    assert not torch.isclose(w, z).all(1).any()
    torch.testing.assert_close(prior.from_base(w), z)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: prior.to_base(v[None])[0][0], z[i])
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian)[1])


def test_the_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    prior = flow(latent_dim=2).double()
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.3 * torch.randn_like(p))
    axis = torch.linspace(-25, 25, 1501, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    w, log_det = prior.to_base(z)
    assert (w - z).abs().mean() > 0.5
    log_density = -0.5 * (w**2).sum(1) - math.log(2 * math.pi) + log_det
    assert log_density.exp().sum().item() * (50 / 1500) ** 2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", [VAE, CVAE])
def test_the_bounds_are_ordered(kind: type[VAE]) -> None:
    """E[elbo] = E[bound at K = 1] <= E[bound at K = 30] <= log p(x | y), by a grid over w."""
    model = with_flow(kind).double()
    x, y = ALL_IMAGES.double(), label_for(model, 16)
    y = None if y is None else y.double()
    rounds = 2000
    rows, row_labels = x.repeat(rounds, 1, 1, 1), None if y is None else y.repeat(rounds, 1)
    eps = torch.randn(16 * rounds, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    elbo = model.terms(rows, row_labels, eps).elbo.view(rounds, 16)
    one, many = (
        -importance_weighted_nll(model, rows, row_labels, torch.arange(16 * rounds), k).view(
            rounds, 16
        )
        for k in (1, 30)
    )
    axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
    w = torch.cartesian_prod(axis, axis)
    log_prior = -0.5 * (w**2).sum(1) - math.log(2 * math.pi) + 2 * math.log(14 / 280)
    for i in range(16):
        label = None if y is None else y[i : i + 1].expand(len(w), -1)
        evidence = (model.decode(w, label).log_prob(x[i : i + 1]) + log_prior).logsumexp(0)
        errors = [5 * (b[:, i].std() / math.sqrt(rounds)).item() for b in (elbo, one, many)]
        means = [b[:, i].mean().item() for b in (elbo, one, many)]
        assert means[0] == pytest.approx(means[1], abs=errors[0] + errors[1])
        assert means[1] < means[2] + errors[2]
        assert means[2] < evidence.item() + errors[2]


def test_one_dimension_is_too_few() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        flow(latent_dim=1)


def test_a_gradient_reaches_every_parameter_of_a_flow() -> None:
    model = with_flow()
    model.loss(
        model.terms(ALL_IMAGES, label_for(model, 16), torch.randn(16, 2)), 9
    ).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_the_latent_is_the_base_variable() -> None:
    model = with_flow()
    y = label_for(model, 16)
    assert y is not None
    w = torch.randn(16, 2)
    z = model.prior.from_base(w)
    torch.testing.assert_close(
        model.prior.to_base(model.posterior(ALL_IMAGES, y)[0])[0], model.embed(ALL_IMAGES, y)
    )
    decoded = model.decode(w, y).mean
    model.prior = StandardNormal(2)
    torch.testing.assert_close(model.decode(z, y).mean, decoded)
