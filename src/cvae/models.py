"""Autoencoder, VAE and conditional VAE (Dykeman 2016), in one file to be read side by side.

All quantities are nats per image, summed over pixels and latent dimensions, never averaged here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from cvae.networks import Network
from cvae.penalties import Penalty
from cvae.priors import Prior, StandardNormal
from cvae.types import Image, Latent, Logits, Nats, OneHot, Terms

NetworkFactory = Callable[..., Network]
PriorFactory = Callable[..., Prior]
PenaltyFactory = Callable[..., Penalty]
# one label for all rows, a label for each, or one-hot rows
Labels = Tensor | NDArray[Any] | Sequence[int] | np.integer[Any] | int
_MAX_LOG_STD = 5.0  # |log standard deviation| of the posterior stays below: e^5 is far from any use


def _full_precision(values: Tensor) -> Tensor:
    """At least float32: sums over 784 pixels lose nats in bfloat16."""
    return values.float() if values.itemsize < 4 else values


def log_bernoulli(x: Image, logits: Logits) -> Nats:
    """log p(x) of independent pixels: Independent(Bernoulli), but for empty batches as well."""
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return -cross_entropy.flatten(1).sum(1)


def _as_tensor(y: Labels) -> Tensor:
    try:
        return torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        kind = type(y).__name__
        raise ValueError(f"y of type {kind}: must be integer labels or one-hot rows") from None


def one_hot(y: Labels, num_classes: int, rows: Tensor) -> OneHot:
    """Return a one-hot label for each row.

    One-hot float tensors are returned unchanged, without a copy or a GPU synchronization.

    Args:
        y: an integer for all rows, an integer for each row, or one-hot rows.
        rows: the images or latents that the labels belong to.

    Raises:
        ValueError: a label is out of range, or the number of labels is not that of the rows.
    """
    y, expected = _as_tensor(y), (rows.shape[0], num_classes)
    if not y.is_floating_point():
        y = y.to(rows.device)
        y = (_one_hot_of_integers(y.long(), *expected) if y.ndim < 2 else y).to(rows.dtype)
    if y.shape != expected:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, not {expected}: "
            f"must be integers from 0 to {num_classes - 1} or one-hot rows"
        )
    return y


def _one_hot_of_integers(labels: Tensor, count: int, num_classes: int) -> Tensor:
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"y={int(outside[0])}: labels must be from 0 to {num_classes - 1}")
    if labels.ndim == 1 and len(labels) != count:
        raise ValueError(f"y has {len(labels)} labels for {count} rows: must be one for each")
    return nn.functional.one_hot(labels.expand(count), num_classes)


def _agreed_count(y: Tensor | None, z: Tensor | None, num_samples: int | None) -> int:
    """Return the number of samples that the arguments agree on, or 1 if none gives it."""
    counts = {
        "y": None if y is None or y.ndim == 0 else len(y),
        "z": None if z is None else len(z),
        "num_samples": num_samples,
    }
    given = {name: count for name, count in counts.items() if count is not None}
    if len(set(given.values())) > 1:
        shown = ", ".join(f"{count} by {name}" for name, count in given.items())
        raise ValueError(f"contradictory numbers of samples ({shown}): they must be equal")
    if num_samples is not None and num_samples < 0:
        raise ValueError(f"num_samples={num_samples}: must be at least 0")
    return next(iter(given.values()), 1)


def _sum_softplus(logits: Tensor) -> Tensor:
    """Over the last dimension. Not by log1p(e), which takes four times as long where e is tiny."""
    return (logits.relu() - logits.abs().sigmoid().log()).sum(-1)


def _sampled_kl(w: Latent, log_det: Nats, eps: Latent, log_std: Latent) -> Nats:
    """log q(z | x, y) - log p(z) at one z; the two densities share (2 pi)^(-d/2)."""
    return 0.5 * (w**2 - eps**2).sum(-1) - log_std.sum(-1) - log_det


class Autoencoder(nn.Module):
    r"""A deterministic code, trained to reconstruct: :math:`\max E\,\log p(x \mid z = f(x))`.

    Nothing says how its codes are distributed, so decoding a random z need not give an image.

    Labels y are an integer for all images, a list or tensor of integers, or one-hot rows.
    ``terms`` takes only one-hot float rows.

    Args:
        network: makes the encoder and decoder, see :class:`cvae.networks.Network`.
        latent_dim: dimensions of the code z.
        image_shape: (1, height, width).
        num_classes: number of labels of the data; only a conditional model sees them.
    """

    conditional = False
    num_statistics = 1

    def __init__(
        self,
        network: NetworkFactory,
        latent_dim: int,
        image_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3 or image_shape[0] != 1:
            raise ValueError(
                f"image_shape={list(image_shape)}: must be [1, height, width], "
                "colour is not supported"
            )
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)
        self.network = network(
            image_shape=self.image_shape,
            latent_dim=latent_dim,
            num_statistics=self.num_statistics,
            num_classes=num_classes if self.conditional else 0,
        )
        self.output_bias = nn.Parameter(torch.zeros(self.image_shape))

    def initialize_output_bias(self, mean_image: Tensor) -> None:
        """Start from the logits of the train mean, in (0, 1)."""
        with torch.no_grad():
            self.output_bias.copy_(torch.logit(mean_image))

    def _statistics(self, x: Image, y: Labels | None) -> Tensor:
        return _full_precision(self.network.encode(x, self._label(y, x)))

    def _logits(self, z: Latent, y: Labels | None) -> Tensor:
        return _full_precision(self.network.decode(z, self._label(y, z))) + self.output_bias

    def _decoded(self, latent: Latent) -> Latent:
        """What the decoder takes, of a point of the latent space."""
        return latent

    def _label(self, y: Labels | None, rows: Tensor) -> OneHot | None:
        if self.conditional and y is None:
            raise ValueError(f"{type(self).__name__} is conditional: give the labels y")
        if not self.conditional and y is not None:
            raise ValueError(f"{type(self).__name__} is unconditional: it takes no label")
        return None if y is None else one_hot(y, self.num_classes, rows)

    def embed(self, x: Image, y: Labels | None = None) -> Latent:
        """The one z that stands for an image: its code, or its posterior mean."""
        return self._statistics(x, y)

    def encode(self, x: Image, y: Labels | None = None) -> Latent | Distribution:
        """The code z of an image."""
        return self.embed(x, y)

    def decode(self, z: Latent, y: Labels | None = None) -> Distribution:
        """p(x | z, y), a Bernoulli for every pixel; ``.mean`` is the image to look at."""
        logits = self._logits(self._decoded(z), y)
        return Independent(Bernoulli(logits=logits, validate_args=False), 3, validate_args=False)

    def reconstruct(self, x: Image, y: Labels | None = None) -> Image:
        """The decoder's mean at the image's z."""
        return self.decode(self.embed(x, y), y).mean

    @torch.no_grad()
    def sample(
        self,
        y: Labels | None = None,
        z: Latent | None = None,
        *,
        num_samples: int | None = None,
        temperature: float = 1.0,
        binary: bool = False,
        generator: torch.Generator | None = None,
    ) -> Image:
        """Decode random points of the latent space.

        The same z with ten labels gives ten digits in one style.

        Args:
            y: labels of a conditional model: one for all images, one for each, or one-hot rows.
            z: points to decode; drawn from N(0, temperature² I) if left out.
            num_samples: number of images; 1 if neither y nor z gives it.
            temperature: standard deviation of the z drawn.
            binary: draw the pixels instead of giving their means in [0, 1].
            generator: source of the draws, for images that can be made again.

        Raises:
            ValueError: a label is out of range, or y, z and num_samples contradict each other.
        """
        weight = self.output_bias
        y = None if y is None else _as_tensor(y)
        size = _agreed_count(y, z, num_samples)
        if z is None:
            z = torch.randn(size, self.latent_dim, generator=generator) * temperature
        z = z.to(weight)
        label = self._label(y, z)
        mean = self.decode(z, None if label is None else label.to(weight)).mean
        if not binary:
            return mean
        return torch.bernoulli(mean.cpu(), generator=generator).to(weight)

    def terms(self, x: Image, y: OneHot | None, eps: Latent) -> Terms:
        """The reconstruction term alone: a code has no distribution and costs no nats."""
        reconstruction = log_bernoulli(x, self._logits(self.embed(x, y), y))
        return Terms(reconstruction, torch.zeros_like(reconstruction))

    def metrics(self, terms: Terms) -> dict[str, Nats]:
        """What is logged, per image; the first is what a run is selected by."""
        return {"reconstruction": terms.reconstruction}

    def loss(self, terms: Terms, step: int) -> Nats:
        """What is minimized, per image."""
        return -terms.reconstruction


class VAE(Autoencoder):
    r"""Variational autoencoder with a diagonal Gaussian posterior.

    .. math:: \log p(x) \ge E_{q(z|x)} \log p(x|z) - KL(q(z|x) \,\|\, p(z))

    in nats per image (Kingma and Welling 2014). The loss weights the KL term by beta (Higgins et
    al. 2017); what is reported as elbo never does. The latent that goes in and out is the prior's
    base variable w ~ N(0, I), which is z itself for the prior N(0, I).

    Args:
        prior: makes the prior p(z), see :class:`cvae.priors.Prior`.
        penalty: makes what the loss adds to the bound, see :class:`cvae.penalties.Penalty`.
        beta: weight of the KL term in the loss, 1 for the bound itself.
        warmup_steps: optimizer steps over which that weight rises linearly from 0 to beta.
        path_gradient: whether the gradient of the bound is that by way of z alone, without the
            score of q, which is 0 on average: its noise vanishes where q is the true posterior
            (Roeder, Wu and Duvenaud 2017). The value stays the same.
    """

    num_statistics = 2

    def __init__(
        self,
        network: NetworkFactory,
        latent_dim: int,
        image_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        beta: float = 1.0,
        warmup_steps: int = 0,
        path_gradient: bool = False,
        prior: PriorFactory = StandardNormal,
        penalty: PenaltyFactory | None = None,
    ) -> None:
        super().__init__(network, latent_dim, image_shape, num_classes)
        self.prior = prior(latent_dim=latent_dim)
        told = num_classes if self.conditional else 0
        self.penalty = penalty and penalty(latent_dim=latent_dim, num_classes=told)
        self.beta = beta
        self.warmup_steps = warmup_steps
        self.path_gradient = path_gradient

    def posterior(self, x: Image, y: Labels | None) -> tuple[Latent, Latent]:
        """Mean and log standard deviation of q(z | x, y), in the space of z."""
        mean, raw = self._statistics(x, y).chunk(2, dim=-1)
        return mean, _MAX_LOG_STD * torch.tanh(raw / _MAX_LOG_STD)

    def embed(self, x: Image, y: Labels | None = None) -> Latent:
        return self.prior.to_base(self.posterior(x, y)[0])[0]

    def encode(self, x: Image, y: Labels | None = None) -> Distribution:
        """The posterior q(z | x, y), in the space of z; ``prior.to_base`` leads to the latent."""
        mean, log_std = self.posterior(x, y)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def _decoded(self, latent: Latent) -> Latent:
        return self.prior.from_base(latent)

    def terms(self, x: Image, y: OneHot | None, eps: Latent) -> Terms:
        """Both terms of the bound at ``z = mean + std * eps``; eps ~ N(0, I) is the caller's."""
        mean, log_std = self.posterior(x, y)
        z = mean + log_std.exp() * eps
        w, log_det = self.prior.to_base(z)
        if isinstance(self.prior, StandardNormal):
            kl = (0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std).sum(-1)
        else:
            kl = _sampled_kl(w, log_det, eps, log_std)
        if self.path_gradient:  # that of q as a function of z alone
            mean, log_std = mean.detach(), log_std.detach()
            path = _sampled_kl(w, log_det, (z - mean) * torch.exp(-log_std), log_std)
            kl = kl.detach() + (path - path.detach())
        penalty = 0.0 if self.penalty is None else self.penalty(w, y, eps)
        return Terms(log_bernoulli(x, self._logits(z, y)), kl, penalty)

    def log_weights(
        self,
        x: Image,
        y: OneHot | None,
        eps: Float[Tensor, "batch num_samples latent_dim"],
        posterior: tuple[Latent, Latent] | None = None,
    ) -> Float[Tensor, "batch num_samples"]:
        """log p(x|z,y) + log p(z) - log q(z|x,y) at ``z = mean + std * eps``, per image and sample.

        Their log-mean-exp over the samples is the importance-weighted bound (Burda et al. 2016).

        Args:
            posterior: mean and log standard deviation, for who calls several times for one image.
        """
        num_samples = eps.shape[1]
        mean, log_std = self.posterior(x, y) if posterior is None else posterior
        z = mean[:, None] + log_std.exp()[:, None] * eps
        w, log_det = self.prior.to_base(z.flatten(0, 1))
        # the two Gaussian densities share (2 pi)^(-d/2)
        log_prior_minus_posterior = 0.5 * (eps**2 - w.view_as(eps) ** 2).sum(-1)
        log_prior_minus_posterior += log_det.view(eps.shape[:2]) + log_std.sum(-1)[:, None]
        rows = None if y is None else y.repeat_interleave(num_samples, dim=0)
        logits = self._logits(z.flatten(0, 1), rows).flatten(1).unflatten(0, eps.shape[:2])
        # log Bernoulli(x | l) = x l - softplus(l), without copying x for every sample
        log_likelihood = torch.einsum("bsp,bp->bs", logits, x.flatten(1)) - _sum_softplus(logits)
        return log_likelihood + log_prior_minus_posterior

    def metrics(self, terms: Terms) -> dict[str, Nats]:
        found = {"elbo": terms.elbo, "reconstruction": terms.reconstruction, "kl": terms.kl}
        return found | ({"penalty": terms.penalty} if isinstance(terms.penalty, Tensor) else {})

    def kl_weight(self, step: int) -> float:
        """beta after ``warmup_steps`` optimizer steps, a linear ramp before."""
        return self.beta * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def loss(self, terms: Terms, step: int) -> Nats:
        return self.kl_weight(step) * terms.kl - terms.reconstruction + terms.penalty


class CVAE(VAE):
    r"""Conditional VAE (Sohn, Lee and Yan 2015): the label y enters encoder and decoder.

    .. math:: \log p(x|y) \ge E_{q(z|x,y)} \log p(x|z,y) - KL(q(z|x,y) \,\|\, p(z))

    The prior does not depend on y, so z is free to hold what y does not say: the style. (That is
    model M2 of Kingma et al. 2014, all labels given.)
    """

    conditional = True
