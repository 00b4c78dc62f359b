"""Other shapes of the training images, before their pixels are drawn.

An augmentation of your own is one class with the method of :class:`Augmentation`, and one YAML file
in conf/data/augmentation/ that names it in ``_target_``.
"""

import functools
import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from cvae import noise
from cvae.types import ImageIndices

Grey = UInt8[Tensor, "batch channel height width"]
_CONTROLS = 5  # points on a side of the grid that an elastic map moves


@runtime_checkable
class Augmentation(Protocol):
    """What the data module asks of its augmentation; it gives ``seed`` to the constructor."""

    def __call__(self, pixels: Grey, index: ImageIndices, epoch: int) -> Grey:
        """Unsigned bytes again, of randomness that is keyed by (seed, epoch, image)."""
        ...


class Warp:
    r"""Gives a point u the grey of the image's point :math:`(I + A) u + B(u)\,d`.

    A is a matrix, B the bicubic interpolation of displacements d of a grid of 5 x 5 control points,
    both normal. Labels stay what they are if the moves are small (Simard, Steinkraus and Platt
    2003).

    Args:
        seed: seed of the draws.
        affine: standard deviation of each entry of A: scale, rotation and shear.
        elastic: standard deviation of the displacements d, in pixels.
        share: probability that an image is warped at a visit.
        until: share of the epochs with warped images; the last take all as they are, for what is
            warped is a little beside the distribution that is learned.
        max_epochs: those of the training; where it has no such end, images are warped throughout.
    """

    def __init__(
        self,
        seed: int,
        affine: float,
        elastic: float,
        share: float,
        until: float,
        max_epochs: int | None = None,
    ) -> None:
        self.seed = seed
        self.affine = affine
        self.elastic = elastic
        self.share = share
        self.until_epoch = math.inf
        if max_epochs is not None and max_epochs >= 0:
            self.until_epoch = round(until * max_epochs)

    def __call__(self, pixels: Grey, index: ImageIndices, epoch: int) -> Grey:
        if epoch >= self.until_epoch:
            return pixels
        height, width = pixels.shape[2:]
        points, controls, half = _plane(height, width, pixels.device)
        num_moves = 2 + len(controls)  # of each axis
        draws = noise.standard_normal(
            index,
            (2 * num_moves + 1,),
            seed=self.seed,
            stream=noise.Stream.AUGMENTATION,
            epoch=epoch,
        )
        moves = draws[:, :-1] * (torch.special.ndtr(draws[:, -1:]) < self.share)
        basis = torch.cat([self.affine * points, self.elastic * controls])
        moved = (points + moves.unflatten(1, (2, num_moves)) @ basis) / half
        grid = moved.unflatten(2, (height, width)).movedim(1, -1)
        return F.grid_sample(pixels.float(), grid, align_corners=False).round_().to(torch.uint8)


@functools.cache
def _plane(
    height: int, width: int, device: torch.device
) -> tuple[Float[Tensor, "2 num_pixels"], Float[Tensor, "num_controls num_pixels"], Tensor]:
    """Where the pixels lie, from the middle; the basis of the control points; half the size."""
    half = torch.tensor([[width / 2], [height / 2]])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([x, y]).flatten(1) + 0.5 - half
    controls = torch.eye(_CONTROLS**2).view(-1, 1, _CONTROLS, _CONTROLS)
    controls = F.interpolate(controls, (height, width), mode="bicubic", align_corners=True)
    return points.to(device), controls.flatten(1).to(device), half.to(device)
