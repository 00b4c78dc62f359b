"""Other shapes of the training images, before their pixels are drawn.

An augmentation of your own is one class with the method of :class:`Augmentation`, and one YAML file
in conf/data/augmentation/ that names it in ``_target_``.
"""

import functools
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae import noise
from cvae.types import ImageIndices

Grey = UInt8[Tensor, "batch channel height width"]
_KNOTS = 5  # a side of the grid whose points an elastic map moves


@runtime_checkable
class Augmentation(Protocol):
    """What the data module asks of its augmentation; it gives ``seed`` to the constructor."""

    def __call__(self, pixels: Grey, index: ImageIndices, epoch: int) -> Grey:
        """Unsigned bytes again, a function of (seed, epoch, image) alone."""
        ...


class Warp:
    r"""Moves the points of an image: :math:`u \mapsto (I + A) u + B(u)\,d`.

    A is a matrix, B the bicubic interpolation of displacements d on a grid of 5 x 5 points, both
    normal. Labels stay what they are if the moves are small (Simard, Steinkraus and Platt 2003).

    Args:
        seed: seed of the draws.
        affine: standard deviation of each entry of A: scale, rotation and shear.
        elastic: standard deviation of the displacements d, in pixels.
        share: probability that an image is warped at a visit.
        until_epoch: the first epoch that takes all images as they are: what is warped is a little
            beside the distribution that is learned.
    """

    def __init__(
        self, seed: int, affine: float, elastic: float, share: float, until_epoch: int
    ) -> None:
        self.seed = seed
        self.affine = affine
        self.elastic = elastic
        self.share = share
        self.until_epoch = until_epoch

    def __call__(self, pixels: Grey, index: ImageIndices, epoch: int) -> Grey:
        if epoch >= self.until_epoch:
            return pixels
        height, width = pixels.shape[2:]
        points, knots, half = _plane(height, width, pixels.device)
        num_moves = 2 + len(knots)  # of each axis
        draws = noise.standard_normal(
            index,
            (2 * num_moves + 1,),
            seed=self.seed,
            stream=noise.Stream.AUGMENTATION,
            epoch=epoch,
        )
        moves = draws[:, :-1] * (torch.special.ndtr(draws[:, -1:]) < self.share)
        basis = torch.cat([self.affine * points, self.elastic * knots])
        moved = (points + moves.unflatten(1, (2, num_moves)) @ basis) / half
        grid = moved.unflatten(2, (height, width)).movedim(1, -1)
        return F.grid_sample(pixels.float(), grid, align_corners=False).round_().to(torch.uint8)


@functools.cache
def _plane(
    height: int, width: int, device: torch.device
) -> tuple[Float[Tensor, "2 num_pixels"], Float[Tensor, "num_knots num_pixels"], Tensor]:
    """Where the pixels lie, from the middle; what each knot gives to each; half the size."""
    half = torch.tensor([[width / 2], [height / 2]])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([x, y]).flatten(1) + 0.5 - half
    knots = torch.eye(_KNOTS**2).view(-1, 1, _KNOTS, _KNOTS)
    knots = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)
    return points.to(device), knots.flatten(1).to(device), half.to(device)
