"""What the library does without, for ablations.py to measure or as leads of docs/ablations.md."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvae.models import CVAE, log_bernoulli
from cvae.networks import MLP, ConditionedLinear
from cvae.priors import StandardNormal
from cvae.types import Image, Latent, Logits, Nats, OneHot, Statistics, Terms


class Stack(nn.Module):
    """Layers one after the other, without residuals or norms, the label at the first.

    Weights start so that layers keep the size of what they are given (He et al. 2015): as torch
    starts them, next to nothing of z arrives behind seven.

    Args:
        gated: whether each is a product of a linear map and a gate (Tomczak and Welling 2018) and
            not a SiLU.
    """

    def __init__(
        self, sizes: Sequence[int], out_features: int, num_classes: int, gated: bool
    ) -> None:
        super().__init__()
        self.gated = gated
        layers = [
            ConditionedLinear(a, b * (1 + gated), 0 if i else num_classes)
            for i, (a, b) in enumerate(pairwise(sizes))
        ]
        gain = 1.85 if gated else 1.68  # of a standard normal variable
        for layer in layers:
            std = gain / math.sqrt(layer.linear.in_features)
            nn.init.normal_(layer.linear.weight, std=std)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(sizes[-1], out_features)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(sizes[-1]))
        nn.init.zeros_(self.head.bias)

    def forward(self, h: Tensor, y: OneHot | None) -> Tensor:
        for layer in self.layers:
            h = F.glu(layer(h, y), dim=-1) if self.gated else F.silu(layer(h, y))
        return self.head(h)


class PlainMLP(nn.Module):
    """As many layers as :class:`~cvae.networks.MLP` has, of its width, and nothing else of it.

    No residuals and no norms; z and the label enter at the first layer alone, whatever
    ``latent_skips`` says.
    """

    gated = False

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        num_statistics: int,
        num_classes: int,
        hidden_dim: int,
        encoder_blocks: int,
        decoder_blocks: int,
        latent_skips: bool,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        pixels, per_block = math.prod(image_shape), 1 if self.gated else 2
        inwards = [pixels, *[hidden_dim] * (1 + per_block * encoder_blocks)]
        outwards = [latent_dim, *[hidden_dim] * (1 + per_block * decoder_blocks)]
        self.encoder = Stack(inwards, num_statistics * latent_dim, num_classes, self.gated)
        self.decoder = Stack(outwards, pixels, num_classes, self.gated)

    def encode(self, x: Image, y: OneHot | None) -> Statistics:
        return self.encoder(x.flatten(1), y)

    def decode(self, z: Latent, y: OneHot | None) -> Logits:
        return self.decoder(z, y).unflatten(1, self.image_shape)


class GatedMLP(PlainMLP):
    """With gates, and one layer for every two: a gated one takes twice the time."""

    gated = True


class LabelAtInput(MLP):
    """:class:`~cvae.networks.MLP`, whose blocks do not see the label; its first layers do."""

    def encode(self, x: Image, y: OneHot | None) -> Statistics:
        return self._through(self.encoder, x.flatten(1), y)

    def decode(self, z: Latent, y: OneHot | None) -> Logits:
        return self._through(self.decoder, z, y).unflatten(1, self.image_shape)

    @staticmethod
    def _through(part: Any, inputs: Tensor, y: OneHot | None) -> Tensor:
        h = part.stem(inputs, y)
        nothing = None if y is None else torch.zeros_like(y)
        for block in part.blocks:
            seen = nothing
            if part.skips:
                seen = inputs if nothing is None else torch.cat([inputs, nothing], dim=1)
            h = block(h, seen)
        return part.head(F.silu(part.norm(h)))


class FreeBits(CVAE):
    """A latent dimension costs no less than ``free`` nats, on average over a batch, in training.

    (Kingma et al. 2016, whose smaller values are around this one.) What it costs is told by the
    closed form of the KL: for the prior N(0, I). With path gradient the value is of one sample.
    """

    free = 0.1

    def terms(self, x: Image, y: OneHot | None, eps: Latent) -> Terms:
        if not self.training:
            return super().terms(x, y, eps)
        assert isinstance(self.prior, StandardNormal), "N(0, I): model/prior=standard_normal"
        mean, log_std = self.posterior(x, y)
        z = mean + log_std.exp() * eps
        each = 0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std
        costly = each.mean(0) > self.free
        if self.path_gradient:
            mean, log_std = mean.detach(), log_std.detach()
            each = 0.5 * (z**2 - ((z - mean) * torch.exp(-log_std)) ** 2) - log_std
        kl = torch.where(costly, each, self.free).sum(-1)
        penalty = 0.0 if self.penalty is None else self.penalty(z, y, eps)
        return Terms(log_bernoulli(x, self._logits(z, y)), kl, penalty)


class ImportanceWeighted(CVAE):
    """Trains on the importance-weighted bound of four samples, doubly reparametrized.

    (Burda, Grosse and Salakhutdinov 2016; Tucker et al. 2019, equation 8.) What it logs stays the
    bound of one sample. For beta = 1 and no warm-up: the weights of its samples know no other. And
    without a penalty: it would weigh up to four times as much beside squared weights.
    """

    num_samples = 4

    def terms(self, x: Image, y: OneHot | None, eps: Latent) -> Terms:
        if not self.training:
            return super().terms(x, y, eps)
        assert self.penalty is None, "no penalty: model/penalty=none"
        assert (self.beta, self.warmup_steps) == (1, 0), "model.beta=1 model.warmup_steps=0"
        mean, log_std = self.posterior(x, y)
        more = torch.randn(len(x), self.num_samples - 1, self.latent_dim, device=x.device)
        draws = torch.cat([eps[:, None], more], dim=1)
        z = mean[:, None] + log_std.exp()[:, None] * draws
        w, log_det = self.prior.to_base(z.flatten(0, 1))
        mean_q, log_std_q = mean.detach()[:, None], log_std.detach()[:, None]  # q of z alone
        eps_of_z = (z - mean_q) * torch.exp(-log_std_q)
        kl = 0.5 * (w.view_as(z) ** 2 - eps_of_z**2).sum(-1) - log_std_q.sum(-1)
        kl = kl - log_det.view_as(kl)
        rows, labels = (a.repeat_interleave(self.num_samples, dim=0) for a in (x, _known(y)))
        log_p = log_bernoulli(rows, self._logits(z.flatten(0, 1), labels)).view_as(kl)
        weights = (log_p - kl).detach().softmax(dim=1)
        # once by the weighted sums, and once more on the way to the encoder
        z.register_hook(lambda gradient: gradient * weights[:, :, None])
        return Terms(_carried(weights, log_p), _carried(weights, kl))


def _known(y: OneHot | None) -> OneHot:
    assert y is not None, "these models are conditional"
    return y


def _carried(weights: Tensor, term: Tensor) -> Nats:
    """The mean over samples, with the gradient of the weighted sum."""
    weighted = (weights * term).sum(1)
    return term.detach().mean(1) + (weighted - weighted.detach())
