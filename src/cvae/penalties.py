"""Penalties: terms of the loss that keep the latent independent of the label.

To add a penalty, write a class with the method of :class:`Penalty` and name it in ``_target_`` of a
YAML file in conf/model/penalty/.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cvae.types import Condition, Latent, Nats
from harness.contract.settings import Size, Weight


@runtime_checkable
class Penalty(Protocol):
    """Term that the loss adds to the negative bound.

    A penalty that only works with one label sets ``needs_label = True``; a model with other
    attributes then rejects it.
    """

    def __call__(self, latent: Latent, y: Condition | None, eps: Latent) -> Nats:
        """Return the penalty of each image, in nats.

        Args:
            latent: one sample of the posterior per image, as the base variable w of the prior; w
                is z for the standard normal prior.
            y: the condition of each image, or None for an unconditional model.
            eps: the samples of N(0, I) that gave the latent: z = mean + std * eps.
        """
        ...


@runtime_checkable
class PenaltyFactory(Protocol):
    """Constructor of a penalty, with the arguments that the model passes.

    Set further arguments of your penalty in its YAML file.
    """

    def __call__(self, *, latent_dim: int, condition_size: int) -> Penalty:
        """Build a penalty.

        Args:
            latent_dim: dimensions of z.
            condition_size: length of the encoded y, such as the number of classes; 0 without y.
        """
        ...


class Adversary(nn.Module):
    r"""Adversary that discriminates posterior samples from N(0, I), with the label as an input.

    .. math:: \min_{q, p}\; -\mathrm{ELBO} + \lambda \max_a
        E_{q(z|y)} \log a(z, y) + E_{N(0, I)} \log (1 - a(z, y))

    in nats per image, optimized by gradient reversal (Ganin et al. 2016). q(z|y) is the mixture of
    the posteriors of all images of a label. The maximum is twice its Jensen-Shannon divergence from
    N(0, I), minus log 4 (Goodfellow et al. 2014; on latent codes, Makhzani et al. 2016).

    With the bound alone, q(z|y) may differ between labels. Then z predicts the label, and a sample
    of N(0, I) may lie where the decoder saw no image of the requested label.

    Example::

        penalty = functools.partial(Adversary, weight=5.0)
        model = CVAE(network, latent_dim=32, penalty=penalty)

    Args:
        latent_dim: dimensions of z.
        condition_size: length of y; 0 without y.
        weight: :math:`\lambda`, nats of the loss per nat of the adversary.
        hidden_dim: width of the two hidden layers.
    """

    def __init__(
        self, latent_dim: int, condition_size: int, weight: Weight = 5.0, hidden_dim: Size = 256
    ) -> None:
        super().__init__()
        self.weight = weight
        self.network = _make_mlp(latent_dim + condition_size, hidden_dim, 1)

    def forward(self, latent: Latent, y: Condition | None, eps: Latent) -> Nats:
        """Return the sum of the two cross-entropies, log 4 for an adversary at chance.

        The gradient to the latent is reversed and multiplied by the weight.
        """
        samples, references = reverse_gradient(latent, self.weight), eps
        if y is not None:
            samples, references = torch.cat([samples, y], dim=1), torch.cat([references, y], dim=1)
        posterior_logits, prior_logits = _compute_logits(self.network, samples, references)
        return (softplus(-posterior_logits) + softplus(prior_logits)).squeeze(1)


class LabelwiseAdversary(nn.Module):
    r"""Adversary with one output per label instead of the label as an input.

    .. math:: \max_a E_{q(z|y)} \log a_y(z) + \frac1C \sum_{c=1}^C E_{N(0, I)} \log (1 - a_c(z))

    replaces the maximum of :class:`Adversary`; the two are equal if all labels are equally likely.
    Both have the solution q(z|y) = N(0, I) for every label. This adversary learned several times as
    fast in one trial (docs/measured/ablations.md). A flow prior moves the posteriors, so an
    adversary that takes the label as an input lags behind and leaves label information in z.

    Example::

        penalty = functools.partial(LabelwiseAdversary, weight=5.0)
        model = CVAE(network, latent_dim=32, penalty=penalty)

    Args:
        latent_dim: dimensions of z.
        condition_size: number C of labels; 0 without labels, for one output.
        weight: nats of the loss per nat of the adversary.
        hidden_dim: width of the two hidden layers.
    """

    needs_label = True  # y must be one label

    def __init__(
        self, latent_dim: int, condition_size: int, weight: Weight = 5.0, hidden_dim: Size = 256
    ) -> None:
        super().__init__()
        self.weight = weight
        self.network = _make_mlp(latent_dim, hidden_dim, max(1, condition_size))

    def forward(self, latent: Latent, y: Condition | None, eps: Latent) -> Nats:
        """Return the sum of the two cross-entropies, log 4 at chance if labels are balanced.

        The gradient to the latent is reversed and multiplied by the weight.
        """
        samples = reverse_gradient(latent, self.weight)
        posterior_logits, prior_logits = _compute_logits(self.network, samples, eps)
        own_logits = posterior_logits if y is None else posterior_logits * y
        return softplus(-own_logits.sum(1)) + softplus(prior_logits).mean(1)


def _make_mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, outputs),
    )


def reverse_gradient(latent: Latent, scale: float) -> Latent:
    """Return the latent unchanged; its gradient is multiplied by -scale."""
    return (1 + scale) * latent.detach() - scale * latent


def _compute_logits(network: nn.Module, samples: Tensor, references: Tensor) -> tuple[Tensor, ...]:
    """Return the logits of both, each (batch, outputs), from one forward pass."""
    rows = torch.cat([samples, references])
    return network(rows).to(rows.dtype).chunk(2)  # autocast returns bfloat16
