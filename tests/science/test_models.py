"""Tests of the mathematics of autoencoder, VAE and CVAE."""

import itertools
import math
import random
import sys
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from cvae.bounds import importance_weighted_nll
from cvae.conditions import one_hot
from cvae.likelihoods import Gaussian
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from cvae.penalties import Adversary
from cvae.priors import Flow, PriorFactory, StandardNormal
from cvae.types import Terms
from tests import PACKAGE
from tests.tally import Promise

SHAPE = (1, 2, 2)
ALL_IMAGES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(16, *SHAPE)

FLOW = partial(Flow, num_couplings=2, hidden_dim=8)


def make_network(**kwargs: object) -> MLP:
    torch.manual_seed(0)  # models create their network first
    return MLP(hidden_dim=12, encoder_blocks=2, decoder_blocks=2, **kwargs)  # type: ignore[arg-type]


def randomize_weights(model: Autoencoder) -> Autoencoder:
    """Move the weights far from their initialization, always in the same way."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator).to(p))
    return model


def make_model(
    model_class: type[Autoencoder], latent_dim: int = 3, num_classes: int = 4
) -> Autoencoder:
    return randomize_weights(
        model_class(make_network, latent_dim, image_shape=SHAPE, num_classes=num_classes)
    )


def make_labels(count: int, num_classes: int = 4) -> Tensor:
    return torch.eye(num_classes)[torch.arange(count) % num_classes]


def make_labels_for(model: Autoencoder, count: int) -> Tensor | None:
    return make_labels(count) if model.conditional else None


def set_posterior_to_prior(model: Autoencoder) -> Autoencoder:
    with torch.no_grad():
        for p in model.network.encoder.head.parameters():  # type: ignore[attr-defined]
            p.zero_()
    return model


def compute_log_evidence(model: VAE, x: Tensor, y: Tensor | None) -> Tensor:
    """Return log p(x | y) of a model with a one-dimensional latent, by quadrature."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    values = []
    for i in range(len(x)):
        rows = None if y is None else y[i : i + 1].expand(len(z), -1)
        log_joint = model.decode(z[:, None], rows).log_prob(x[i : i + 1]) + Normal(0, 1).log_prob(z)
        values.append(log_joint.logsumexp(0) + math.log(16 / 4000))
    return torch.stack(values)


@pytest.mark.parametrize("model_class", [VAE, CVAE])
def test_kl_is_that_of_the_posterior_to_the_prior(model_class: type[VAE]) -> None:
    model = make_model(model_class)
    x, y = ALL_IMAGES, make_labels_for(model, 16)
    terms = model.terms(x, y, torch.randn(16, 3))
    prior = Independent(Normal(torch.zeros(16, 3), torch.ones(16, 3)), 1)
    posterior = model.encode(x, y)
    assert isinstance(posterior, Independent)
    torch.testing.assert_close(terms.kl, kl_divergence(posterior, prior))
    assert (terms.kl > 0).all()
    assert isinstance(model, VAE)
    likelihood = model.decode(posterior.mean, y)
    expected = model.terms(x, y, torch.zeros(16, 3)).reconstruction
    torch.testing.assert_close(likelihood.log_prob(x), expected)
    assert (terms.reconstruction <= 0).all()


@pytest.mark.parametrize("prior", [StandardNormal, FLOW])
def test_the_path_gradient_is_unbiased(prior: PriorFactory) -> None:
    """The expected gradients are computed by quadrature over eps; the KL agrees for every eps."""
    model = randomize_weights(CVAE(make_network, 2, SHAPE, num_classes=4, prior=prior)).double()
    assert isinstance(model, VAE)
    nodes, mass = (torch.from_numpy(found) for found in numpy.polynomial.hermite_e.hermegauss(60))
    eps = torch.cartesian_prod(nodes, nodes)
    weight = torch.cartesian_prod(mass, mass).prod(1) / mass.sum() ** 2
    x, y = (
        rows[:1].double().expand(len(eps), *rows.shape[1:]) for rows in (ALL_IMAGES, make_labels(1))
    )

    def compute_kl_and_gradients(path_gradient: bool, weight: Tensor) -> tuple[Tensor, Tensor]:
        model.path_gradient = path_gradient
        model.zero_grad()
        terms = model.terms(x, y, eps)
        (weight * model.loss(terms, 0)).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return terms.kl.detach(), torch.cat([g.flatten() for g in gradients])

    (path_kl, path), (kl, total) = (
        compute_kl_and_gradients(True, weight),
        compute_kl_and_gradients(False, weight),
    )
    torch.testing.assert_close(path_kl, kl)
    assert (path - total).norm() < 1e-4 * total.norm()
    one = torch.zeros_like(weight).index_fill(0, torch.tensor(1234), 1.0)
    assert (
        compute_kl_and_gradients(True, one)[1] - compute_kl_and_gradients(False, one)[1]
    ).norm() > 0.01 * total.norm()


