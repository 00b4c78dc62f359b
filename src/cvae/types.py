"""Types of the tensors and tuples that the other modules pass to each other."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

Image = Float[Tensor, "batch channel height width"]  # in [0, 1], or binary in {0, 1}
# outputs of the decoder: num_parameters * channel maps, ordered by parameter, then by channel
Outputs = Float[Tensor, "batch outputs height width"]
# the outputs, reshaped for the likelihood; "samples" is a dimension for several z per image
Parameters = Float[Tensor, "batch *samples num_parameters channel height width"]
Condition = Float[Tensor, "batch condition_size"]  # a one-hot label, or other numbers
Latent = Float[Tensor, "batch latent_dim"]
Statistics = Float[Tensor, "batch num_statistics"]  # parameters of q(z | x, y), or a code
Nats = Float[Tensor, " batch"]  # per image: summed over pixels and latent dimensions
ImageIndices = Int[Tensor, " batch"]  # positions of the images in their split


class Batch(NamedTuple):
    """One process's rows of a global batch.

    All noise of an image is keyed by its entry in ``indices``, and sums over images are divided by
    ``global_size``, so neither depends on how many processes share the batch. A process has no rows
    if the last global batch is smaller than the number of processes.
    """

    x: Image
    y: Condition
    indices: ImageIndices
    global_size: int  # images in this batch over all processes

    def or_placeholder(self) -> "Batch":
        """Return this batch, or a placeholder for an empty one: a striped image of class 0.

        Many layers raise on an empty batch. The caller drops the values of the placeholder with
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
    inputs: UInt8[Tensor, "num_images channel height width"]  # what models take: 0 or 255, or grey
    labels: Int64[Tensor, " num_images"]
    conditions: Condition | None = None  # y of each image; None for its one-hot label
    # numeric attributes that are not part of y, by name
    attributes: Mapping[str, Float[Tensor, " num_images"]] = MappingProxyType({})

    def to(self, device: torch.device | str) -> "Split":
        """Return the split with all its tensors on a device."""
        conditions = None if self.conditions is None else self.conditions.to(device)
        attributes = {name: values.to(device) for name, values in self.attributes.items()}
        images = self.grey.to(device), self.inputs.to(device)
        return Split(*images, self.labels.to(device), conditions, attributes)

    def select(self, rows: Tensor | slice) -> "Split":
        """Return the images at these rows."""
        conditions = None if self.conditions is None else self.conditions[rows]
        attributes = {name: values[rows] for name, values in self.attributes.items()}
        return Split(self.grey[rows], self.inputs[rows], self.labels[rows], conditions, attributes)


class Terms(NamedTuple):
    """The two terms of the bound and the penalty in the loss, in nats per image."""

    reconstruction: Nats  # E_q log p(x | z, y), at most 0 for binary x
    kl: Nats  # KL(q(z | x, y) || p(z)); a one-sample estimate unless p(z) = N(0, I)
    penalty: Nats | float = 0.0  # added to the loss; not part of the bound

    @property
    def elbo(self) -> Nats:
        """The evidence lower bound, with the KL term unweighted (beta = 1)."""
        return self.reconstruction - self.kl

    def first(self, count: int) -> "Terms":
        """Return the terms of the first ``count`` images."""
        if count == len(self.reconstruction):
            return self
        penalty = self.penalty[:count] if isinstance(self.penalty, Tensor) else self.penalty
        return Terms(self.reconstruction[:count], self.kl[:count], penalty)
