"""Networks and models that the library does not include, for the ablations."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvae.conditions import Labels
from cvae.models import CVAE
from cvae.networks import MLP, ConditionedLinear
from cvae.priors import StandardNormal
from cvae.types import Condition, Image, Latent, Nats, Outputs, Statistics, Terms


class Stack(nn.Module):
    """Stack of layers without residuals or norms; the first layer takes the label.

    The initialization keeps the scale of activations (He et al. 2015). With torch's default, almost
    no signal of z passes seven layers.

    Args:
        gated: whether a gate multiplies each linear map (Tomczak and Welling 2018), instead of
            SiLU.
    """

    def __init__(
        self, sizes: Sequence[int], out_features: int, condition_size: int, gated: bool
    ) -> None:
        super().__init__()
        self.gated = gated
        layers = [
            ConditionedLinear(a, b * (1 + gated), 0 if i else condition_size)
            for i, (a, b) in enumerate(pairwise(sizes))
        ]
        gain = 1.85 if gated else 1.68  # for a standard normal input
        for layer in layers:
            std = gain / math.sqrt(layer.linear.in_features)
            nn.init.normal_(layer.linear.weight, std=std)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(sizes[-1], out_features)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(sizes[-1]))
        nn.init.zeros_(self.head.bias)

    def forward(self, h: Tensor, y: Condition | None) -> Tensor:
        for layer in self.layers:
            h = F.glu(layer(h, y), dim=-1) if self.gated else F.silu(layer(h, y))
        return self.head(h)


class PlainMLP(nn.Module):
    """Plain perceptrons with the depth and width of :class:`~cvae.networks.MLP`.

    They have no residuals or norms. Only the first layer takes z and the label; ``latent_skips``
    is ignored.
    """

    gated = False

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        num_statistics: int,
        condition_size: int,
        num_parameters: int,
        hidden_dim: int,
        encoder_blocks: int,
        decoder_blocks: int,
        latent_skips: bool,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.output_shape = (num_parameters * channels, height, width)
        pixels, per_block = math.prod(image_shape), 1 if self.gated else 2
        encoder_sizes = [pixels, *[hidden_dim] * (1 + per_block * encoder_blocks)]
        decoder_sizes = [latent_dim, *[hidden_dim] * (1 + per_block * decoder_blocks)]
        self.encoder = Stack(encoder_sizes, num_statistics * latent_dim, condition_size, self.gated)
        self.decoder = Stack(decoder_sizes, pixels * num_parameters, condition_size, self.gated)

    def encode(self, x: Image, y: Condition | None) -> Statistics:
        return self.encoder(x.flatten(1), y)

    def decode(self, z: Latent, y: Condition | None) -> Outputs:
        return self.decoder(z, y).unflatten(1, self.output_shape)


class GatedMLP(PlainMLP):
    """:class:`PlainMLP` with gated layers, half as many since each takes twice the time."""

    gated = True


class LabelAtInput(MLP):
    """:class:`~cvae.networks.MLP` with the label only at the first layers, not at every block."""

    def encode(self, x: Image, y: Condition | None) -> Statistics:
        return self._forward(self.encoder, x.flatten(1), y)

    def decode(self, z: Latent, y: Condition | None) -> Outputs:
        return self._forward(self.decoder, z, y).unflatten(1, self.output_shape)

    @staticmethod
    def _forward(mlp: Any, inputs: Tensor, y: Condition | None) -> Tensor:
        h = mlp.stem(inputs, y)
        zeros = None if y is None else torch.zeros_like(y)
        for block in mlp.blocks:
            block_inputs = zeros
            if mlp.skips:
                block_inputs = inputs if zeros is None else torch.cat([inputs, zeros], dim=1)
            h = block(h, block_inputs)
        return mlp.head(F.silu(mlp.norm(h)))


class FreeBits(CVAE):
    """CVAE with free bits: in training, a latent dimension costs at least ``min_nats`` nats.

    The minimum applies to the batch mean of the closed-form KL to N(0, I) (Kingma et al. 2016, who
    use values around this one). With the path gradient, the KL of the dimensions above the minimum
    is a one-sample estimate.
    """

    min_nats = 0.1

    def terms(self, x: Image, y: Labels | None, eps: Latent) -> Terms:
        if not self.training:
            return super().terms(x, y, eps)
        assert isinstance(self.prior, StandardNormal), (
            "free bits need p(z) = N(0, I): set model/prior=standard_normal"
        )
        c = self._embed_condition(y, x)
        mean, log_std = self._posterior(x, c)
        z = mean + log_std.exp() * eps
        kl_per_dimension = 0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std
        is_above_minimum = kl_per_dimension.mean(0) > self.min_nats
        if self.path_gradient:
            mean, log_std = mean.detach(), log_std.detach()
            kl_per_dimension = 0.5 * (z**2 - ((z - mean) * torch.exp(-log_std)) ** 2) - log_std
        kl = torch.where(is_above_minimum, kl_per_dimension, self.min_nats).sum(-1)
        penalty = 0.0 if self.penalty is None else self.penalty(z, c, eps)
        return Terms(self._log_prob(x, self._pixel_parameters(z, c)), kl, penalty)


class ImportanceWeighted(CVAE):
    """CVAE trained on the importance-weighted bound of four samples, doubly reparametrized.

    See Burda, Grosse and Salakhutdinov (2016) and Tucker et al. (2019, equation 8). It logs the
    bound of one sample. The sample weights require beta = 1 without warm-up. A penalty is rejected,
    because the hook that rescales the gradient of z would rescale its gradient as well.
    """

    num_samples = 4

    def terms(self, x: Image, y: Labels | None, eps: Latent) -> Terms:
        if not self.training:
            return super().terms(x, y, eps)
        assert self.penalty is None, "a penalty is not supported: set model/penalty=none"
        assert (self.beta, self.warmup_steps) == (1, 0), (
            "the KL weight must be 1: set model.beta=1 model.warmup_steps=0"
        )
        c = _require_condition(self._embed_condition(y, x))
        mean, log_std = self._posterior(x, c)
        other_eps = torch.randn(len(x), self.num_samples - 1, self.latent_dim, device=x.device)
        all_eps = torch.cat([eps[:, None], other_eps], dim=1)
        z = mean[:, None] + log_std.exp()[:, None] * all_eps
        rows = c.repeat_interleave(self.num_samples, dim=0)
        w, log_det = self.prior.to_base(z.flatten(0, 1), rows)
        # no gradient through the parameters of q
        mean_q, log_std_q = mean.detach()[:, None], log_std.detach()[:, None]
        eps_of_z = (z - mean_q) * torch.exp(-log_std_q)
        kl = 0.5 * (w.view_as(z) ** 2 - eps_of_z**2).sum(-1) - log_std_q.sum(-1)
        kl = kl - log_det.view_as(kl)
        parameters = self._pixel_parameters(z.flatten(0, 1), rows).unflatten(0, kl.shape)
        log_p = self._log_prob(x, parameters)
        weights = (log_p - kl).detach().softmax(dim=1)
        # the weighted sums apply the weights once; the gradient of z needs them squared
        z.register_hook(lambda gradient: gradient * weights[:, :, None])
        return Terms(
            _mean_with_weighted_gradient(weights, log_p), _mean_with_weighted_gradient(weights, kl)
        )


def _require_condition(y: Condition | None) -> Condition:
    assert y is not None, "this model is conditional: pass the labels y"
    return y


def _mean_with_weighted_gradient(weights: Tensor, term: Tensor) -> Nats:
    """Return the mean over samples, with the gradient of the weighted sum."""
    weighted = (weights * term).sum(1)
    return term.detach().mean(1) + (weighted - weighted.detach())
