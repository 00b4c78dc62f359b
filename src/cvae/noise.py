"""Stateless random numbers: functions of (seed, stream, epoch, image).

The noise of an image is a hash of its index and the epoch: SplitMix64 (Steele, Lea and Flood 2014)
in counter mode. It is the same on any number of devices, for any batch size, and in resumed and
uninterrupted runs. The state of a random generator would be lost when a process is killed, would
differ between ranks and would depend on the batch size.
"""

import math
from enum import IntEnum

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from cvae.types import ImageIndices
from harness.contract.seeds import FACTORS, GOLDEN, SHIFTS, derive_seed


class Stream(IntEnum):
    """Purposes of random numbers; streams are independent. The harness uses 1 and 5."""

    BINARIZATION = 2
    POSTERIOR = 3
    IMPORTANCE = 4
    FIGURES = 6
    PRIOR = 7
    SAMPLES = 8
    AUGMENTATION = 9
    COLORS = 10
    ANGLES = 11


def _signed(value: int) -> int:
    """Reinterpret an unsigned 64-bit integer as int64."""
    return value - 2**64 if value >= 2**63 else value


def _mix(bits: Tensor) -> Tensor:
    """Apply the finalizer of SplitMix64 in place, because memory traffic dominates its cost.

    int64 products wrap around; masks make the shifts logical.
    """
    high = torch.empty_like(bits)
    for shift, factor in zip(SHIFTS, (*FACTORS, 1), strict=True):
        torch.bitwise_right_shift(bits, shift, out=high)
        bits.bitwise_xor_(high.bitwise_and_(2 ** (64 - shift) - 1))
        if factor != 1:
            bits.mul_(_signed(factor))
    return bits


def _key(seed: int, stream: Stream, epoch: int | Tensor) -> int | Tensor:
    """Return ``derive_seed(seed, stream, epoch)``, as a tensor if the epoch is one."""
    if not isinstance(epoch, Tensor):
        return _signed(derive_seed(seed, stream, epoch))
    return _mix((epoch + 1) * _signed(GOLDEN) + _signed(derive_seed(seed, stream)))


def random_bits(
    index: ImageIndices,
    count: int,
    *,
    seed: int,
    stream: Stream,
    epoch: int | Tensor = 0,
    start: int = 0,
) -> Int64[Tensor, "batch count"]:
    """Return 64 random bits for ``count`` positions of every image, starting at ``start``.

    Args:
        epoch: an integer, or a tensor of shape () to read on the device.
    """
    golden = _signed(GOLDEN)
    key = _key(seed, stream, epoch)
    image_key = _mix((index.long() + 1) * golden + key)
    position = torch.arange(start + 1, start + count + 1, device=index.device)
    return _mix(image_key[:, None] + position * golden)


def standard_normal(
    index: ImageIndices,
    size: tuple[int, ...],
    *,
    seed: int,
    stream: Stream,
    epoch: int | Tensor = 0,
    start: int = 0,
) -> Float[Tensor, "batch ..."]:
    """Return standard normal samples of shape (batch, *size), by the Box-Muller transform.

    Args:
        epoch: an integer, or a tensor of shape () to read on the device.
        start: number of samples to skip per image; must be even, as 64 bits give two samples.
    """
    if start % 2:
        raise ValueError(f"start={start}: must be even")
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
    """Set each pixel to 1 with probability pixel / 255, else 0 (Salakhutdinov and Murray 2008).

    A pixel uses 16 random bits, so its probability is accurate to 2^-16.
    """
    num_pixels = pixels.shape[1]
    bits = random_bits(
        index, (num_pixels + 3) // 4, seed=seed, stream=Stream.BINARIZATION, epoch=epoch
    )
    draws = bits.view(torch.int16)[:, :num_pixels]  # uniform over the signed 16-bit integers
    threshold = pixels.to(torch.int16).mul_((2**16 - 1) // 255).sub_(2**15)
    draws.clamp_(max=2**15 - 2)  # below the threshold of a white pixel
    # writing floats is faster than converting booleans
    return torch.lt(draws, threshold, out=torch.empty(pixels.shape, device=pixels.device))