@pytest.mark.parametrize("path_gradient", [True, False])
def test_the_path_gradient_has_no_noise_at_the_true_posterior(
    path_gradient: bool,
) -> None:
    """The likelihood is Gaussian around z times a direction, so that q can be exact."""
    direction = torch.tensor([[0.5, -1.0, 2.0, 0.1]], dtype=torch.float64)
    x = ALL_IMAGES.double()
    precision = 1 + direction.square().sum()
    mean = x.flatten(1) @ direction.T / precision
    raw = 5 * torch.atanh(-0.5 * precision.log() / 5).expand(16, 1)
    exact = FixedOutputs(torch.cat([mean, raw], dim=1), torch.zeros(16, *SHAPE))
    exact.decode = lambda z, y: (z @ direction).view(-1, *SHAPE)  # type: ignore[method-assign]
    settings: dict[str, Any] = {"warmup_steps": 0, "path_gradient": path_gradient}
    settings["likelihood"] = partial(Gaussian, scale=1.0)
    model = VAE(lambda **_: exact, 1, image_shape=SHAPE, **settings).double()
    eps = torch.randn(16, 1, dtype=torch.float64)
    model.loss(model.terms(x, None, eps), 0).sum().backward()
    assert exact.statistics.grad is not None
    noise = exact.statistics.grad.abs().max()
    assert noise < 1e-10 if path_gradient else noise > 0.1


def test_kl_vanishes_where_the_posterior_is_the_prior() -> None:
    model = set_posterior_to_prior(make_model(VAE))
    kl = model.terms(ALL_IMAGES, None, torch.randn(16, 3)).kl
    torch.testing.assert_close(kl, torch.zeros(16))


@pytest.mark.parametrize("model_class", [VAE, CVAE])
def test_the_bounds_are_ordered_and_at_most_the_evidence(model_class: type[VAE]) -> None:
    """E[elbo] <= E[importance-weighted bound], rising with K, <= log p(x | y)."""
    model = make_model(model_class, latent_dim=1).double()
    x, y = ALL_IMAGES[[0, 6, 9, 15]].double(), make_labels_for(model, 4)
    y = None if y is None else y.double()
    assert isinstance(model, VAE)
    evidence = compute_log_evidence(model, x, y)
    rounds = 4000
    rows, labels_of_rows = x.repeat(rounds, 1, 1, 1), None if y is None else y.repeat(rounds, 1)
    index = torch.arange(rounds * 4)  # other image indices have other noise
    bounds = []
    for k in (1, 3, 30):
        nll = importance_weighted_nll(model, rows, labels_of_rows, index, k)
        bounds.append(-nll.view(rounds, 4))
    eps = torch.randn(
        rounds * 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    elbo = model.terms(rows, labels_of_rows, eps).elbo.view(rounds, 4).mean(0)
    means = [b.mean(0) for b in bounds]
    errors = [5 * b.std(0) / math.sqrt(rounds) for b in bounds]
    torch.testing.assert_close(elbo, means[0], atol=float(errors[0].max()) * 2, rtol=0)
    for low, high, error in zip(means, [*means[1:], evidence], errors, strict=True):
        assert (low <= high + error).all()
    assert (means[0] < evidence - errors[0]).any()  # the gap is real, not noise


def test_the_bound_is_tight_for_many_samples() -> None:
    """With q = N(0, I), the weights are p(x | z, y) <= 1, so their variance is small."""
    model = set_posterior_to_prior(make_model(CVAE, latent_dim=1).double())
    assert isinstance(model, VAE)
    y = make_labels_for(model, 16)
    y = None if y is None else y.double()
    x = ALL_IMAGES.double()
    bound = -importance_weighted_nll(model, x, y, torch.arange(16), 50_000)
    torch.testing.assert_close(bound, compute_log_evidence(model, x, y), atol=0.03, rtol=0)


@pytest.mark.parametrize("model_class", [Autoencoder, VAE, CVAE])
def test_the_probabilities_of_all_images_sum_to_one(model_class: type[Autoencoder]) -> None:
    model = make_model(model_class)
    z = torch.randn(1, 3).expand(16, 3)
    y = make_labels(1).expand(16, 4) if model.conditional else None
    total = model.decode(z, y).log_prob(ALL_IMAGES).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0))


