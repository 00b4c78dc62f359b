"""The tensor vocabulary: what the other modules hand to each other. Imports nothing of ours."""

from typing import NamedTuple

from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

Image = Float[Tensor, "batch channel height width"]  # grey in [0, 1], or binary in {0, 1}
Logits = Float[Tensor, "batch channel height width"]  # of the Bernoulli mean of every pixel
OneHot = Float[Tensor, "batch num_classes"]
Latent = Float[Tensor, "batch latent_dim"]
Statistics = Float[Tensor, "batch num_statistics"]  # what an encoder says of q(z | x, y)
Nats = Float[Tensor, " batch"]  # one value an image, summed over pixels and latent dimensions
ImageIndices = Int[Tensor, " batch"]  # positions of the images in their split


class Batch(NamedTuple):
    """One process's rows of a global batch.

    ``indices`` key all noise drawn for the images and ``global_size`` is what sums over images are
    divided by, so that neither depends on how many processes share the batch. A process may have no
    rows if the last global batch is smaller than the number of processes.
    """

    x: Image
    y: OneHot
    indices: ImageIndices
    global_size: int  # images in this batch over all processes

    def with_stand_in(self) -> "Batch":
        """Return this batch, or one striped image of class 0 if it has no rows.

        Many layers raise on an empty batch. The caller drops the values of the stand-in with
        ``terms.first(len(batch.x))``. The image has stripes because a blank one has no variance to
        normalize by.
        """
        if len(self.x):
            return self
        x = self.x.new_zeros(1, *self.x.shape[1:])
        x[..., ::2] = 1.0
        y = self.y.new_zeros(1, self.y.shape[1])
        y[:, 0] = 1.0
        return Batch(x, y, self.indices.new_zeros(1), self.global_size)


class Split(NamedTuple):
    """All images of one split, as unsigned bytes."""

    grey: UInt8[Tensor, "num_images channel height width"]
    inputs: UInt8[Tensor, "num_images channel height width"]  # what models see: 0 or 255, or grey
    labels: Int64[Tensor, " num_images"]


class Terms(NamedTuple):
    """The two terms of the bound and what the loss adds to them, per image, in nats."""

    reconstruction: Nats  # E_q log p(x | z, y), at most 0 for binary x
    kl: Nats  # KL(q(z | x, y) || p(z)), at least 0 where it is no estimate
    penalty: Nats | float = 0.0  # what a model adds to its loss, and no bound knows of

    @property
    def elbo(self) -> Nats:
        """The evidence lower bound at beta = 1."""
        return self.reconstruction - self.kl

    def first(self, count: int) -> "Terms":
        """Return the terms of the first ``count`` images."""
        if count == len(self.reconstruction):
            return self
        penalty = self.penalty[:count] if isinstance(self.penalty, Tensor) else self.penalty
        return Terms(self.reconstruction[:count], self.kl[:count], penalty)
