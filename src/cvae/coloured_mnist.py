"""MNIST in random colors, with hues that are known factors of style."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Len
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray

from cvae import noise
from cvae.data import MNISTDataModule
from cvae.digits import SETS, load_digits
from harness.contract.settings import Name, Size

_SEED = 0  # not the run's seed, so that all runs have the same images
_DIGIT_VALUE, _BACKGROUND_VALUE = 255, 89  # V of HSV, the largest of red, green and blue, in bytes
_CHUNK_SIZE = 1000  # images at a time

Hues = Float64[np.ndarray, "num_images 2"]  # of the digit and its background, in [0, 1)


class ColouredMNISTDataModule(MNISTDataModule):
    """MNIST with a random hue for every digit and another for its background.

    x is float, (B, 3, 28, 28), in [0, 1]. All colors have full saturation in HSV. Their value V is
    1 for digits and 0.35 for backgrounds. A pixel of grey level g is the mixture
    background + (digit - background) g / 255. The hues depend only on the split and the position of
    the image in the files of MNIST. Cosine and sine of 2 pi times each hue are the attributes
    ``digit_hue_cos``, ``digit_hue_sin``, ``background_hue_cos`` and ``background_hue_sin``.

    Example::

        data = ColouredMNISTDataModule("data")
        data.setup()
        cosines = data.splits()["test"].attributes["digit_hue_cos"]

    The other arguments are those of :class:`cvae.data.MNISTDataModule`.

    Args:
        name: name of the data set in run names and in the cache of evaluation.
        binarization: must be "none", as color images are not binarized.
    """

    def __init__(
        self,
        data_dir: Name | Path,
        name: Name = "ColouredMNIST",
        binarization: Literal["dynamic", "none"] = "none",
        image_shape: Annotated[Sequence[Size], Len(3, 3)] = (3, 28, 28),
        **settings: Any,
    ) -> None:
        super().__init__(
            data_dir, name, binarization=binarization, image_shape=image_shape, **settings
        )

    def load_arrays(self) -> Sequence[NDArray[Any]]:
        train_x, train_y, test_x, test_y = load_digits(SETS["MNIST"], self.data_dir)
        hues = [random_hues(np.arange(len(x)), x is test_x) for x in (train_x, test_x)]
        train, test = (2 * np.pi * split_hues.T for split_hues in hues)
        self.attributes = {
            "digit_hue_cos": (np.cos(train[0]), np.cos(test[0])),
            "digit_hue_sin": (np.sin(train[0]), np.sin(test[0])),
            "background_hue_cos": (np.cos(train[1]), np.cos(test[1])),
            "background_hue_sin": (np.sin(train[1]), np.sin(test[1])),
        }
        return color_digits(train_x, hues[0]), train_y, color_digits(test_x, hues[1]), test_y


def random_hues(index: NDArray[np.int64], is_test: bool) -> Hues:
    """Return the hues of the images at these positions in a file of MNIST."""
    bits = noise.random_bits(
        torch.from_numpy(index), 2, seed=_SEED, stream=noise.Stream.COLORS, epoch=int(is_test)
    )
    return (bits.numpy().view(np.uint64) >> np.uint64(11)) * 2.0**-53


def color_digits(
    grey: UInt8[np.ndarray, "n height width"], hues: Hues
) -> UInt8[np.ndarray, "n 3 h w"]:
    """Return digits in their first hue on a background of their second hue."""
    colored = np.empty((len(grey), 3, *grey.shape[1:]), np.uint8)
    for start in range(0, len(grey), _CHUNK_SIZE):
        rows = slice(start, start + _CHUNK_SIZE)
        level = grey[rows, None].astype(np.uint16)
        digit, background = (
            _to_rgb(hues[rows, column], value).astype(np.uint16)[:, :, None, None]
            for column, value in ((0, _DIGIT_VALUE), (1, _BACKGROUND_VALUE))
        )
        # to the nearest byte: 255² + 127 fits into 16 bits
        colored[rows] = (background * (255 - level) + digit * level + 127) // 255
    return colored


def _to_rgb(hue: NDArray[np.float64], value: int) -> NDArray[np.float64]:
    """Return red, green and blue of fully saturated colors, as whole numbers up to ``value``."""
    sector = (6 * hue[:, None] + np.array([0, 4, 2])) % 6
    return np.rint(value * np.clip(np.abs(sector - 3) - 1, 0, 1))