def test_an_empty_batch_has_no_loss_and_no_gradient() -> None:
    """A rank may have no image in a ragged last batch."""
    model = make_model(CVAE)
    assert isinstance(model, CVAE)
    x, y = torch.zeros(0, *SHAPE), torch.zeros(0, 4)
    terms = model.terms(x, y, torch.zeros(0, 3))
    terms.elbo.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert importance_weighted_nll(model, x, y, torch.arange(0), 3).shape == (0,)


@pytest.mark.parametrize("model_class", [Autoencoder, VAE, CVAE])
def test_a_gradient_reaches_every_parameter(model_class: type[Autoencoder]) -> None:
    model = make_model(model_class)
    terms = model.terms(ALL_IMAGES, make_labels_for(model, 16), torch.randn(16, 3))
    model.loss(terms, step=10).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_the_label_reaches_encoder_and_decoder() -> None:
    model = make_model(CVAE)
    x, z = ALL_IMAGES[:4], torch.randn(1, 3).expand(4, 3)
    same_image = x[1:2].expand(4, *SHAPE)
    assert model.embed(same_image, make_labels(4)).unique(dim=0).shape[0] == 4
    assert model.decode(z, make_labels(4)).mean.flatten(1).unique(dim=0).shape[0] == 4


@pytest.mark.parametrize("model_class", [Autoencoder, VAE])
def test_an_unconditional_model_rejects_a_label(model_class: type[Autoencoder]) -> None:
    with pytest.raises(ValueError, match="unconditional"):
        make_model(model_class).sample(y=1)


def test_a_conditional_model_requires_a_label() -> None:
    with pytest.raises(ValueError, match="conditional"):
        make_model(CVAE).sample(num_samples=2)
    with pytest.raises(ValueError, match="shape"):
        make_model(CVAE).embed(ALL_IMAGES, make_labels(16, num_classes=3))


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 2)])
def test_images_must_have_one_or_three_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="with 1 or 3 channels"):
        CVAE(make_network, 3, shape)


def test_samples_follow_label_z_seed_and_temperature() -> None:
    model = make_model(CVAE)
    z = torch.randn(4, 3)
    by_one_hot = model.sample(make_labels(4), z)
    assert torch.equal(by_one_hot, model.sample([0, 1, 2, 3], z))
    assert torch.equal(by_one_hot, model.decode(z, make_labels(4)).mean)
    assert model.sample(y=2, num_samples=5).shape == (5, *SHAPE)
    one, two = (
        model.sample(
            2, num_samples=5, sample_pixels=True, generator=torch.Generator().manual_seed(9)
        )
        for _ in range(2)
    )
    assert torch.equal(one, two)
    assert set(one.unique().tolist()) <= {0.0, 1.0}
    at_zero_temperature = model.sample(2, num_samples=5, temperature=0.0)
    torch.testing.assert_close(
        at_zero_temperature, at_zero_temperature[:1].expand_as(at_zero_temperature)
    )


GOOD_LABELS = [
    [1, 1, 1],
    (1, 1, 1),
    1,
    numpy.int64(1),
    numpy.array([1, 1, 1], numpy.uint8),
    numpy.array([True, True, True]),
    torch.tensor(1),
    torch.tensor([1, 1, 1]),
    torch.tensor([1, 1, 1], dtype=torch.uint8),
    torch.tensor([1, 1, 1], dtype=torch.int32),
    torch.tensor([[0, 1, 0, 0]] * 3),
    make_labels(2)[[1, 1, 1]],
    numpy.eye(4)[[1, 1, 1]],  # float64
]


