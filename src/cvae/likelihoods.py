"""Likelihoods p(x | z, y): distributions of pixels, with the parameters that a decoder returns.

Pixels are independent given z and y, so log p(x | z, y) is a sum over channels and pixels, in nats.
Likelihoods of pixels with a fixed number of levels give probabilities. The others give densities,
whose nats depend on the unit of x and may have any sign. Their metrics have names such as
``elbo_density`` and ``nll_density_k100``.

To add a likelihood, write a class with the attributes and methods of :class:`Likelihood` and name
it in ``_target_`` of a YAML file in conf/model/likelihood/.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cvae.types import Image, Parameters
from harness.contract.settings import Count, Positive

LogProbs = Float[Tensor, "batch *samples"]
Moment = Float[Tensor, "channel height width"]

_GREY_LEVELS = 256  # x = level / 255
_MIN_LOG_SCALE = -8.0  # 99 % of the narrowest logistic lies within one grey level
_MAX_LOG_SCALE = 6.0  # levels 0 and 255 each get half of the mass of the widest logistic
_MAX_INITIAL_LOGIT = 50.0  # |logit| of a continuous Bernoulli; its mean is then 0.02 or 0.98
_SMALL_LOGIT = 0.02  # |logit| below which a continuous Bernoulli is expanded around 0


@runtime_checkable
class Likelihood(Protocol):
    """Distribution of an image with independent pixels."""

    num_parameters: int  # numbers that the decoder returns for each channel of each pixel
    num_levels: int | None  # values of a pixel, such as 2 or 256; None for a density

    def log_prob(self, x: Image, parameters: Parameters) -> LogProbs:
        """Return log p(x) of each image, in nats: summed over channels and pixels.

        If ``parameters`` has a dimension of samples, every sample is scored with the same x.
        """
        ...

    def mean(self, parameters: Parameters) -> Tensor:
        """Return the mean of each pixel, clipped to [0, 1]: the image to show.

        Its shape is that of ``parameters`` without the dimension num_parameters.
        """
        ...

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        """Return an image with sampled pixels, of the shape of the mean.

        Samples of an unbounded density may leave [0, 1].

        Args:
            generator: CPU random number generator, for reproducible images.
        """
        ...

    def initial_parameters(self, mean: Moment, std: Moment) -> Tensor:
        """Return parameters that fit the training images, (num_parameters, channel, height, width).

        The model adds them to the outputs of the decoder, which start near 0, and trains them.

        Args:
            mean: mean of every pixel, within (0, 1).
            std: standard deviation of every pixel.
        """
        ...


@runtime_checkable
class LikelihoodFactory(Protocol):
    """Constructor of a likelihood, with the argument that the model passes.

    Set further arguments of your likelihood in its YAML file.
    """

    def __call__(self, *, image_shape: tuple[int, ...]) -> Likelihood:
        """Build a likelihood.

        Args:
            image_shape: (channels, height, width) of an image.
        """
        ...


def _align_with_samples(x: Image, parameters: Tensor) -> Tensor:
    """Return x with a dimension of size 1 for every dimension of samples, as a view."""
    return x.view(x.shape[0], *[1] * (parameters.ndim - 5), *x.shape[1:])


def _sample_uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return uniform samples in (0, 1), drawn on the CPU."""
    draws = torch.rand(like.shape, generator=generator, dtype=torch.float64)
    return draws.clamp(1e-12, 1 - 1e-12).to(like)


def _sum_softplus(logits: Tensor) -> Tensor:
    """Sum softplus over the last dimension, without log1p, which is slow for tiny arguments."""
    return (logits.relu() - logits.abs().sigmoid().log()).sum(-1)


class Bernoulli(nn.Module):
    r"""Bernoulli likelihood of binary pixels.

    .. math:: \log p(x) = \sum_i x_i \log \pi_i + (1 - x_i) \log (1 - \pi_i)

    in nats per image. The parameter of a pixel is the logit of its mean :math:`\pi_i`. For grey
    pixels, the sum is a cross-entropy and not a log likelihood, so training rejects them.

    Args:
        image_shape: (channels, height, width) of an image.
    """

    num_parameters = 1
    num_levels: int | None = 2

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()

    def log_prob(self, x: Image, parameters: Parameters) -> LogProbs:
        logits = parameters.squeeze(-4)
        if logits.ndim == x.ndim:
            cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
            return -cross_entropy.flatten(1).sum(1)
        # log Bernoulli(x | l) = x l - softplus(l), without copying x for every sample
        logits = logits.flatten(-3)
        return torch.einsum("b...p,bp->b...", logits, x.flatten(1)) - _sum_softplus(logits)

    def mean(self, parameters: Parameters) -> Tensor:
        return parameters.squeeze(-4).sigmoid()

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(parameters)
        return torch.bernoulli(mean.cpu(), generator=generator).to(mean)

    def initial_parameters(self, mean: Moment, std: Moment) -> Tensor:
        return torch.logit(mean)[None]


