"""Directions in the latent space: stroke thickness, slant, and those of largest variance."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from cvae.conditions import OneHot
from cvae.models import VAE, Autoencoder
from cvae.types import Batch, Image, Latent

EXTENT = 3.0  # standard deviations to either side
_MAX_IMAGES = 500  # to measure: about 1 ms each

Values = NDArray[np.float64]
Point = Float[Tensor, " latent_dim"]
Factors = Mapping[str, Callable[[Image], Values]]  # measures of images, by name


class Direction(NamedTuple):
    """A direction in the latent space, and the range to show along it."""

    name: str  # thickness, slant, component 1, ...
    vector: Point  # of unit length
    low: float  # smallest coordinate along the vector
    high: float  # largest coordinate
    share: float | None = None  # of the variance, for a principal component

    def values(self, count: int) -> Float[Tensor, " count"]:
        """Return equally spaced coordinates from low to high."""
        return torch.linspace(self.low, self.high, count).to(self.vector)


def traverse(
    z: Latent, vector: Point, values: Float[Tensor, " steps"]
) -> Float[Tensor, "batch steps latent_dim"]:
    """Return each z with its coordinate along a unit vector replaced by each of the values.

    Example::

        first = principal_directions(model, batch, count=1)[0]
        z = traverse(center(model, batch), first.vector, first.values(11))  # (1, 11, latent_dim)
    """
    direction = vector[None]
    orthogonal = z - (z @ direction.T) * direction
    return orthogonal[:, None] + values[:, None] * direction


@torch.no_grad()
def embed(model: Autoencoder, batch: Batch) -> Latent:
    """Return the latent of each image in a batch. An unconditional model ignores ``batch.y``."""
    return model.embed(batch.x, batch.y if model.conditional else None)


def center(model: Autoencoder, batch: Batch) -> Latent:
    """Return the starting point of traversals, (1, latent_dim).

    This is 0, the mean of the prior, for a VAE, and the mean code for a plain autoencoder.
    """
    z = embed(model, batch)
    return torch.zeros_like(z[:1]) if isinstance(model, VAE) else z.mean(dim=0, keepdim=True)


@torch.no_grad()
def style_directions(model: Autoencoder, batch: Batch, factors: Factors) -> list[Direction]:
    """Return the direction of increase of each factor of style, within a label.

    This is the covariance of latents and factor, both centered per label: the direction in which z
    moves on average as the factor increases. The coefficients of a regression would be largest for
    dimensions that hardly vary, which the decoder ignores. The factor is measured on the
    reconstructions of at most 500 images.

    Example::

        from cvae.morphology import FACTORS

        thickness, slant = style_directions(model, batch, FACTORS)

    Args:
        batch: held-out images.
        factors: functions that measure images, such as :data:`cvae.morphology.FACTORS`.

    Returns:
        One direction for each factor that varies. Empty for color images and for conditions
        other than one label.
    """
    if model.image_shape[0] != 1 or not isinstance(model.condition, OneHot):
        return []
    count = min(_MAX_IMAGES, len(batch.x))
    subset = Batch(batch.x[:count], batch.y[:count], batch.indices[:count], count)
    latent = embed(model, subset)
    images = model.decode(latent, subset.y if model.conditional else None).mean
    labels = (subset.y if subset.y.ndim == 1 else subset.y.argmax(dim=1)).cpu().numpy()
    points = latent.double().cpu().numpy()
    directions = []
    for name, measure in factors.items():
        values = measure(images)
        known = ~np.isnan(values)
        if not known.any():
            continue
        vector = _covariance(points[known], values[known], labels[known])
        if (length := np.linalg.norm(vector)) > 0:
            directions.append(_make_direction(model, name, vector / length, latent))
    return directions


def _covariance(points: Values, values: Values, labels: NDArray[np.int64]) -> Values:
    """Return the covariance of each dimension of the points with the values, within labels."""
    num_classes = int(labels.max()) + 1
    x = points - label_means(points, labels, num_classes)[labels]
    v = values - label_means(values, labels, num_classes)[labels]
    return np.asarray(x.T @ v / len(v), dtype=np.float64)


def label_means(values: Values, labels: NDArray[np.int64], num_classes: int) -> Values:
    """Return the mean value of each label, or the overall mean for a label without values."""
    means = np.repeat(values.mean(axis=0, keepdims=True), num_classes, axis=0)
    for c in np.unique(labels):
        means[c] = values[labels == c].mean(axis=0)
    return means


def principal_directions(model: Autoencoder, batch: Batch, count: int) -> list[Direction]:
    """Return the principal components of the latents, those of largest variance first.

    The entry of largest magnitude in each vector is positive.

    Args:
        batch: held-out images.
        count: number of components, at most.
    """
    latent = embed(model, batch)
    points = latent.double().cpu().numpy()
    _, lengths, vectors = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    shares = lengths**2 / max((lengths**2).sum(), np.finfo(np.float64).tiny)
    directions = []
    for i, vector in enumerate(vectors[: min(count, len(points) - 1)]):
        sign = np.sign(vector[np.abs(vector).argmax()])
        direction = _make_direction(model, f"component {i + 1}", sign * vector, latent)
        directions.append(direction._replace(share=float(shares[i])))
    return directions


def coordinate_directions(model: Autoencoder, batch: Batch, count: int) -> list[Direction]:
    """Return the dimensions of z that vary most over the images of a batch.

    Args:
        batch: held-out images.
        count: number of dimensions, at most.
    """
    latent = embed(model, batch)
    order = latent.std(dim=0, correction=0).argsort(descending=True)[:count]
    axes = np.eye(model.latent_dim)
    return [_make_direction(model, f"z{i}", axes[i], latent) for i in order.tolist()]


def _make_direction(model: Autoencoder, name: str, vector: Values, latent: Latent) -> Direction:
    unit = torch.from_numpy(vector).to(latent)
    return Direction(name, unit, *display_range(model, latent @ unit))


def display_range(model: Autoencoder, values: Float[Tensor, " batch"]) -> tuple[float, float]:
    """Return the range in which to show a coordinate of z: its mean ± three standard deviations.

    Args:
        values: the coordinate of each image; ignored for a VAE, whose range is that of N(0, I).
    """
    if isinstance(model, VAE):
        return -EXTENT, EXTENT
    middle, spread = float(values.mean()), float(values.std(correction=0))
    return middle - EXTENT * spread, middle + EXTENT * spread
