"""The tensor vocabulary: what the other rooms hand to each other. Imports nothing of ours."""

from typing import NamedTuple

from jaxtyping import Float, Int
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
    divided by, so that neither depends on how many processes share the batch.
    """

    x: Image
    y: OneHot
    indices: ImageIndices
    global_size: int  # images in this batch over all processes


class Terms(NamedTuple):
    """The two terms of the bound, per image, in nats."""

    reconstruction: Nats  # E_q log p(x | z, y), at most 0 for binary x
    kl: Nats  # KL(q(z | x, y) || p(z)), at least 0

    @property
    def elbo(self) -> Nats:
        """The evidence lower bound at beta = 1."""
        return self.reconstruction - self.kl
