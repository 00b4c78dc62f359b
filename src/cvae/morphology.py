"""Stroke thickness and slant of digits, as in Morpho-MNIST (Castro et al. 2019)."""

from collections.abc import Callable, Mapping

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.measure import moments_central
from skimage.morphology import skeletonize

from cvae.types import Image

_SCALE = 4  # upsampling, to measure fractions of a pixel
_THRESHOLD = 0.5  # grey level above which a pixel is ink

Values = NDArray[np.float64]


def thickness(images: Image) -> Values:
    """Return the stroke thickness in pixels of the image; nan without ink.

    It is twice the mean distance to the background along the skeleton, measured on the image
    enlarged four times.
    """
    fine = F.interpolate(images.float().cpu(), scale_factor=_SCALE, mode="bilinear")[:, 0]
    ink = F.pad(fine, [1, 1, 1, 1]).numpy() > _THRESHOLD
    return np.array([_thickness(mask) for mask in ink])


def _thickness(ink: NDArray[np.bool_]) -> float:
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return float("nan")
    ink = ink[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]  # one pixel of margin
    # a pixel's center lies half a pixel inside its edge
    inside = distance_transform_edt(ink)[skeletonize(ink)] - 0.5
    return float(2 * inside.mean() / _SCALE)


def slant(images: Image) -> Values:
    """Return the slant in degrees, positive to the right; nan without ink.

    It is the arc tangent of the horizontal shear, from the second moments of the grey levels.
    """
    return np.array([_slant(image) for image in images[:, 0].cpu().numpy().astype(np.float64)])


def _slant(image: NDArray[np.float64]) -> float:
    if image.sum() <= 0:
        return float("nan")
    moments = moments_central(image, order=2)  # first index: rows, downwards
    return float(np.degrees(np.arctan(-moments[1, 1] / max(moments[2, 0], 1e-12))))


FACTORS: Mapping[str, Callable[[Image], Values]] = {"thickness": thickness, "slant": slant}
