"""Autoencoder, VAE and conditional VAE, in one file so that you can compare them line by line.

All terms are in nats per image: summed over pixels and latent dimensions, not averaged over images.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from cvae.conditions import ConditionSpec, Labels, OneHot, count_rows
from cvae.given_pixels import Quadrants
from cvae.likelihoods import Bernoulli, LikelihoodFactory
from cvae.networks import NetworkFactory
from cvae.penalties import PenaltyFactory
from cvae.pixel_distribution import PixelDistribution
from cvae.priors import PriorFactory, StandardNormal
from cvae.types import Condition, Image, Latent, Nats, Parameters, Terms
from harness.contract.settings import Natural, Size, Weight

_MAX_LOG_STD = 5.0  # bound on |log standard deviation| of the posterior, to avoid overflow


def _to_float32(values: Tensor) -> Tensor:
    """Convert to float32 or wider: sums over 784 pixels lose nats in bfloat16."""
    return values.float() if values.itemsize < 4 else values


def _resolve_num_samples(y: Labels | None, z: Tensor | None, num_samples: int | None) -> int:
    """Return the number of samples that the arguments imply, or 1; raise if they differ."""
    counts = {
        "y": count_rows(y),
        "z": None if z is None else len(z),
        "num_samples": num_samples,
    }
    implied = {name: count for name, count in counts.items() if count is not None}
    if len(set(implied.values())) > 1:
        shown = ", ".join(f"{count} from {name}" for name, count in implied.items())
        raise ValueError(f"contradictory numbers of samples ({shown}): they must be equal")
    if num_samples is not None and num_samples < 0:
        raise ValueError(f"num_samples={num_samples}: must be at least 0")
    return next(iter(implied.values()), 1)


def _sampled_kl(w: Latent, log_det: Nats, eps: Latent, log_std: Latent) -> Nats:
    """Return log q(z | x, y) - log p(z) at one z; the factors (2 pi)^(-d/2) cancel."""
    return 0.5 * (w**2 - eps**2).sum(-1) - log_std.sum(-1) - log_det


class Autoencoder(nn.Module):
    r"""Plain autoencoder: a deterministic code z = f(x), trained by maximum likelihood.

    .. math:: \max_{f, p}\; E_x \log p(x \mid z = f(x))

    in nats per image. The distribution of the codes is not constrained, so an image decoded from a
    random z need not look like a digit.

    Methods take labels y as one integer for all images, a list, array or tensor of integers, or
    one-hot rows; several attributes as a mapping, such as ``{"digit": 7, "angle": 30.0}``.

    Example::

        network = functools.partial(MLP, hidden_dim=384, encoder_blocks=2, decoder_blocks=3)
        model = Autoencoder(network, latent_dim=24)
        images = model.reconstruct(x)  # pixel means in [0, 1], of the shape of x

    Args:
        network: constructor of the encoder and decoder, a :class:`cvae.networks.NetworkFactory`.
        latent_dim: dimensions of the latent z.
        image_shape: (channels, height, width); 1 channel for grey images, 3 for color.
        num_classes: number of classes.
        likelihood: constructor of p(x | z), a :class:`cvae.likelihoods.LikelihoodFactory`.
        condition: meaning of y, a :class:`cvae.conditions.ConditionSpec`; None for a one-hot label
            of ``num_classes``. Only a conditional model takes y.
    """

    conditional = False
    num_statistics = 1

    def __init__(
        self,
        network: NetworkFactory,
        latent_dim: Size,
        image_shape: Sequence[Size] = (1, 28, 28),
        num_classes: Size = 10,
        likelihood: LikelihoodFactory = Bernoulli,
        condition: ConditionSpec | None = None,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3 or image_shape[0] not in (1, 3):
            raise ValueError(
                f"image_shape={list(image_shape)}: must be [channels, height, width], with 1 or 3 "
                "channels"
            )
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)
        self.condition = OneHot(num_classes) if condition is None else condition
        if isinstance(self.condition, Quadrants) and not self.conditional:
            raise ValueError("data/condition=quadrants: must have a conditional model, model=cvae")
        self.condition_size = self.condition.embedding_size if self.conditional else 0
        self.likelihood = likelihood(image_shape=self.image_shape)
        self.network = network(
            image_shape=self.image_shape,
            latent_dim=latent_dim,
            num_statistics=self.num_statistics,
            condition_size=self.condition_size,
            num_parameters=self.likelihood.num_parameters,
        )
        channels, height, width = self.image_shape
        num_outputs = self.likelihood.num_parameters * channels
        self.output_bias = nn.Parameter(torch.zeros(num_outputs, height, width))

    def initialize_output_bias(self, mean: Tensor, std: Tensor) -> None:
        """Set the output bias to parameters of the likelihood that fit the training images.

        Args:
            mean: mean of every pixel, in (0, 1).
            std: standard deviation of every pixel.
        """
        start = self.likelihood.initial_parameters(mean, std)
        with torch.no_grad():
            self.output_bias.copy_(start.flatten(0, 1))

    def _encode_condition(self, y: Labels | None, rows: Tensor) -> Condition | None:
        """Return y as vectors, in the units of the data."""
        if self.conditional and y is None:
            raise ValueError(f"{type(self).__name__} is conditional: pass the labels y")
        if not self.conditional and y is not None:
            raise ValueError(f"{type(self).__name__} is unconditional: do not pass labels y")
        return None if y is None else self.condition.encode(y, rows)

    def _embed_condition(self, y: Labels | None, rows: Tensor) -> Condition | None:
        """Return y as the vectors that networks and prior take."""
        vectors = self._encode_condition(y, rows)
        return None if vectors is None else self.condition(vectors)

    def _statistics(self, x: Image, c: Condition | None) -> Tensor:
        return _to_float32(self.network.encode(x, c))

    def _pixel_parameters(self, z: Latent, c: Condition | None) -> Parameters:
        """Return the parameters of the likelihood."""
        outputs = _to_float32(self.network.decode(z, c)) + self.output_bias
        return outputs.unflatten(1, (self.likelihood.num_parameters, self.image_shape[0]))

    def _log_prob(self, x: Image, parameters: Parameters) -> Tensor:
        """Return log p(x | z, y) of each image, summed over the pixels that y does not give."""
        if isinstance(self.condition, Quadrants):
            select = self.condition.select_remaining
            x, parameters = select(x), select(parameters)
        return self.likelihood.log_prob(x, parameters)

    def _to_z(self, latent: Latent, c: Condition | None) -> Latent:
        """Map a latent, the base variable of the prior, to z."""
        return latent

    def _to_latent(self, z: Latent, c: Condition | None) -> Latent:
        """Map z to its latent, the base variable of the prior."""
        return z

    def embed(self, x: Image, y: Labels | None = None) -> Latent:
        """Return one latent point per image: the code, or the posterior mean."""
        return self._statistics(x, self._embed_condition(y, x))

    def encode(self, x: Image, y: Labels | None = None) -> Latent | Distribution:
        """Return the code z of each image."""
        return self.embed(x, y)

    def decode(self, z: Latent, y: Labels | None = None) -> PixelDistribution:
        """Return p(x | z, y); its ``mean`` is the image to show, in [0, 1].

        With a prior other than N(0, I), the argument z is the base variable w.
        """
        vectors = self._encode_condition(y, z)
        c = None if vectors is None else self.condition(vectors)
        parameters = self._pixel_parameters(self._to_z(z, c), c)
        if vectors is None or not isinstance(self.condition, Quadrants):
            return PixelDistribution(self.likelihood, parameters)
        complete = partial(self.condition.complete, y=vectors)
        return PixelDistribution(self.likelihood, parameters, complete)

    def reconstruct(self, x: Image, y: Labels | None = None) -> Image:
        """Return the pixel means decoded from :meth:`embed`, in [0, 1]."""
        return self.decode(self.embed(x, y), y).mean

    @torch.no_grad()
    def sample(
        self,
        y: Labels | None = None,
        z: Latent | None = None,
        *,
        num_samples: int | None = None,
        temperature: float = 1.0,
        sample_pixels: bool = False,
        generator: torch.Generator | None = None,
    ) -> Image:
        """Return images decoded from random points of the latent space.

        The same z with ten labels gives ten digits in one style.

        Example::

            images = model.sample(y=7, num_samples=10)  # (10, 1, 28, 28), in [0, 1]
            z = torch.randn(1, model.latent_dim).expand(10, -1)
            digits = model.sample(y=torch.arange(10), z=z)  # one style, ten labels

        Args:
            y: labels of a conditional model: one for all images, one per image, or one-hot rows;
                for several attributes a mapping, each one for all images or one per image.
            z: points to decode; by default sampled from N(0, temperature² I).
            num_samples: number of images; by default that of y or z, or 1.
            temperature: standard deviation of the sampled z.
            sample_pixels: return images with sampled pixels instead of their means in [0, 1].
            generator: CPU random number generator, for reproducible images.

        Raises:
            ValueError: a label is out of range, or y, z and num_samples contradict each other.
        """
        size = _resolve_num_samples(y, z, num_samples)
        if z is None:
            z = torch.randn(size, self.latent_dim, generator=generator) * temperature
        z = z.to(self.output_bias)
        images = self.decode(z, y)
        return images.sample(generator=generator) if sample_pixels else images.mean

    def terms(self, x: Image, y: Labels | None, eps: Latent) -> Terms:
        """Return the reconstruction term and a KL of 0, since the code is deterministic."""
        c = self._embed_condition(y, x)
        parameters = self._pixel_parameters(self._statistics(x, c), c)
        reconstruction = self._log_prob(x, parameters)
        return Terms(reconstruction, torch.zeros_like(reconstruction))

    def metrics(self, terms: Terms) -> dict[str, Nats]:
        """Return the values to log, per image and by name."""
        return {self.nats_name("reconstruction"): terms.reconstruction}

    @property
    def num_dimensions(self) -> int:
        """Number of channels times pixels in the likelihood, without pixels that y gives."""
        if isinstance(self.condition, Quadrants):
            return self.image_shape[0] * len(self.condition.remaining_index)
        return math.prod(self.image_shape)

    def nats_name(self, quantity: str) -> str:
        """Return the name of a quantity in nats, with _density appended for a density."""
        return quantity if self.likelihood.num_levels else f"{quantity}_density"

    def loss(self, terms: Terms, step: int | Tensor) -> Nats:
        """Return the loss of each image at an optimizer step, in nats.

        Args:
            step: optimizer steps so far; a tensor of shape () while a CUDA graph is recorded. Do
                not branch on its value.
        """
        return -terms.reconstruction


class VAE(Autoencoder):
    r"""Variational autoencoder with a diagonal Gaussian posterior.

    .. math:: \log p(x) \ge E_{q(z|x)} \log p(x|z) - KL(q(z|x) \,\|\, p(z))

    in nats per image (Kingma and Welling 2014). The loss weights the KL term by beta (Higgins et
    al. 2017); the logged elbo does not. ``embed`` returns and ``decode`` takes the base variable
    w ~ N(0, I) of the prior, which is z for the standard normal prior.

    Example::

        network = functools.partial(MLP, hidden_dim=384, encoder_blocks=2, decoder_blocks=3)
        model = VAE(network, latent_dim=32)
        images = model.sample(num_samples=16)  # (16, 1, 28, 28), pixel means in [0, 1]

    Args:
        prior: constructor of p(z), a :class:`cvae.priors.PriorFactory`.
        penalty: constructor of a term added to the loss, a
            :class:`cvae.penalties.PenaltyFactory`; None for the bound alone.
        beta: weight of the KL term in the loss; 1 for the bound itself.
        warmup_steps: optimizer steps of the linear warm-up of the KL weight from 0 to beta.
        path_gradient: drop the score of q from the gradient of the bound and keep the gradient
            through z. The score is 0 on average, and without it the variance of the gradient
            vanishes where q is the true posterior (Roeder, Wu and Duvenaud 2017). The value of the
            bound does not change.
    """

    num_statistics = 2

    def __init__(
        self,
        network: NetworkFactory,
        latent_dim: Size,
        image_shape: Sequence[Size] = (1, 28, 28),
        num_classes: Size = 10,
        beta: Weight = 1.0,
        warmup_steps: Natural = 500,
        path_gradient: bool = True,
        prior: PriorFactory = StandardNormal,
        penalty: PenaltyFactory | None = None,
        likelihood: LikelihoodFactory = Bernoulli,
        condition: ConditionSpec | None = None,
    ) -> None:
        super().__init__(network, latent_dim, image_shape, num_classes, likelihood, condition)
        sizes = {"latent_dim": latent_dim, "condition_size": self.condition_size}
        self.prior = prior(**sizes)
        self.penalty = None if penalty is None else penalty(**sizes)
        is_label = not self.conditional or isinstance(self.condition, OneHot)
        if getattr(self.penalty, "needs_label", False) and not is_label:
            raise ValueError(
                f"{type(self.penalty).__name__} needs one label, but y has the parts "
                f"{', '.join(self.condition.parts)}: use Adversary (model/penalty=adversary)"
            )
        self.beta = beta
        self.warmup_steps = warmup_steps
        self.path_gradient = path_gradient

    def posterior(self, x: Image, y: Labels | None) -> tuple[Latent, Latent]:
        """Return mean and log standard deviation of q(z | x, y), in the space of z."""
        return self._posterior(x, self._embed_condition(y, x))

    def _posterior(self, x: Image, c: Condition | None) -> tuple[Latent, Latent]:
        mean, raw = self._statistics(x, c).chunk(2, dim=-1)
        return mean, _MAX_LOG_STD * torch.tanh(raw / _MAX_LOG_STD)

    def embed(self, x: Image, y: Labels | None = None) -> Latent:
        c = self._embed_condition(y, x)
        return self._to_latent(self._posterior(x, c)[0], c)

    def encode(self, x: Image, y: Labels | None = None) -> Distribution:
        """Return q(z | x, y), in the space of z; :meth:`to_base` maps its samples to w."""
        mean, log_std = self.posterior(x, y)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def to_base(self, z: Latent, y: Labels | None = None) -> Latent:
        """Return the base variable w of z, which ``decode`` takes."""
        return self._to_latent(z, self._embed_condition(y, z))

    def _to_z(self, latent: Latent, c: Condition | None) -> Latent:
        return self.prior.from_base(latent, c)

    def _to_latent(self, z: Latent, c: Condition | None) -> Latent:
        return self.prior.to_base(z, c)[0]

    def terms(self, x: Image, y: Labels | None, eps: Latent) -> Terms:
        """Return both terms of the bound at ``z = mean + std * eps``, and the penalty.

        Args:
            eps: samples of N(0, I), one per image.
        """
        c = self._embed_condition(y, x)
        mean, log_std = self._posterior(x, c)
        z = mean + log_std.exp() * eps
        w, log_det = self.prior.to_base(z, c)
        if isinstance(self.prior, StandardNormal):
            kl = (0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std).sum(-1)
        else:
            kl = _sampled_kl(w, log_det, eps, log_std)
        if self.path_gradient:  # no gradient through the parameters of q
            mean, log_std = mean.detach(), log_std.detach()
            path = _sampled_kl(w, log_det, (z - mean) * torch.exp(-log_std), log_std)
            kl = kl.detach() + (path - path.detach())
        penalty = 0.0 if self.penalty is None else self.penalty(w, c, eps)
        return Terms(self._log_prob(x, self._pixel_parameters(z, c)), kl, penalty)

    def log_weights(
        self,
        x: Image,
        y: Labels | None,
        eps: Float[Tensor, "batch num_samples latent_dim"],
        posterior: tuple[Latent, Latent] | None = None,
    ) -> Float[Tensor, "batch num_samples"]:
        """Return log p(x|z,y) + log p(z) - log q(z|x,y) at ``z = mean + std * eps``.

        The log-mean-exp over the samples is the importance-weighted bound (Burda et al. 2016).

        Args:
            eps: samples of N(0, I).
            posterior: the result of :meth:`posterior`, to compute it once for several calls.
        """
        c = self._embed_condition(y, x)
        mean, log_std = self._posterior(x, c) if posterior is None else posterior
        z = mean[:, None] + log_std.exp()[:, None] * eps
        rows = None if c is None else c.repeat_interleave(eps.shape[1], dim=0)
        w, log_det = self.prior.to_base(z.flatten(0, 1), rows)
        # the factors (2 pi)^(-d/2) of the two Gaussian densities cancel
        log_prior_minus_posterior = 0.5 * (eps**2 - w.view_as(eps) ** 2).sum(-1)
        log_prior_minus_posterior += log_det.view(eps.shape[:2]) + log_std.sum(-1)[:, None]
        parameters = self._pixel_parameters(z.flatten(0, 1), rows).unflatten(0, eps.shape[:2])
        return self._log_prob(x, parameters) + log_prior_minus_posterior

    def metrics(self, terms: Terms) -> dict[str, Nats]:
        values = {self.nats_name("elbo"): terms.elbo, **super().metrics(terms), "kl": terms.kl}
        return values | ({"penalty": terms.penalty} if isinstance(terms.penalty, Tensor) else {})

    def kl_weight(self, step: int | Tensor) -> float | Tensor:
        """Return the weight of the KL term: a linear ramp over ``warmup_steps``, then beta."""
        if isinstance(step, Tensor):
            return self.beta * ((step + 1).double() / max(1, self.warmup_steps)).clamp(max=1.0)
        return self.beta * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def loss(self, terms: Terms, step: int | Tensor) -> Nats:
        return self.kl_weight(step) * terms.kl - terms.reconstruction + terms.penalty


class CVAE(VAE):
    r"""Conditional VAE (Sohn, Lee and Yan 2015) with the label y in encoder and decoder.

    .. math:: \log p(x|y) \ge E_{q(z|x,y)} \log p(x|z,y) - KL(q(z|x,y) \,\|\, p(z))

    in nats per image. The default prior does not depend on y, so z can hold the style and y the
    digit: model M2 of Kingma et al. (2014) with all labels observed. Dykeman (2016) trains it on
    MNIST. A prior that depends on y is :class:`cvae.priors.Conditional`.

    Example::

        network = functools.partial(MLP, hidden_dim=384, encoder_blocks=2, decoder_blocks=3)
        model = CVAE(network, latent_dim=32)
        images = model.sample(y=7, num_samples=10)  # (10, 1, 28, 28), pixel means in [0, 1]
    """

    conditional = True
