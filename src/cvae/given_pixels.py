"""Part of an image as the condition: a network encodes it, and the model completes the image."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from cvae.conditions import Labels, Part, Values, to_tensor
from cvae.types import Condition, Image
from harness.contract.settings import Size


class Quadrants(nn.Module):
    r"""One to three quadrants of the image as the condition (Sohn, Lee and Yan 2015).

    .. math:: \log p(x_r \mid x_g) \ge
        E_{q(z|x)} \log p(x_r \mid z, x_g) - KL(q(z|x) \,\|\, p(z|x_g))

    in nats per image, where :math:`x_g` are the given pixels and :math:`x_r` the remaining ones.
    y is :math:`x_g`. A perceptron encodes y for the network and for a prior that depends on y.
    Images that the model returns contain the given pixels.

    Example::

        condition = Quadrants(num_given=1)
        model = CVAE(network, latent_dim=24, condition=condition, prior=Conditional)
        images = model.sample(y=x[:1], num_samples=5)  # five completions of an image

    Args:
        num_given: number of given quadrants: 1 for the lower left, 2 for the left half, 3 for all
            but the lower right.
        image_shape: (channels, height, width) of an image.
        hidden_dim: width of the hidden layer and of the encoded condition.
    """

    given_index: Tensor
    remaining_index: Tensor

    def __init__(
        self,
        num_given: Annotated[int, Interval(ge=1, le=3)],
        image_shape: Sequence[Size] = (1, 28, 28),
        hidden_dim: Size = 384,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        is_given = torch.zeros(height, width, dtype=torch.bool)
        quadrants = (
            (slice(height // 2, None), slice(width // 2)),  # lower left
            (slice(height // 2), slice(width // 2)),  # upper left
            (slice(height // 2), slice(width // 2, None)),  # upper right
        )
        for quadrant in quadrants[:num_given]:
            is_given[quadrant] = True
        self.image_shape = (channels, height, width)
        for name, mask in (("given_index", is_given), ("remaining_index", ~is_given)):
            self.register_buffer(name, mask.flatten().nonzero()[:, 0], persistent=False)
        self.size = channels * len(self.given_index)
        self.embedding_size = hidden_dim
        self.parts: Mapping[str, Part] = {"given": Part("image", 0, self.size)}
        self.network = nn.Sequential(
            nn.Linear(self.size, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
        )

    def from_images(self, x: Image) -> Condition:
        """Return the given pixels of images."""
        return x.flatten(2)[..., self.given_index.to(x.device)].flatten(1)

    def encode(self, y: Labels, rows: Tensor) -> Condition:
        """Return the given pixels for each row, from whole images or from their given pixels."""
        if isinstance(y, Mapping):
            if set(y) != {"given"}:
                raise ValueError(f"y has the parts {', '.join(y)}: must have only 'given'")
            y = y["given"]
        pixels = to_tensor(y, allowed="images, or their given pixels").to(rows)
        if pixels.shape[1:] == self.image_shape:
            pixels = self.from_images(pixels)
        count = rows.shape[0]  # len would fix the batch size of an export
        if pixels.ndim == 2 and pixels.shape[0] == 1:
            pixels = pixels.expand(count, -1)
        if pixels.shape != (count, self.size):
            raise ValueError(
                f"y has shape {tuple(pixels.shape)}: must be images of shape "
                f"{(count, *self.image_shape)} or their given pixels, {(count, self.size)}"
            )
        return pixels

    def from_columns(self, columns: Mapping[str, Values]) -> Condition:
        raise ValueError("Quadrants takes y from images, not from columns: call from_images")

    def fit(self, y: Condition) -> None: ...

    def examples(self, count: int) -> Condition:
        return torch.zeros(count, self.size)

    def select_remaining(self, pixels: Tensor) -> Tensor:
        """Return the pixels that are not given, as images of height 1."""
        return pixels.flatten(-2)[..., None, self.remaining_index]

    def complete(self, images: Tensor, y: Condition) -> Tensor:
        """Return the images with their given pixels replaced by those of y."""
        known = y.unflatten(1, (self.image_shape[0], -1))
        known = known.expand(*images.shape[:-2], known.shape[-1])
        return images.flatten(-2).index_copy(-1, self.given_index, known).view(images.shape)

    def forward(self, y: Condition) -> Condition:
        """Return the encoded pixels."""
        return self.network(2 * y - 1)
