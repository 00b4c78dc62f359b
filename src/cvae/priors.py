"""Priors over z. A prior is an invertible map between z and a base variable w ~ N(0, I).

The latent that all other rooms speak of is w: what is drawn, decoded, embedded and measured. For
the article's own prior it is z itself. No prior here sees the label, so the latent is free to hold
what the label does not say.

A prior of your own is one class with the two methods of :class:`Prior`, and one YAML file in
conf/model/prior/ that names it in ``_target_``.
"""

from typing import Protocol

import torch
import zuko
from torch import nn

from cvae.types import Latent, Nats


class Prior(Protocol):
    """What a model asks of its prior; ``latent_dim`` is what it gives to the constructor."""

    def to_base(self, z: Latent) -> tuple[Latent, Nats]:
        """w, and log |det dw/dz|: log p(z) = log N(w; 0, I) + log |det dw/dz|."""
        ...

    def from_base(self, w: Latent) -> Latent:
        """The z of a w."""
        ...


class StandardNormal(nn.Module):
    """p(z) = N(0, I), the article's own: w is z."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

    def to_base(self, z: Latent) -> tuple[Latent, Nats]:
        return z, z.new_zeros(len(z))

    def from_base(self, w: Latent) -> Latent:
        return w


class Flow(nn.Module):
    r"""A stack of affine couplings, which starts as N(0, I) (RealNVP, Dinh et al. 2017).

    .. math:: \log p(z) = \log N(f(z); 0, I) + \log |\det \partial f / \partial z|

    Args:
        num_couplings: affine couplings; each changes half of the dimensions by the other half.
        hidden_dim: width of the two hidden layers of each coupling.
    """

    def __init__(self, latent_dim: int, num_couplings: int, hidden_dim: int) -> None:
        super().__init__()
        self.flow = zuko.flows.RealNVP(
            latent_dim,
            transforms=num_couplings,
            hidden_features=(hidden_dim, hidden_dim),
            activation=nn.SiLU,
        )
        for coupling in self.flow.transform.transforms:
            last = coupling.hyper[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def to_base(self, z: Latent) -> tuple[Latent, Nats]:
        with torch.autocast(z.device.type, enabled=False):  # sums over dimensions lose nats
            return self.flow.transform().call_and_ladj(z)  # type: ignore[no-any-return]

    def from_base(self, w: Latent) -> Latent:
        with torch.autocast(w.device.type, enabled=False):
            return self.flow.transform().inv(w)  # type: ignore[no-any-return]
