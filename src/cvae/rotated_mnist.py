"""MNIST rotated by known angles, which are an attribute of each image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray

from cvae import noise
from cvae.data import MNISTDataModule
from cvae.digits import SETS, load_digits

_SEED = 0  # not the run's seed, so that all runs have the same images
_MAX_ANGLE = 60.0  # degrees to either side
_CHUNK_SIZE = 1000  # images at a time

Angles = Float64[np.ndarray, " num_images"]


class RotatedMNISTDataModule(MNISTDataModule):
    """MNIST with every digit rotated by a random angle, uniform from -60 to 60 degrees.

    A positive angle turns counterclockwise. The angle depends only on the split and the position of
    the image in the files of MNIST. It is the attribute ``angle`` for
    :class:`cvae.conditions.Attributes`, and does not include the slant of the handwriting.

    Example::

        data = RotatedMNISTDataModule("data")
        data.setup()
        train_angles, test_angles = data.attributes["angle"]

    The other arguments are those of :class:`cvae.data.MNISTDataModule`.

    Args:
        name: name of the data set in run names and in the cache of evaluation.
    """

    def load_arrays(self) -> Sequence[NDArray[Any]]:
        train_x, train_y, test_x, test_y = load_digits(SETS["MNIST"], self.data_dir)
        angles = random_angles(len(train_x), False), random_angles(len(test_x), True)
        self.attributes = {"angle": angles}
        return rotate(train_x, angles[0]), train_y, rotate(test_x, angles[1]), test_y


def random_angles(count: int, is_test: bool) -> Angles:
    """Return the angles of the first ``count`` images of a file of MNIST, in degrees."""
    bits = noise.random_bits(
        torch.arange(count), 1, seed=_SEED, stream=noise.Stream.ANGLES, epoch=int(is_test)
    )
    share = (bits[:, 0].numpy().view(np.uint64) >> np.uint64(11)) * 2.0**-53
    return _MAX_ANGLE * (2 * share - 1)


def rotate(
    grey: UInt8[np.ndarray, "n height width"], angles: Angles
) -> UInt8[np.ndarray, "n height width"]:
    """Rotate images about their center, with bilinear interpolation and black outside."""
    rotated = np.empty_like(grey)
    for start in range(0, len(grey), _CHUNK_SIZE):
        rows = slice(start, start + _CHUNK_SIZE)
        images = torch.from_numpy(grey[rows].astype(np.float32))[:, None]
        radians = torch.from_numpy(np.radians(angles[rows])).float()
        cos, sin, zero = radians.cos(), radians.sin(), torch.zeros(len(images))
        # maps output pixels to input pixels with y down, so it turns the image counterclockwise
        matrix = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        sampled = F.grid_sample(images, grid, align_corners=False)
        rotated[rows] = sampled[:, 0].round().to(torch.uint8).numpy()
    return rotated
