"""Randomness without state: every draw is a function of (seed, stream, epoch, image).

A generator has a position, and a position is lost by a kill, differs between ranks and shifts with
the batch size. Here the noise of an image is a hash of what the image is and when it is seen
(SplitMix64, Steele, Lea and Flood 2014, in counter mode), so one process and two, a resumed run
and an uninterrupted one, a small chunk and a large one all see the same noise.
"""

import math
from enum import IntEnum

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from cvae.types import ImageIndices
from harness.contract.seeds import FACTORS, GOLDEN, SHIFTS, derive_seed


class Stream(IntEnum):
    """Purpose of the noise: streams are independent. The harness uses 1 and 5."""

    BINARIZATION = 2
    POSTERIOR = 3
    IMPORTANCE = 4
    FIGURES = 6
    PRIOR = 7
    SAMPLES = 8
    AUGMENTATION = 9


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return value - 2**64 if value >= 2**63 else value


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, in place, for memory is what it costs.

    Products wrap, shifts are made logical by masks.
    """
    high = torch.empty_like(bits)
    for shift, factor in zip(SHIFTS, (*FACTORS, 1), strict=True):
        torch.bitwise_right_shift(bits, shift, out=high)
        bits.bitwise_xor_(high.bitwise_and_(2 ** (64 - shift) - 1))
        if factor != 1:
            bits.mul_(_signed(factor))
    return bits


def random_bits(
    index: ImageIndices, count: int, *, seed: int, stream: Stream, epoch: int = 0, start: int = 0
) -> Int64[Tensor, "batch count"]:
    """64 random bits for each of ``count`` positions of every image, from position ``start`` on."""
    golden = _signed(GOLDEN)
    key = _signed(derive_seed(seed, stream, epoch))
    image_key = _mix((index.long() + 1) * golden + key)
    position = torch.arange(start + 1, start + count + 1, device=index.device)
    return _mix(image_key[:, None] + position * golden)


def standard_normal(
    index: ImageIndices,
    size: tuple[int, ...],
    *,
    seed: int,
    stream: Stream,
    epoch: int = 0,
    start: int = 0,
) -> Float[Tensor, "batch ..."]:
    """Standard normal draws of shape (batch, *size) by the Box-Muller transform.

    ``start`` skips as many draws of every image and must be even: each 64 bits give two.
    """
    if start % 2:
        raise ValueError(f"start={start} must be even")
    num_draws = math.prod(size)
    num_pairs = (num_draws + 1) // 2
    bits = random_bits(index, num_pairs, seed=seed, stream=stream, epoch=epoch, start=start // 2)
    unit = 2.0**-32
    low, high = bits & (2**32 - 1), (bits >> 32) & (2**32 - 1)
    radius = torch.sqrt(-2.0 * torch.log((high.float() + 0.5) * unit))
    angle = (2.0 * math.pi * unit) * low.float()
    pairs = torch.view_as_real(torch.polar(radius, angle))
    return pairs.flatten(1)[:, :num_draws].reshape(len(index), *size)


def bernoulli(
    pixels: UInt8[Tensor, "batch num_pixels"],
    index: ImageIndices,
    *,
    seed: int,
    epoch: int = 0,
) -> Float[Tensor, "batch num_pixels"]:
    """Binarize: each pixel is on with probability pixel / 255 (Salakhutdinov and Murray 2008).

    A pixel takes 16 bits, so its probability is right to within 2^-16.
    """
    num_pixels = pixels.shape[1]
    bits = random_bits(
        index, (num_pixels + 3) // 4, seed=seed, stream=Stream.BINARIZATION, epoch=epoch
    )
    draws = bits.view(torch.int16)[:, :num_pixels]  # uniform over the signed 16-bit integers
    threshold = pixels.to(torch.int16).mul_((2**16 - 1) // 255).sub_(2**15)
    draws.clamp_(max=2**15 - 2)  # below what a white pixel has
    # straight into floats: faster than a boolean and its conversion
    return torch.lt(draws, threshold, out=torch.empty(pixels.shape, device=pixels.device))