@pytest.mark.parametrize("y", GOOD_LABELS, ids=lambda y: f"{type(y).__name__} {y}")
def test_every_method_accepts_labels_in_any_form(y: Any) -> None:
    penalty = partial(Adversary, hidden_dim=4)
    model = CVAE(make_network, 3, SHAPE, num_classes=4, prior=FLOW, penalty=penalty)
    randomize_weights(model)
    x, z, expected = ALL_IMAGES[:3], torch.randn(3, 3), make_labels(2)[[1, 1, 1]]
    for method in (
        lambda y: model.loss(model.terms(x, y, z), 0),
        lambda y: model.log_weights(x, y, z[:, None]),
        lambda y: importance_weighted_nll(model, x, y, torch.arange(3), 4),
        lambda y: model.embed(x, y),
        lambda y: model.encode(x, y).mean,
        lambda y: model.decode(z, y).mean,
        lambda y: model.reconstruct(x, y),
        lambda y: model.sample(y, z),
    ):
        assert torch.equal(method(y), method(expected))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (12, "y=12: labels must be from 0 to 3"),
        (-1, "y=-1: labels must be from 0 to 3"),
        ([0, 1, 4], "y=4: labels must be from 0 to 3"),
        (numpy.array([0, 1, 2**64 - 1], numpy.uint64), "labels must be from 0 to 3"),
        ([0, 1], "y has 2 labels for 3 rows"),
        (torch.tensor([0.5, 1.0, 2.0]), "integers from 0 to 3 or one-hot rows"),
        (make_labels(3, num_classes=3), r"shape \(3, 3\), not \(3, 4\)"),
        (numpy.array(["a", "b", "c"]), "y of type ndarray: must be integer labels"),
    ],
)
def test_wrong_labels_are_rejected_in_one_line(y: Any, message: str) -> None:
    model = make_model(CVAE)
    for call in (
        lambda: model.embed(ALL_IMAGES[:3], y),
        lambda: model.decode(torch.zeros(3, 3), y),
        lambda: model.sample(y, torch.zeros(3, 3)),
    ):
        with pytest.raises(ValueError, match=f"{message}|contradictory") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_contradictory_numbers_of_samples_are_rejected() -> None:
    model, z = make_model(CVAE), torch.zeros(5, 3)
    assert model.sample(y=1, z=z, num_samples=5).shape == (5, *SHAPE)
    assert model.sample(y=[1, 2], num_samples=2).shape == (2, *SHAPE)
    assert model.sample(y=1).shape == (1, *SHAPE)
    contradictory: tuple[dict[str, Any], ...] = (
        {"y": [0, 1, 2], "num_samples": 9},
        {"y": [0, 1, 2], "z": z},
        {"y": 1, "z": z, "num_samples": 9},
    )
    for arguments in contradictory:
        with pytest.raises(ValueError, match="contradictory numbers of samples"):
            model.sample(**arguments)
    with pytest.raises(ValueError, match="num_samples=-1"):
        model.sample(y=1, num_samples=-1)


COMPILED = """
from functools import partial

import torch
from cvae.conditions import Attributes
from cvae.given_pixels import Quadrants
from cvae import likelihoods
from cvae.models import CVAE
from cvae.likelihoods import Gaussian
from cvae.networks import MLP
from cvae.priors import Conditional

def make_network(**kwargs):
    return MLP(hidden_dim=4, encoder_blocks=1, decoder_blocks=1, **kwargs)

def check_compiled(y, **settings):
    torch._dynamo.reset()
    model = CVAE(make_network, 3, (1, 2, 2), num_classes=4, **settings)
    x, eps = torch.ones(4, 1, 2, 2), torch.zeros(4, 3)
    found = torch.compile(model.terms, fullgraph=True, backend="eager")(x, y, eps)
    assert torch.equal(found.elbo, model.terms(x, y, eps).elbo)

check_compiled(torch.eye(4))
mixture = partial(likelihoods.DiscretizedLogistic, num_components=2)
for likelihood in (likelihoods.ContinuousBernoulli, likelihoods.Gaussian, mixture):
    check_compiled(torch.eye(4), likelihood=likelihood)
check_compiled(torch.rand(4, 1), condition=Attributes({"angle": "continuous"}), prior=Conditional)
check_compiled(torch.rand(4, 1), condition=Quadrants(1, (1, 2, 2), hidden_dim=4), prior=Conditional)
"""


def test_one_hot_labels_are_not_copied() -> None:
    y = make_labels(16)
    assert one_hot(y, 4, ALL_IMAGES) is y