class ContinuousBernoulli(nn.Module):
    r"""Continuous Bernoulli density of grey pixels in [0, 1] (Loaiza-Ganem and Cunningham 2019).

    .. math:: \log p(x) = \sum_i x_i l_i - \log \frac{e^{l_i} - 1}{l_i}

    in nats per image. The parameter of a pixel is the logit :math:`l_i`.

    Example::

        model = CVAE(network, latent_dim=32, likelihood=ContinuousBernoulli)

    Args:
        image_shape: (channels, height, width) of an image.
    """

    num_parameters = 1
    num_levels: int | None = None

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()

    def log_prob(self, x: Image, parameters: Parameters) -> LogProbs:
        logits, x = parameters.squeeze(-4).flatten(-3), x.flatten(1)
        magnitude = logits.abs().clamp_min(_SMALL_LOGIT)
        # log((e^l - 1) / l) = l / 2 + log(2 sinh(|l| / 2) / |l|), where the last term is even
        outer = 0.5 * magnitude + torch.log(-torch.expm1(-magnitude)) - magnitude.log()
        inner = logits**2 / 24
        log_normalizer = 0.5 * logits + torch.where(logits.abs() < _SMALL_LOGIT, inner, outer)
        if logits.ndim == x.ndim:  # not einsum, which is bfloat16 under autocast
            return (logits * x - log_normalizer).sum(-1)
        return torch.einsum("b...p,bp->b...", logits, x) - log_normalizer.sum(-1)

    def mean(self, parameters: Parameters) -> Tensor:
        logits = parameters.squeeze(-4)
        magnitude = logits.abs().clamp_min(_SMALL_LOGIT)
        outer = torch.sign(logits) * (0.5 / torch.tanh(0.5 * magnitude) - 1 / magnitude)
        return 0.5 + torch.where(logits.abs() < _SMALL_LOGIT, logits / 12, outer)

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        logits = parameters.squeeze(-4)
        u, magnitude = _sample_uniform(logits, generator), logits.abs().clamp_min(_SMALL_LOGIT)
        # the inverse of the distribution function, for a positive logit; 1 - x for a negative one
        upper = (1 + torch.log(u + (1 - u) * torch.exp(-magnitude)) / magnitude).clamp(0, 1)
        return torch.where(
            logits.abs() < _SMALL_LOGIT, u, torch.where(logits > 0, upper, 1 - upper)
        )

    def initial_parameters(self, mean: Moment, std: Moment) -> Tensor:
        """Return the logits of distributions with these means, by bisection."""
        low, high = (
            torch.full_like(mean, -_MAX_INITIAL_LOGIT),
            torch.full_like(mean, _MAX_INITIAL_LOGIT),
        )
        for _ in range(60):
            middle = 0.5 * (low + high)
            is_below = self.mean(middle[None]) < mean
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        return (0.5 * (low + high))[None]


class Gaussian(nn.Module):
    r"""Gaussian density of every pixel, with one scale for all pixels.

    .. math:: \log p(x) = \sum_i -\frac{(x_i - m_i)^2}{2 \sigma^2} - \log \sigma - \frac12 \log 2\pi

    in nats per image. The parameter of a pixel is its mean :math:`m_i`. A learned :math:`\sigma`
    balances reconstruction and KL without a weight to tune (Rybkin, Daniilidis and Levine 2021).

    Example::

        model = CVAE(network, latent_dim=32, likelihood=functools.partial(Gaussian, scale=0.1))

    Args:
        image_shape: (channels, height, width) of an image.
        scale: :math:`\sigma`, for pixels in [0, 1]; None to learn it.
    """

    num_parameters = 1
    num_levels: int | None = None

    def __init__(self, image_shape: Sequence[int], scale: Positive | None = None) -> None:
        super().__init__()
        self.log_scale: Tensor
        if scale is None:
            self.log_scale = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("log_scale", torch.tensor(math.log(scale)))

    def log_prob(self, x: Image, parameters: Parameters) -> LogProbs:
        mean = parameters.squeeze(-4)
        squares = (_align_with_samples(x, parameters) - mean).square().flatten(-3).sum(-1)
        per_pixel = self.log_scale + 0.5 * math.log(2 * math.pi)
        return -0.5 * squares * torch.exp(-2 * self.log_scale) - math.prod(x.shape[1:]) * per_pixel

    def mean(self, parameters: Parameters) -> Tensor:
        return parameters.squeeze(-4).clamp(0, 1)

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        mean = parameters.squeeze(-4)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        return mean + self.log_scale.exp() * noise

    def initial_parameters(self, mean: Moment, std: Moment) -> Tensor:
        """Return the means, and set a learned scale to the root of the mean variance."""
        if isinstance(self.log_scale, nn.Parameter):
            with torch.no_grad():
                self.log_scale.copy_(0.5 * std.square().mean().clamp_min(1e-6).log())
        return mean[None]


