"""Encoders and decoders: networks that return parameters of distributions.

To add a network, write a class with the two methods of :class:`Network` and the constructor
arguments of :class:`NetworkFactory`, and name it in ``_target_`` of a YAML file in
conf/model/network/.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from cvae.types import Condition, Image, Latent, Outputs, Statistics
from harness.contract.settings import Depth, Size


@runtime_checkable
class Network(Protocol):
    """Encoder and decoder of a model.

    Before training, a run checks a copy of the network on a few images, see :mod:`cvae.trial`.
    """

    def encode(self, x: Image, y: Condition | None) -> Statistics:
        """Return the parameters of q(z | x, y), (batch, num_statistics * latent_dim).

        For a Gaussian posterior, the first half is the mean and the second half the log standard
        deviation, which the model bounds.
        """
        ...

    def decode(self, z: Latent, y: Condition | None) -> Outputs:
        """Return the parameters of p(x | z, y), (batch, num_parameters * channels, height, width).

        For the Bernoulli likelihood these are logits. The model adds a bias for each of them.
        """
        ...


@runtime_checkable
class NetworkFactory(Protocol):
    """Constructor of a network, with the arguments that the model passes.

    Set further arguments of your network in its YAML file.
    """

    def __call__(
        self,
        *,
        image_shape: tuple[int, ...],
        latent_dim: int,
        num_statistics: int,
        condition_size: int,
        num_parameters: int,
    ) -> Network:
        """Build a network.

        Args:
            image_shape: (channels, height, width) of an image.
            latent_dim: dimensions of z.
            num_statistics: outputs of the encoder for each latent dimension: 2 for a Gaussian
                posterior (mean, log standard deviation), 1 for the code of a plain autoencoder.
            condition_size: length of y, such as the number of classes; 0 for an unconditional
                model.
            num_parameters: outputs of the decoder for each channel of each pixel: 1 for the
                Bernoulli likelihood (a logit).
        """
        ...


def _append_condition(z: Latent, y: Condition | None) -> Tensor:
    return z if y is None else torch.cat([z, y.to(z)], dim=-1)


class ConditionedLinear(nn.Module):
    """Affine map of features and a condition, ``W h + V c + b``; without V if c is empty."""

    def __init__(self, in_features: int, out_features: int, condition_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.condition = (
            nn.Linear(condition_size, out_features, bias=False) if condition_size else None
        )

    def forward(self, h: Tensor, c: Tensor | None) -> Tensor:
        return self.linear(h) if self.condition is None else self.linear(h) + self.condition(c)


class ResidualBlock(nn.Module):
    """Residual block ``h + W2 silu(W1 norm(h) + V c)``, initialized to the identity."""

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
    """Pre-norm residual MLP with the condition as an input of every block.

    Args:
        skips: also pass the input of the MLP to every block.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        num_blocks: int,
        condition_size: int,
        skips: bool = False,
    ) -> None:
        super().__init__()
        self.skips = skips
        self.stem = ConditionedLinear(in_features, width, condition_size)
        block_size = condition_size + in_features * skips
        self.blocks = nn.ModuleList(ResidualBlock(width, block_size) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_features)
        # small initial outputs: q starts near N(0, I), and the decoder near the model's output bias
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(width))
        nn.init.zeros_(self.head.bias)

    def forward(self, h: Tensor, y: Condition | None) -> Tensor:
        condition = _append_condition(h, y) if self.skips else y
        h = self.stem(h, y)
        for block in self.blocks:
            h = block(h, condition)
        return self.head(F.silu(self.norm(h)))