def test_labels_and_likelihoods_do_not_break_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project is imported again, as the shape checks of the tests cannot be compiled."""
    for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    unchecked = [f for f in sys.meta_path if not type(f).__module__.startswith("jaxtyping")]
    assert len(unchecked) < len(sys.meta_path)
    monkeypatch.setattr(sys, "meta_path", unchecked)
    exec(COMPILED, {})


@pytest.mark.parametrize(
    ("beta", "warmup_steps", "step", "weight"),
    [
        (1, 0, 0, 1.0),
        (1, 4, 0, 0.25),
        (1, 4, 1, 0.5),
        (1, 4, 3, 1.0),
        (1, 4, 9, 1.0),
        (4, 2, 0, 2.0),
    ],
)
def test_beta_rises_linearly_during_the_warmup(
    beta: float, warmup_steps: int, step: int, weight: float
) -> None:
    model = VAE(make_network, 2, image_shape=SHAPE, beta=beta, warmup_steps=warmup_steps)
    terms = Terms(reconstruction=torch.tensor([-3.0]), kl=torch.tensor([2.0]))
    assert model.loss(terms, step).item() == pytest.approx(3 + weight * 2)
    assert model.metrics(terms)["elbo"].item() == -5  # for any beta


def test_the_output_is_initialized_to_the_mean_image() -> None:
    mean = torch.rand(SHAPE) * 0.8 + 0.1
    model = CVAE(make_network, 3, image_shape=SHAPE, num_classes=4)
    model.initialize_output_bias(mean, std=mean)
    images = model.sample(make_labels(4), torch.randn(4, 3))
    torch.testing.assert_close(images, mean.expand(4, *SHAPE), atol=0.1, rtol=0)


def test_the_posterior_stays_finite_for_large_encoder_outputs() -> None:
    model = make_model(VAE)
    with torch.no_grad():
        for p in model.network.encoder.head.parameters():  # type: ignore[attr-defined]
            p.fill_(1e6)
    terms = model.terms(ALL_IMAGES, None, torch.randn(16, 3))
    terms.elbo.sum().backward()
    assert terms.kl.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


class FixedOutputs(torch.nn.Module):
    """Network that returns fixed statistics and logits for any input."""

    def __init__(self, statistics: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.statistics = torch.nn.Parameter(statistics)
        self.logits = torch.nn.Parameter(logits)

    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.statistics

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        repeats = len(z) // len(self.logits)
        return self.logits.repeat_interleave(repeats, 0) + 1e-3 * z.mean(1).view(-1, 1, 1, 1)


def make_extreme_values(
    rng: random.Random, size: tuple[int, ...], largest: int, dtype: torch.dtype
) -> Tensor:
    """Return values of both signs, of magnitudes from 1e-30 to 10 ** largest, and zeros."""
    values = [
        rng.choice((-1, 1)) * 10.0 ** rng.uniform(-30, largest) if rng.random() > 0.05 else 0.0
        for _ in range(math.prod(size))
    ]
    values[0], values[-1] = 10.0**largest, -(10.0**largest)
    return torch.tensor(values, dtype=dtype).view(size)


@pytest.mark.fault(Promise.NUMBERS, "encoder and decoder outputs up to 1e30 in the bounds")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("model_class", [Autoencoder, VAE, CVAE])
@pytest.mark.parametrize("seed", range(12))
def test_extreme_network_outputs_have_finite_terms_and_gradients(
    seed: int, model_class: type[Autoencoder], dtype: torch.dtype
) -> None:
    """Means up to 1e17, logits and log standard deviations up to 1e30: beyond any training."""
    rng = random.Random(seed)
    batch, dim = 5, 3
    statistics = make_extreme_values(rng, (batch, dim), 17, dtype)
    if model_class is not Autoencoder:
        statistics = torch.cat(
            (statistics, make_extreme_values(rng, (batch, dim), 30, dtype)), dim=1
        )
    logits = make_extreme_values(rng, (batch, *SHAPE), 30, dtype)
    model = model_class(
        lambda **_: FixedOutputs(statistics, logits), dim, image_shape=SHAPE, num_classes=4
    )
    if isinstance(model, VAE):
        model.path_gradient = seed % 2 == 1
    compute_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    grey = torch.tensor([rng.random() for _ in range(batch * 4)], dtype=compute_dtype).view(
        batch, *SHAPE
    )
    for x in (grey, grey.round()):
        model.zero_grad()
        terms = model.terms(
            x, make_labels_for(model, batch), torch.randn(batch, dim, dtype=compute_dtype)
        )
        assert terms.reconstruction.isfinite().all()
        assert terms.kl.isfinite().all()
        assert (terms.kl >= 0).all()
        assert (terms.reconstruction <= 0).all()
        model.loss(terms, step=10).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if isinstance(model, VAE):
        x, y = grey.round(), make_labels_for(model, batch)
        model.zero_grad()
        weights = model.log_weights(x, y, torch.randn(batch, 4, dim, dtype=compute_dtype))
        assert weights.isfinite().all()
        weights.logsumexp(dim=1).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        nll = importance_weighted_nll(model, x, y, torch.arange(batch), 4)
        assert nll.isfinite().all()
