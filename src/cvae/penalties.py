"""What a loss adds to the bound, so that the latent keeps what is claimed of it.

A penalty of your own is one class with the method of :class:`Penalty`, and one YAML file in
conf/model/penalty/ that names it in ``_target_``.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cvae.types import Latent, Nats, OneHot


class Penalty(Protocol):
    """What a model asks of its penalty.

    It gives ``latent_dim`` and ``num_classes`` to the constructor, the latter 0 where the model is
    told no label.
    """

    def __call__(self, latent: Latent, y: OneHot | None, eps: Latent) -> Nats:
        """The penalty, per image.

        Args:
            latent: a draw from the posterior of each image, as the base variable of the prior: w
                of a flow, z of N(0, I).
            eps: the draws from N(0, I) that the latent was made with, row by row.
        """
        ...


class Adversary(nn.Module):
    r"""An adversary that tells posteriors from N(0, I), label by label where there is a label.

    .. math:: \min_{q, p}\; -\mathrm{ELBO} + \lambda \max_a
        E_{q(z|y)} \log a(z, y) + E_{N(0, I)} \log (1 - a(z, y))

    by a reversed gradient (Ganin et al. 2016); the maximum is twice the Jensen-Shannon divergence
    from N(0, I) of q(z|y), all posteriors of a label together, less log 4 (Goodfellow et al. 2014;
    on codes, Makhzani et al. 2016). The bound alone lets q(z|y) differ between labels: then z tells
    the label, and a draw from N(0, I) may lie where the decoder never saw that label.

    Args:
        weight: :math:`\lambda`, nats of the bound for a nat of the adversary's.
        hidden_dim: width of its two hidden layers.
    """

    def __init__(
        self, latent_dim: int, num_classes: int, weight: float = 5.0, hidden_dim: int = 256
    ) -> None:
        super().__init__()
        self.weight = weight
        self.network = _perceptron(latent_dim + num_classes, hidden_dim, 1)

    def forward(self, latent: Latent, y: OneHot | None, eps: Latent) -> Nats:
        """The adversary's two cross-entropies, log 4 in all where it can tell nothing.

        They reach the latent with their gradient turned round, times the weight.
        """
        turned = _turned(latent, self.weight)
        if y is not None:
            turned, eps = torch.cat([turned, y], dim=1), torch.cat([eps, y], dim=1)
        of_posterior, of_prior = _scores(self.network, turned, eps)
        return (softplus(-of_posterior) + softplus(of_prior)).squeeze(1)


class LabelwiseAdversary(nn.Module):
    r"""An adversary with a score for every label, in the place of one that is told the label.

    .. math:: \max_a E_{q(z|y)} \log a_y(z) + \frac1C \sum_{c=1}^C E_{N(0, I)} \log (1 - a_c(z))

    in the place of the maximum of :class:`Adversary`, with the same solution: the posteriors of
    every label are N(0, I). (The two maxima are one where labels are equally likely.) It learned
    several times as fast in one trial (docs/ablations.md): where a flow moves the posteriors, an
    adversary that is told the label stays behind, and what it has not found stays in z.

    Args:
        weight: nats of the bound for a nat of the adversary's.
        hidden_dim: width of its two hidden layers.
    """

    def __init__(
        self, latent_dim: int, num_classes: int, weight: float = 5.0, hidden_dim: int = 256
    ) -> None:
        super().__init__()
        self.weight = weight
        self.network = _perceptron(latent_dim, hidden_dim, max(1, num_classes))

    def forward(self, latent: Latent, y: OneHot | None, eps: Latent) -> Nats:
        """As :meth:`Adversary.forward`; log 4 where labels are equally likely."""
        of_posterior, of_prior = _scores(self.network, _turned(latent, self.weight), eps)
        own = of_posterior if y is None else of_posterior * y
        return softplus(-own.sum(1)) + softplus(of_prior).mean(1)


def _perceptron(inputs: int, width: int, scores: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, scores),
    )


def _turned(latent: Latent, weight: float) -> Latent:
    """The same numbers, with their gradient turned round, times the weight."""
    return (1 + weight) * latent.detach() - weight * latent


def _scores(network: nn.Module, of_posterior: Tensor, of_prior: Tensor) -> tuple[Tensor, ...]:
    """Logits of both, (batch, scores), by one pass."""
    rows = torch.cat([of_posterior, of_prior])
    return network(rows).to(rows.dtype).chunk(2)  # of bfloat16 under autocast
