"""Encoders and decoders. A network maps tensors to tensors; the model makes distributions of them.

A network of your own is one class with the constructor arguments and the two methods of
:class:`Network`, and one YAML file in conf/model/network/ that names it in ``_target_``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvae.types import Image, Latent, Logits, OneHot, Statistics


class Network(Protocol):
    """What a model asks of its network.

    Before training, a run checks a copy of it on a few images, see :mod:`cvae.trial`.

    Args of the constructor, which the model fills in (the rest comes from the YAML file):
        image_shape: (channels, height, width) of an image.
        latent_dim: dimensions of z.
        num_statistics: numbers the encoder gives for each latent dimension: 2 for a Gaussian
            posterior (mean, log standard deviation), 1 for the code of a plain autoencoder.
        num_classes: length of the one-hot label, 0 for an unconditional model.
    """

    def encode(self, x: Image, y: OneHot | None) -> Statistics:
        """The statistics of q(z | x, y), (batch, num_statistics * latent_dim)."""
        ...

    def decode(self, z: Latent, y: OneHot | None) -> Logits:
        """The logits of p(x | z, y). The model adds a bias for each pixel of its own."""
        ...


def _with_latent(z: Latent, y: OneHot | None) -> Tensor:
    return z if y is None else torch.cat([z, y.to(z)], dim=-1)


class ConditionedLinear(nn.Module):
    """An affine map of features and a condition: ``W h + V c + b``, no V where c has no size."""

    def __init__(self, in_features: int, out_features: int, condition_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.condition = (
            nn.Linear(condition_size, out_features, bias=False) if condition_size else None
        )

    def forward(self, h: Tensor, c: Tensor | None) -> Tensor:
        return self.linear(h) if self.condition is None else self.linear(h) + self.condition(c)


class ResidualBlock(nn.Module):
    """``h + W2 silu(W1 norm(h) + V c)``, the identity at initialization."""

    def __init__(self, width: int, condition_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = ConditionedLinear(width, width, condition_size)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, c: Tensor | None) -> Tensor:
        return h + self.outer(F.silu(self.inner(self.norm(h), c)))


class ResidualMLP(nn.Module):
    """Pre-norm residual perceptron that sees the label at every block.

    Args:
        skips: whether every block sees the input of the whole as well.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        num_blocks: int,
        num_classes: int,
        skips: bool = False,
    ) -> None:
        super().__init__()
        self.skips = skips
        self.stem = ConditionedLinear(in_features, width, num_classes)
        condition_size = num_classes + in_features * skips
        self.blocks = nn.ModuleList(ResidualBlock(width, condition_size) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_features)
        # near-zero outputs: training starts from q = N(0, I) and from the model's output bias
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(width))
        nn.init.zeros_(self.head.bias)

    def forward(self, h: Tensor, y: OneHot | None) -> Tensor:
        condition = _with_latent(h, y) if self.skips else y
        h = self.stem(h, y)
        for block in self.blocks:
            h = block(h, condition)
        return self.head(F.silu(self.norm(h)))