class DiscretizedLogistic(nn.Module):
    r"""Mixture of discretized logistics, for pixels of 256 levels (Salimans et al. 2017).

    .. math:: p(x) = \prod_i \sum_k \pi_{ik} \left(
        \sigma\left(\frac{x_i + \frac{1}{510} - \mu_{ik}}{s_{ik}}\right) -
        \sigma\left(\frac{x_i - \frac{1}{510} - \mu_{ik}}{s_{ik}}\right) \right)

    for x in {0, 1/255, ..., 1}. Levels 0 and 255 also get the mass of the tails beyond them, so the
    probabilities sum to one. Channels are independent, unlike those of PixelCNN++. With one
    component, the parameters of a pixel are :math:`\mu` and an unbounded form of :math:`\log s`.
    With more components, the logits of :math:`\pi_{ik}` come before them.

    Example::

        likelihood = functools.partial(DiscretizedLogistic, num_components=3)
        model = CVAE(network, latent_dim=32, likelihood=likelihood)

    Args:
        image_shape: (channels, height, width) of an image.
        num_components: logistics in the mixture of each pixel.
    """

    num_levels: int | None = _GREY_LEVELS

    def __init__(self, image_shape: Sequence[int], num_components: Count = 1) -> None:
        super().__init__()
        self.num_components = num_components
        self.num_parameters = 2 if num_components == 1 else 3 * num_components

    def _components(self, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and log scales, (..., component, channel, height, width)."""
        if self.num_components == 1:
            mean, raw = parameters.split(1, dim=-4)
            log_weights = torch.zeros_like(mean)
        else:
            logits, mean, raw = parameters.split(self.num_components, dim=-4)
            log_weights = logits.log_softmax(dim=-4)
        log_scale = F.softplus(raw - _MIN_LOG_SCALE) + _MIN_LOG_SCALE
        return log_weights, mean, log_scale.clamp_max(_MAX_LOG_SCALE)

    def log_prob(self, x: Image, parameters: Parameters) -> LogProbs:
        log_weights, mean, log_scale = self._components(parameters)
        level = _align_with_samples(x, parameters).unsqueeze(-4)
        half, inverse = 0.5 / (_GREY_LEVELS - 1), torch.exp(-log_scale)
        upper, lower = (level - mean + half) * inverse, (level - mean - half) * inverse
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), stable in both tails
        inside = below + above + torch.log(-torch.expm1(-2 * half * inverse))
        log_probs = torch.where(level <= 0, below, torch.where(level >= 1, above, inside))
        if self.num_components > 1:
            log_probs = torch.logsumexp(log_weights + log_probs, dim=-4, keepdim=True)
        return log_probs.squeeze(-4).flatten(-3).sum(-1)

    def mean(self, parameters: Parameters) -> Tensor:
        """Return the mean of the mixture, with each logistic clipped to [0, 1]."""
        log_weights, mean, log_scale = self._components(parameters)
        scale = log_scale.exp()
        # mean of a clipped logistic: 1 - the integral of its distribution function over [0, 1]
        area = scale * (F.softplus((1 - mean) / scale) - F.softplus(-mean / scale))
        return (log_weights.exp() * (1 - area)).sum(dim=-4).clamp(0, 1)

    def sample(self, parameters: Parameters, generator: torch.Generator | None = None) -> Tensor:
        log_weights, mean, log_scale = self._components(parameters)
        gumbel = -torch.log(-torch.log(_sample_uniform(log_weights, generator)))
        component = (log_weights + gumbel).argmax(dim=-4, keepdim=True)
        mean, log_scale = (t.gather(-4, component).squeeze(-4) for t in (mean, log_scale))
        x = mean + log_scale.exp() * torch.logit(_sample_uniform(mean, generator))
        return (x.clamp(0, 1) * (_GREY_LEVELS - 1)).round() / (_GREY_LEVELS - 1)

    def initial_parameters(self, mean: Moment, std: Moment) -> Tensor:
        """Return parameters with the s.d. of each pixel; components span mean ± s.d."""
        scale = (std * math.sqrt(3) / math.pi).clamp_min(2 * math.exp(_MIN_LOG_SCALE))
        raw = _MIN_LOG_SCALE + torch.log(torch.expm1(scale.log() - _MIN_LOG_SCALE))
        if self.num_components == 1:
            return torch.stack([mean, raw])
        steps = torch.linspace(-1, 1, self.num_components).to(mean)[:, None, None, None]
        means = mean + steps * std
        return torch.cat([torch.zeros_like(means), means, raw.expand_as(means)])
