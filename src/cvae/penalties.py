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
        inputs, scores = self._sizes(latent_dim, num_classes)
        self.network = nn.Sequential(
            nn.Linear(inputs, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, scores),
        )

    def forward(self, latent: Latent, y: OneHot | None, eps: Latent) -> Nats:
        """The adversary's two cross-entropies, log 4 in all where it can tell nothing.

        They reach the latent with their gradient turned round, times the weight.
        """
        turned = (1 + self.weight) * latent.detach() - self.weight * latent
        of_posterior, of_prior = self._scores(turned, y, eps)
        return softplus(-of_posterior) + softplus(of_prior).mean(1)

    @staticmethod
    def _sizes(latent_dim: int, num_classes: int) -> tuple[int, int]:
        """Features in, scores out."""
        return latent_dim + num_classes, 1

    def _scores(self, latent: Latent, y: OneHot | None, eps: Latent) -> tuple[Tensor, Tensor]:
        """Logits of posteriors, one each, and of draws from N(0, I), one or more each."""
        rows = torch.cat([latent, eps])
        if y is not None:
            rows = torch.cat([rows, torch.cat([y, y])], dim=1)
        of_posterior, of_prior = self.network(rows).to(latent.dtype).chunk(2)  # bf16 in autocast
        return of_posterior.squeeze(1), of_prior


class LabelwiseAdversary(Adversary):
    """An adversary with a score for every label, in the place of one that is told the label.

    A draw from N(0, I) is scored for all labels at once, so it learns several times as fast
    (docs/ablations.md): where a flow moves the posteriors, an adversary that is told the label
    stays behind, and what it has not found it does not keep out of z.
    """

    @staticmethod
    def _sizes(latent_dim: int, num_classes: int) -> tuple[int, int]:
        return latent_dim, max(1, num_classes)

    def _scores(self, latent: Latent, y: OneHot | None, eps: Latent) -> tuple[Tensor, Tensor]:
        scores = self.network(torch.cat([latent, eps])).to(latent.dtype)
        of_posterior, of_prior = scores.chunk(2)
        own = of_posterior.squeeze(1) if y is None else (of_posterior * y).sum(1)
        return own, of_prior