class MLP(nn.Module):
    """Residual perceptrons for encoder and decoder.

    Args:
        hidden_dim: width of every layer.
        encoder_blocks, decoder_blocks: residual blocks, of two layers each.
        latent_skips: whether z goes to every block of the decoder, beside the label (Dieng et al.
            2019), and not to its first layer alone.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        num_statistics: int,
        num_classes: int,
        hidden_dim: int,
        encoder_blocks: int,
        decoder_blocks: int,
        latent_skips: bool = False,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        num_pixels = math.prod(self.image_shape)
        self.encoder = ResidualMLP(
            num_pixels, num_statistics * latent_dim, hidden_dim, encoder_blocks, num_classes
        )
        self.decoder = ResidualMLP(
            latent_dim, num_pixels, hidden_dim, decoder_blocks, num_classes, latent_skips
        )

    def encode(self, x: Image, y: OneHot | None) -> Statistics:
        return self.encoder(x.flatten(1), y)

    def decode(self, z: Latent, y: OneHot | None) -> Logits:
        return self.decoder(z, y).unflatten(1, self.image_shape)


class ConvBlock(nn.Module):
    """``h + conv2(silu(conv1(silu(norm(h))) + V c))`` on feature maps."""

    def __init__(self, channels: int, condition_size: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.condition = nn.Linear(condition_size, channels, bias=False) if condition_size else None
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(torch.as_tensor(self.outer.bias))

    def forward(self, h: Tensor, c: Tensor | None) -> Tensor:
        u = self.inner(F.silu(self.norm(h)))
        if self.condition is not None:
            u = u + self.condition(c)[:, :, None, None]
        return h + self.outer(F.silu(u))


class Conv(nn.Module):
    """Residual convolutional encoder and decoder, which sees z at every block, beside the label.

    Patches of the image are the channels of the first maps. The encoder halves them between
    stages, the decoder doubles them, so height and width are multiples of
    ``patch_size * 2 ** (len(channels) - 1)``.

    Args:
        patch_size: pixels on a side of a patch.
        channels: feature maps of each stage, from the image inwards.
        num_blocks: residual blocks in each stage.
        hidden_dim: width of the layers between feature maps and latent.
        latent_blocks: residual blocks of that width between these, on either side, which see the
            label and, in the decoder, z.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        num_statistics: int,
        num_classes: int,
        channels: Sequence[int],
        num_blocks: int,
        hidden_dim: int,
        patch_size: int = 1,
        latent_blocks: int = 0,
    ) -> None:
        super().__init__()
        image_channels, height, width = image_shape
        channels = list(channels)
        factor = patch_size * 2 ** (len(channels) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"patch_size={patch_size} and channels={channels}, which halve the maps "
                f"{len(channels) - 1} times, need a multiple of {factor} pixels: the image has "
                f"{height} x {width}"
            )
        self.inner_shape = (channels[-1], height // factor, width // factor)
        inner_features = math.prod(self.inner_shape)

        patch_channels = image_channels * patch_size**2
        self.to_patches = nn.PixelUnshuffle(patch_size)
        self.stem = nn.Conv2d(patch_channels, channels[0], 3, padding=1)
        self.encoder_stages = nn.ModuleList(
            nn.ModuleList(ConvBlock(size, num_classes) for _ in range(num_blocks))
            for size in channels
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(outer, inner, 3, stride=2, padding=1) for outer, inner in pairwise(channels)
        )
        self.to_statistics = ResidualMLP(
            inner_features, num_statistics * latent_dim, hidden_dim, latent_blocks, num_classes
        )
        self.from_latent = ConditionedLinear(latent_dim, hidden_dim, num_classes)
        self.latent_blocks = nn.ModuleList(
            ResidualBlock(hidden_dim, latent_dim + num_classes) for _ in range(latent_blocks)
        )
        self.to_maps = nn.Linear(hidden_dim, inner_features)
        self.decoder_stages = nn.ModuleList(
            nn.ModuleList(ConvBlock(size, latent_dim + num_classes) for _ in range(num_blocks))
            for size in reversed(channels)
        )
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1)
            for inner, outer in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(channels[0], patch_channels, 3, padding=1)
        self.to_pixels = nn.PixelShuffle(patch_size)
        nn.init.normal_(self.head.weight, std=0.01)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # a fifth faster

    def encode(self, x: Image, y: OneHot | None) -> Statistics:
        h = self.stem(self.to_patches(x))
        for i, stage in enumerate(self.encoder_stages):
            h = self.downs[i - 1](h) if i else h
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, y)
        return self.to_statistics(h.flatten(1), y)

    def decode(self, z: Latent, y: OneHot | None) -> Logits:
        condition = _with_latent(z, y)
        h = self.from_latent(z, y)
        for block in self.latent_blocks:
            h = block(h, condition)
        h = self.to_maps(F.silu(h)).unflatten(1, self.inner_shape)
        for i, stage in enumerate(self.decoder_stages):
            h = self.ups[i - 1](h) if i else h
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, condition)
        return self.to_pixels(self.head(F.silu(h)))