class MLP(nn.Module):
    """Residual MLPs as encoder and decoder.

    Example::

        network = functools.partial(MLP, hidden_dim=384, encoder_blocks=2, decoder_blocks=3)
        model = CVAE(network, latent_dim=32)

    Args:
        hidden_dim: width of every hidden layer.
        encoder_blocks: number of residual blocks of the encoder, each of two layers.
        decoder_blocks: number of residual blocks of the decoder, each of two layers.
        latent_skips: pass z to every block of the decoder (Dieng et al. 2019), not only to its
            first layer. The label goes to every block in either case.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        num_statistics: int,
        condition_size: int,
        num_parameters: int,
        hidden_dim: Size,
        encoder_blocks: Depth,
        decoder_blocks: Depth,
        latent_skips: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.output_shape = (num_parameters * channels, height, width)
        num_inputs, num_outputs = math.prod(image_shape), math.prod(self.output_shape)
        self.encoder = ResidualMLP(
            num_inputs, num_statistics * latent_dim, hidden_dim, encoder_blocks, condition_size
        )
        self.decoder = ResidualMLP(
            latent_dim, num_outputs, hidden_dim, decoder_blocks, condition_size, latent_skips
        )

    def encode(self, x: Image, y: Condition | None) -> Statistics:
        return self.encoder(x.flatten(1), y)

    def decode(self, z: Latent, y: Condition | None) -> Outputs:
        return self.decoder(z, y).unflatten(1, self.output_shape)


class ConvBlock(nn.Module):
    """Residual block ``h + conv2(silu(conv1(silu(norm(h))) + V c))`` on feature maps."""

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
    """Residual convolutional encoder and decoder.

    Every block takes the label, and every block of the decoder takes z as well. The first layer
    reads patches of the image. The encoder halves height and width of the feature maps between
    stages and the decoder doubles them, so the height and width of an image must be multiples of
    ``patch_size * 2 ** (len(channels) - 1)``.

    Example::

        network = functools.partial(Conv, channels=[32, 64], num_blocks=1, hidden_dim=256)
        model = CVAE(network, latent_dim=32)

    Args:
        patch_size: width and height of a patch in pixels.
        channels: number of feature maps in each stage; the first stage is next to the image.
        num_blocks: number of residual blocks in each stage.
        hidden_dim: width of the dense layers between feature maps and latent.
        latent_blocks: number of dense residual blocks between feature maps and latent, in the
            encoder and in the decoder.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        num_statistics: int,
        condition_size: int,
        num_parameters: int,
        channels: Annotated[Sequence[Size], MinLen(1)],
        num_blocks: Depth,
        hidden_dim: Size,
        patch_size: Size = 2,
        latent_blocks: Depth = 2,
    ) -> None:
        super().__init__()
        image_channels, height, width = image_shape
        channels = list(channels)
        factor = patch_size * 2 ** (len(channels) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"image_shape={list(image_shape)}: patch_size={patch_size} and "
                f"{len(channels)} stages in channels={channels} need height and width to be "
                f"a multiple of {factor}; pad the images, or use fewer stages"
            )
        self.inner_shape = (channels[-1], height // factor, width // factor)
        inner_features = math.prod(self.inner_shape)

        patch_channels = image_channels * patch_size**2
        self.to_patches = nn.PixelUnshuffle(patch_size)
        self.stem = nn.Conv2d(patch_channels, channels[0], 3, padding=1)
        self.encoder_stages = nn.ModuleList(
            nn.ModuleList(ConvBlock(size, condition_size) for _ in range(num_blocks))
            for size in channels
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(outer, inner, 3, stride=2, padding=1) for outer, inner in pairwise(channels)
        )
        self.to_statistics = ResidualMLP(
            inner_features, num_statistics * latent_dim, hidden_dim, latent_blocks, condition_size
        )
        self.from_latent = ConditionedLinear(latent_dim, hidden_dim, condition_size)
        self.latent_blocks = nn.ModuleList(
            ResidualBlock(hidden_dim, latent_dim + condition_size) for _ in range(latent_blocks)
        )
        self.to_maps = nn.Linear(hidden_dim, inner_features)
        self.decoder_stages = nn.ModuleList(
            nn.ModuleList(ConvBlock(size, latent_dim + condition_size) for _ in range(num_blocks))
            for size in reversed(channels)
        )
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1)
            for inner, outer in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(channels[0], num_parameters * patch_channels, 3, padding=1)
        self.to_pixels = nn.PixelShuffle(patch_size)
        nn.init.normal_(self.head.weight, std=0.01)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # 20 % faster

    def encode(self, x: Image, y: Condition | None) -> Statistics:
        h = self.stem(self.to_patches(x))
        for i, stage in enumerate(self.encoder_stages):
            h = self.downs[i - 1](h) if i else h
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, y)
        return self.to_statistics(h.flatten(1), y)

    def decode(self, z: Latent, y: Condition | None) -> Outputs:
        condition = _append_condition(z, y)
        h = self.from_latent(z, y)
        for block in self.latent_blocks:
            h = block(h, condition)
        h = self.to_maps(F.silu(h)).unflatten(1, self.inner_shape)
        for i, stage in enumerate(self.decoder_stages):
            h = self.ups[i - 1](h) if i else h
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, condition)
        return self.to_pixels(self.head(F.silu(h)))
