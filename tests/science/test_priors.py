"""Tests of the priors: density over z, and the map to the base variable w and back."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from cvae.bounds import importance_weighted_nll
from cvae.models import CVAE, VAE
from cvae.priors import Conditional, Flow, Prior, StandardNormal, ZukoFlow
from tests.science.test_models import (
    ALL_IMAGES,
    SHAPE,
    make_labels_for,
    make_network,
    randomize_weights,
    set_posterior_to_prior,
)

flow = partial(Flow, num_couplings=3, hidden_dim=8)


def make_model_with_flow(model_class: type[VAE] = CVAE, latent_dim: int = 2) -> VAE:
    torch.manual_seed(0)
    model = randomize_weights(
        model_class(make_network, latent_dim, SHAPE, num_classes=4, prior=flow)
    )
    assert isinstance(model, VAE)
    return model


def make_zuko_prior(name: str, conditional: bool) -> Callable[..., Prior]:
    flows = pytest.importorskip("zuko.flows")
    make_flow = partial(getattr(flows, name), transforms=2, hidden_features=[8])
    return partial(ZukoFlow, flow=make_flow, conditional=conditional)


PRIORS: dict[str, Callable[[], Callable[..., Prior]]] = {
    "flow": lambda: flow,
    "conditional": lambda: partial(Conditional, hidden_dim=8),
    "zuko_nsf": lambda: make_zuko_prior("NSF", conditional=False),
    "zuko_nsf_conditional": lambda: make_zuko_prior("NSF", conditional=True),
    "zuko_maf_conditional": lambda: make_zuko_prior("MAF", conditional=True),
}


def make_model_with_prior(name: str, latent_dim: int = 3) -> CVAE:
    torch.manual_seed(0)
    model = randomize_weights(
        CVAE(make_network, latent_dim, SHAPE, num_classes=4, prior=PRIORS[name]())
    )
    assert isinstance(model, CVAE)
    return model.double()


@pytest.mark.parametrize(
    ("name", "latent_dim"), [*((name, 3) for name in PRIORS), ("flow", 2), ("flow", 6)]
)
def test_every_prior_is_an_invertible_map_with_a_log_determinant(
    name: str, latent_dim: int
) -> None:
    prior = make_model_with_prior(name, latent_dim).prior
    z = torch.randn(12, latent_dim, dtype=torch.float64)
    y = torch.eye(4, dtype=torch.float64)[torch.arange(12) % 4]
    w, log_det = prior.to_base(z, y)
    torch.testing.assert_close(prior.from_base(w, y), z, atol=1e-9, rtol=1e-9)
    assert not torch.isclose(w, z).all(1).any()
    for i in range(4):

        def to_base(v: torch.Tensor, label: torch.Tensor = y[i : i + 1]) -> torch.Tensor:
            return prior.to_base(v[None], label)[0][0]

        jacobian = torch.autograd.functional.jacobian(to_base, z[i])
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian)[1])
    other, _ = prior.to_base(z, y.roll(1, 0))
    assert torch.equal(other, w) != ("conditional" in name)


@pytest.mark.parametrize("name", PRIORS)
def test_decode_and_embed_use_the_base_variable_of_every_prior(name: str) -> None:
    model, y = make_model_with_prior(name), torch.arange(16) % 4
    w = torch.randn(16, 3, dtype=torch.float64)
    z = model.prior.from_base(w, torch.eye(4).double()[y])
    torch.testing.assert_close(model.to_base(z, y), w, atol=1e-6, rtol=1e-6)
    decoded = model.decode(w, y).mean
    mean, _ = model.posterior(ALL_IMAGES.double(), y)
    torch.testing.assert_close(model.embed(ALL_IMAGES.double(), y), model.to_base(mean, y))
    model.prior = StandardNormal(3, 0)
    torch.testing.assert_close(model.decode(z, y).mean, decoded)


@pytest.mark.parametrize("name", PRIORS)
def test_the_bound_under_every_prior_converges_to_the_evidence(name: str) -> None:
    """Compare with a quadrature over a base variable of two dimensions; q is wide."""
    model, y = set_posterior_to_prior(make_model_with_prior(name, latent_dim=2)), torch.arange(3)
    assert isinstance(model, CVAE)
    with torch.no_grad():
        model.network.encoder.head.bias[2:] = 1.0  # type: ignore[attr-defined]
        for p in model.prior.parameters():  # type: ignore[attr-defined]
            p.mul_(0.4)
    x, axis = ALL_IMAGES[5:8].double(), torch.linspace(-7, 7, 141, dtype=torch.float64)
    w = torch.cartesian_prod(axis, axis)
    log_prior = -0.5 * w.square().sum(1) - math.log(2 * math.pi)
    truth = torch.stack(
        [
            (model.decode(w, int(c)).log_prob(x[i : i + 1]) + log_prior).logsumexp(0)
            + 2 * math.log(0.1)
            for i, c in enumerate(y)
        ]
    )
    found = importance_weighted_nll(model, x, y, torch.arange(3), 20_000)
    torch.testing.assert_close(found, -truth, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_with_every_prior_a_gradient_reaches_every_parameter(name: str) -> None:
    model = make_model_with_prior(name)
    terms = model.terms(ALL_IMAGES.double(), torch.arange(16) % 4, torch.randn(16, 3).double())
    model.loss(terms, 1000).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert (parameter.grad != 0).any(), key


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_takes_an_empty_batch(name: str) -> None:
    prior, y = make_model_with_prior(name).prior, torch.zeros(0, 4).double()
    w, log_det = prior.to_base(torch.zeros(0, 3).double(), y)
    assert (w.shape, log_det.shape) == ((0, 3), (0,))
    assert prior.from_base(w, y).shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [("GMM", "must be a flow, with a transform and a base"), ("NCSF", "not BoxUniform")],
)
def test_other_distributions_of_zuko_are_rejected(name: str, message: str) -> None:
    flows = pytest.importorskip("zuko.flows")
    with pytest.raises(ValueError, match=message):
        ZukoFlow(3, 0, getattr(flows, name))


def test_a_new_conditional_prior_is_standard_normal() -> None:
    z, y = torch.randn(8, 3), torch.eye(4)[torch.arange(8) % 4]
    w, log_det = Conditional(3, 4).to_base(z, y)
    assert torch.equal(w, z)
    assert torch.equal(log_det, torch.zeros(8))


def test_a_conditional_prior_needs_a_condition() -> None:
    with pytest.raises(ValueError, match="needs a conditional model"):
        VAE(make_network, 3, SHAPE, prior=Conditional)


def test_a_new_flow_is_standard_normal() -> None:
    z = torch.randn(50, 5)
    w, log_det = flow(latent_dim=5, condition_size=0).to_base(z, None)
    torch.testing.assert_close(w.sort().values, z.sort().values)  # couplings swap halves
    torch.testing.assert_close(log_det, torch.zeros(50))


def test_the_density_of_a_flow_integrates_to_one() -> None:
    torch.manual_seed(0)
    prior = flow(latent_dim=2, condition_size=0).double()
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.3 * torch.randn_like(p))
    axis = torch.linspace(-25, 25, 501, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    w, log_det = prior.to_base(z, None)
    assert (w - z).abs().mean() > 0.5
    log_density = -0.5 * (w**2).sum(1) - math.log(2 * math.pi) + log_det
    assert log_density.exp().sum().item() * (50 / 500) ** 2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("model_class", [VAE, CVAE])
def test_the_bounds_are_ordered(model_class: type[VAE]) -> None:
    """E[elbo] = E[bound at K = 1] <= E[bound at K = 30] <= log p(x | y), on a grid over w."""
    model = make_model_with_flow(model_class).double()
    x, y = ALL_IMAGES[[0, 6, 9, 15]].double(), make_labels_for(model, 4)
    y = None if y is None else y.double()
    rounds = 2000
    rows, row_labels = x.repeat(rounds, 1, 1, 1), None if y is None else y.repeat(rounds, 1)
    eps = torch.randn(4 * rounds, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    elbo = model.terms(rows, row_labels, eps).elbo.view(rounds, 4)
    one, many = (
        -importance_weighted_nll(model, rows, row_labels, torch.arange(4 * rounds), k).view(
            rounds, 4
        )
        for k in (1, 30)
    )
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    w = torch.cartesian_prod(axis, axis)
    log_prior = -0.5 * (w**2).sum(1) - math.log(2 * math.pi) + 2 * math.log(14 / 140)
    for i in range(4):
        label = None if y is None else y[i : i + 1].expand(len(w), -1)
        evidence = (model.decode(w, label).log_prob(x[i : i + 1]) + log_prior).logsumexp(0)
        errors = [5 * (b[:, i].std() / math.sqrt(rounds)).item() for b in (elbo, one, many)]
        means = [b[:, i].mean().item() for b in (elbo, one, many)]
        assert means[0] == pytest.approx(means[1], abs=errors[0] + errors[1])
        assert means[1] < means[2] + errors[2]
        assert means[2] < evidence.item() + errors[2]


def test_a_flow_rejects_a_one_dimensional_latent() -> None:
    with pytest.raises(ValueError, match="must be at least 2"):
        flow(latent_dim=1, condition_size=0)
