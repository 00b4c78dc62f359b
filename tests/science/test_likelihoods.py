"""Likelihoods: total probability, agreement with torch, gradients, means, and the bound."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from cvae.bounds import importance_weighted_nll
from cvae.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
)
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from cvae.pixel_distribution import PixelDistribution
from tests.science.test_models import randomize_weights

SHAPE = (3, 2, 2)
MakeLikelihood = Callable[..., Likelihood]

DISCRETE: dict[str, MakeLikelihood] = {
    "bernoulli": Bernoulli,
    "discretized_logistic": DiscretizedLogistic,
    "mixture": partial(DiscretizedLogistic, num_components=3),
}
DENSITIES: dict[str, MakeLikelihood] = {
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": partial(Gaussian, scale=1.0),
    "gaussian_learned": Gaussian,
}
ALL = {**DISCRETE, **DENSITIES}


def make_parameters(likelihood: Likelihood, *batch: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (*batch, likelihood.num_parameters, *SHAPE)
    return scale * torch.randn(size, generator=generator, dtype=torch.float64)


def list_levels(likelihood: Likelihood) -> Tensor:
    """Return all values that a discrete pixel can have."""
    assert likelihood.num_levels is not None
    return torch.arange(likelihood.num_levels, dtype=torch.float64) / (likelihood.num_levels - 1)


def make_images(likelihood: Likelihood, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    if likelihood.num_levels is None:
        return x
    levels = likelihood.num_levels - 1
    return (x * levels).round() / levels


def compute_pixel_log_prob(likelihood: Likelihood, x: Tensor, parameters: Tensor) -> Tensor:
    """Return log p of single grey pixels, all with the same parameters."""
    rows = parameters.view(1, -1, 1, 1, 1).expand(len(x), -1, 1, 1, 1)
    return likelihood.log_prob(x.view(-1, 1, 1, 1), rows)


@pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_probabilities_sum_to_one(make: MakeLikelihood, scale: float) -> None:
    likelihood = make(image_shape=(1, 1, 1))
    for seed in range(20):
        size = (likelihood.num_parameters,)
        generator = torch.Generator().manual_seed(seed)
        parameters = scale * torch.randn(size, generator=generator, dtype=torch.float64)
        total = compute_pixel_log_prob(likelihood, list_levels(likelihood), parameters).exp().sum()
        assert float(total) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("logit", [-40.0, -3.0, -0.1, -0.019, 0.0, 1e-3, 0.021, 2.0, 40.0])
def test_the_continuous_bernoulli_integrates_to_one(logit: float) -> None:
    likelihood = ContinuousBernoulli((1, 1, 1))

    def density(x: float) -> float:
        rows = torch.tensor([x], dtype=torch.float64)
        return float(compute_pixel_log_prob(likelihood, rows, torch.tensor([logit]).double()).exp())

    total, _ = integrate.quad(density, 0, 1)
    mean, _ = integrate.quad(lambda x: x * density(x), 0, 1)
    assert total == pytest.approx(1.0, abs=1e-6)
    found = likelihood.mean(torch.tensor([logit]).double().view(1, 1, 1, 1, 1))
    assert float(found) == pytest.approx(mean, abs=1e-6)


def test_bernoulli_agrees_with_torch() -> None:
    likelihood = Bernoulli(SHAPE)
    parameters, x = make_parameters(likelihood, 5, scale=3.0), make_images(likelihood, 5)
    reference = torch.distributions.Bernoulli(logits=parameters[:, 0]).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(x, parameters), reference)


def test_the_continuous_bernoulli_agrees_with_torch() -> None:
    likelihood = ContinuousBernoulli(SHAPE)
    for scale in (0.01, 1.0, 5.0):
        parameters, x = make_parameters(likelihood, 5, scale=scale), make_images(likelihood, 5)
        reference = torch.distributions.ContinuousBernoulli(logits=parameters[:, 0])
        by_torch = reference.log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(
            likelihood.log_prob(x, parameters), by_torch, atol=1e-5, rtol=1e-6
        )
        torch.testing.assert_close(
            likelihood.mean(parameters), reference.mean, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("scale", [0.05, 1.0, None])
def test_gaussian_agrees_with_torch(scale: float | None) -> None:
    likelihood = Gaussian(SHAPE, scale).double()
    parameters, x = make_parameters(likelihood, 5), make_images(likelihood, 5)
    reference = torch.distributions.Normal(parameters[:, 0], scale or 1.0)
    torch.testing.assert_close(
        likelihood.log_prob(x, parameters), reference.log_prob(x).sum((1, 2, 3)).detach()
    )


@pytest.mark.parametrize("num_components", [1, 3])
def test_the_discretized_logistic_is_a_difference_of_distribution_functions(
    num_components: int,
) -> None:
    likelihood = DiscretizedLogistic((1, 1, 1), num_components)
    levels = list_levels(likelihood)
    parameters = make_parameters(likelihood)[:, :1, :1, :1].flatten()
    log_weights, means, log_scales = torch.zeros(1), parameters[:1], parameters[1:]
    if num_components > 1:
        logits, means, log_scales = parameters.split(num_components)
        log_weights = logits.log_softmax(0)
    scales = torch.exp(nn.functional.softplus(log_scales + 8.0) - 8.0)

    def distribution_function(x: Tensor) -> Tensor:
        return torch.sigmoid((x[:, None] - means) / scales)

    upper, lower = (distribution_function(levels + h) for h in (0.5 / 255, -0.5 / 255))
    upper[-1], lower[0] = 1.0, 0.0
    reference = ((upper - lower) * log_weights.exp()).sum(1).log()
    torch.testing.assert_close(compute_pixel_log_prob(likelihood, levels, parameters), reference)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("size", [0.0, 30.0, -30.0, 1e4, -1e4])
def test_values_and_gradients_are_finite_at_extremes(make: MakeLikelihood, size: float) -> None:
    likelihood = make(image_shape=SHAPE)
    for x in (torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE)):
        for samples in ((), (3,)):
            shape = (2, *samples, likelihood.num_parameters, *SHAPE)
            parameters = torch.full(shape, size, requires_grad=True)
            log_prob = likelihood.log_prob(x, parameters)
            assert log_prob.shape == (2, *samples)
            assert log_prob.isfinite().all()
            log_prob.sum().backward()
            assert parameters.grad is not None
            assert parameters.grad.isfinite().all()
            assert likelihood.mean(parameters.detach()).isfinite().all()


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_log_prob_broadcasts_over_samples_of_z(make: MakeLikelihood) -> None:
    likelihood = make(image_shape=SHAPE)
    parameters, x = make_parameters(likelihood, 4, 5), make_images(likelihood, 4)
    found = likelihood.log_prob(x, parameters)
    for k in range(5):
        alone = likelihood.log_prob(x, parameters[:, k])
        torch.testing.assert_close(found[:, k], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_samples_have_the_mean_of_the_distribution(make: MakeLikelihood) -> None:
    likelihood = make(image_shape=SHAPE)
    parameters = make_parameters(likelihood, 1).float()
    distribution = PixelDistribution(likelihood, parameters)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        samples = distribution.sample((4000,)).clamp(0, 1)
    assert samples.shape == (4000, 1, *SHAPE)
    if isinstance(likelihood, Gaussian):  # its clipped mean is not the mean of samples
        return
    error = samples.std(0) / math.sqrt(4000)
    assert ((samples.mean(0) - distribution.mean).abs() < 5 * error + 1e-4).all()


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_samples_repeat_with_a_generator(make: MakeLikelihood) -> None:
    likelihood = make(image_shape=SHAPE)
    parameters = make_parameters(likelihood, 2).float()
    one, two, three = (
        likelihood.sample(parameters, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    if likelihood.num_levels:
        levels = one * (likelihood.num_levels - 1)
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_training_starts_at_the_mean_image(make: MakeLikelihood) -> None:
    likelihood = make(image_shape=SHAPE)
    mean, std = torch.rand(SHAPE) * 0.6 + 0.2, torch.rand(SHAPE) * 0.1 + 0.02
    parameters = likelihood.initial_parameters(mean, std)
    assert parameters.shape == (likelihood.num_parameters, *SHAPE)
    torch.testing.assert_close(likelihood.mean(parameters[None])[0], mean, atol=0.01, rtol=0)
    zeros = likelihood.initial_parameters(torch.full(SHAPE, 1e-5), torch.zeros(SHAPE))
    assert zeros.isfinite().all()
    assert likelihood.log_prob(torch.zeros(1, *SHAPE), zeros[None]).isfinite().all()


def make_network(**kwargs: object) -> MLP:
    torch.manual_seed(0)
    return MLP(hidden_dim=12, encoder_blocks=1, decoder_blocks=1, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_the_bound_converges_to_the_evidence(make: MakeLikelihood) -> None:
    """Compare with a quadrature over a one-dimensional latent."""
    model = randomize_weights(VAE(make_network, 1, image_shape=SHAPE, likelihood=make)).double()
    assert isinstance(model, VAE)
    x = make_images(model.likelihood, 6)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_prior = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    truth = []
    for image in x:
        log_p = model.decode(z[:, None]).log_prob(image[None])
        truth.append((log_p + log_prior).logsumexp(0) + math.log(16 / 4000))
    found = importance_weighted_nll(model, x, None, torch.arange(6), 20_000)
    torch.testing.assert_close(found, -torch.stack(truth), atol=0.05, rtol=0)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("model_class", [Autoencoder, VAE, CVAE])
def test_a_gradient_reaches_every_parameter(
    make: MakeLikelihood, model_class: type[Autoencoder]
) -> None:
    model = randomize_weights(
        model_class(make_network, 3, SHAPE, num_classes=4, likelihood=make)
    ).double()
    x = make_images(model.likelihood, 8)
    y = torch.arange(8) % 4 if model.conditional else None
    terms = model.terms(x, y, torch.randn(8, 3, dtype=torch.float64))
    model.loss(terms, 1000).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_densities_have_metrics_of_their_own() -> None:
    for make in ALL.values():
        model = VAE(make_network, 3, SHAPE, likelihood=make).double()
        terms = model.terms(make_images(model.likelihood, 2), None, torch.zeros(2, 3).double())
        end = "" if model.likelihood.num_levels else "_density"
        assert list(model.metrics(terms)) == [f"elbo{end}", f"reconstruction{end}", "kl"]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_autocast_does_not_change_the_likelihood_in_training(make: MakeLikelihood) -> None:
    likelihood = make(image_shape=SHAPE)
    parameters, x = make_parameters(likelihood, 8, scale=20.0).float(), make_images(likelihood, 8)
    expected = likelihood.log_prob(x.float(), parameters)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(likelihood.log_prob(x.float(), parameters), expected)
