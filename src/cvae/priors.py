"""Priors over z. A prior is an invertible map between z and a base variable w ~ N(0, I).

The latent that all other modules speak of is w: what is drawn, decoded, embedded and measured. For
the usual prior N(0, I) it is z itself. No prior here sees the label, so the latent is free to hold
what the label does not say.

A prior of your own is one class with the two methods of :class:`Prior`, and one YAML file in
conf/model/prior/ that names it in ``_target_``.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from cvae.types import Latent, Nats

_MAX_LOG_SCALE = 3.0  # |log scale| of a coupling stays below


class Prior(Protocol):
    """What a model asks of its prior; ``latent_dim`` is what it gives to the constructor."""

    def to_base(self, z: Latent) -> tuple[Latent, Nats]:
        """w, and log |det dw/dz|: log p(z) = log N(w; 0, I) + log |det dw/dz|."""
        ...

    def from_base(self, w: Latent) -> Latent:
        """The z of a w."""
        ...


class StandardNormal(nn.Module):
    """p(z) = N(0, I), the usual one: w is z."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

    def to_base(self, z: Latent) -> tuple[Latent, Nats]:
        return z, z.new_zeros(z.shape[0])

    def from_base(self, w: Latent) -> Latent:
        return w


class Coupling(nn.Module):
    """Scales and shifts the second half of z by what the first half says, and swaps them.

    Halves and not masks: a mask makes a GPU tell the host how many entries it has.
    """

    def __init__(self, size: int, hidden_dim: int) -> None:
        super().__init__()
        self.first, self.second = size - size // 2, size // 2
        last = nn.Linear(hidden_dim, 2 * self.second)
        nn.init.zeros_(last.weight)  # starts as the identity
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(self.first, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
            last,
        )

    def _scale_and_shift(self, first: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(first).chunk(2, dim=-1)
        return _MAX_LOG_SCALE * torch.tanh(raw / _MAX_LOG_SCALE), shift

    def forward(self, z: Latent) -> tuple[Latent, Nats]:
        """The other side's point, and the log-determinant of the way there."""
        first, second = z.split((self.first, self.second), dim=-1)
        log_scale, shift = self._scale_and_shift(first)
        return torch.cat((second * log_scale.exp() + shift, first), dim=-1), log_scale.sum(-1)

    def inverse(self, w: Latent) -> Latent:
        moved, first = w.split((self.second, self.first), dim=-1)
        log_scale, shift = self._scale_and_shift(first)
        return torch.cat((first, (moved - shift) * torch.exp(-log_scale)), dim=-1)


class Flow(nn.Module):
    r"""A stack of affine couplings, which starts as N(0, I) (real NVP, Dinh et al. 2017).

    .. math:: \log p(z) = \log N(f(z); 0, I) + \log |\det \partial f / \partial z|

    Args:
        num_couplings: each changes half of the dimensions by the other half.
        hidden_dim: width of the two hidden layers of each coupling.
    """

    def __init__(self, latent_dim: int, num_couplings: int, hidden_dim: int) -> None:
        super().__init__()
        if latent_dim < 2:
            raise ValueError(f"latent_dim={latent_dim}: a coupling needs two dimensions")
        self.couplings = nn.ModuleList(
            Coupling(latent_dim, hidden_dim) for _ in range(num_couplings)
        )

    def to_base(self, z: Latent) -> tuple[Latent, Nats]:
        with torch.autocast(z.device.type, enabled=False):  # sums over dimensions lose nats
            w, log_det = z, z.new_zeros(z.shape[0])
            for coupling in self.couplings:
                w, added = coupling(w)
                log_det = log_det + added
            return w, log_det

    def from_base(self, w: Latent) -> Latent:
        with torch.autocast(w.device.type, enabled=False):
            z = w
            for coupling in reversed(self.couplings):
                z = coupling.inverse(z)  # type: ignore[operator]
            return z
