"""Augmentation of the training images, before their pixels are sampled.

To add an augmentation, write a class with the method of :class:`Augmentation` and name it in
``_target_`` of a YAML file in conf/data/augmentation/.
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
from harness.contract.settings import OrUnlimited, Probability, Weight

Grey = UInt8[Tensor, "batch channel height width"]
_NUM_CONTROLS = 5  # control points along a side of the elastic grid


@runtime_checkable
class Augmentation(Protocol):
    """Transform of the training images, before their pixels are sampled."""

    def __call__(self, pixels: Grey, index: ImageIndices, epoch: int) -> Grey:
        """Return the augmented images, as unsigned bytes.

        Key all randomness by (seed, epoch, image), so that it does not depend on the number of
        devices and a resumed run repeats it; see :mod:`cvae.noise`.

        Args:
            pixels: grey images.
            index: positions of the images in the training split.
            epoch: the current epoch.
        """
        ...


@runtime_checkable
class AugmentationFactory(Protocol):
    """Constructor of an augmentation, with the argument that the data module passes.

    Set further arguments of your augmentation in its YAML file.
    """

    def __call__(self, *, seed: int) -> Augmentation: ...


class Warp:
    r"""Random affine and elastic warps (Simard, Steinkraus and Platt 2003).

    .. math:: x'(u) = x((I + A) u + B(u)\,d)

    for a pixel position u, relative to the center of the image. The entries of the matrix A and the
    displacements d of 5 x 5 control points are normal with mean 0; B is bicubic interpolation
    between the control points. Keep the warps small enough that labels remain correct.

    Example::

        augmentation = functools.partial(Warp, affine=0.06, elastic=0.5, share=0.5, until=0.72)
        data = MNISTDataModule("data", augmentation=augmentation)

    Args:
        seed: seed of the random warps.
        affine: standard deviation of each entry of A: scale, rotation and shear.
        elastic: standard deviation of the displacements d, in pixels.
        share: probability that an image is warped in an epoch.
        until: share of the epochs with warps. The last epochs use the original images, since the
            distribution of warped images differs from that of the data.
        max_epochs: number of epochs of the run; with None or -1, all epochs have warps.
    """

    def __init__(
        self,
        seed: int,
        affine: Weight,
        elastic: Weight,
        share: Probability,
        until: Probability,
        max_epochs: OrUnlimited | None = None,
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
        points, controls, half_size = _pixel_grid(height, width, pixels.device)
        num_moves = 2 + len(controls)  # per axis: the entries of A and the displacements
        draws = noise.standard_normal(
            index,
            (2 * num_moves + 1,),
            seed=self.seed,
            stream=noise.Stream.AUGMENTATION,
            epoch=epoch,
        )
        moves = draws[:, :-1] * (torch.special.ndtr(draws[:, -1:]) < self.share)
        basis = torch.cat([self.affine * points, self.elastic * controls])
        moved = (points + moves.unflatten(1, (2, num_moves)) @ basis) / half_size
        grid = moved.unflatten(2, (height, width)).movedim(1, -1)
        return F.grid_sample(pixels.float(), grid, align_corners=False).round_().to(torch.uint8)


@functools.cache
def _pixel_grid(
    height: int, width: int, device: torch.device
) -> tuple[Float[Tensor, "2 num_pixels"], Float[Tensor, "num_controls num_pixels"], Tensor]:
    """Return pixel positions from the center, interpolation weights and half of (width, height)."""
    half_size = torch.tensor([[width / 2], [height / 2]])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([x, y]).flatten(1) + 0.5 - half_size
    controls = torch.eye(_NUM_CONTROLS**2).view(-1, 1, _NUM_CONTROLS, _NUM_CONTROLS)
    controls = F.interpolate(controls, (height, width), mode="bicubic", align_corners=True)
    return points.to(device), controls.flatten(1).to(device), half_size.to(device)
