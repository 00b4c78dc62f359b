"""Pictures show what their labels say."""

from typing import Any

import numpy as np
import pytest
import torch

from cvae import figures
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from cvae.types import Batch


def network(**given: Any) -> MLP:
    return MLP(hidden_dim=8, encoder_blocks=1, decoder_blocks=1, **given)


def batch(count: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 28, 28, generator=generator).round()
    return Batch(x, torch.eye(10)[torch.arange(count) % 10], torch.arange(count), count)


def test_a_grid_keeps_rows_and_columns_apart() -> None:
    tiles = torch.zeros(2, 3, 4, 4)
    tiles[1, 2] = 1.0
    page = np.array(figures.image_grid(tiles, scale=1))
    white_rows = np.flatnonzero((page[:, 20:24] == 255).all(1))
    bottom_right = page[-14:-10, -14:-10]
    assert (bottom_right == 255).all()
    assert (page[8:12, 10:14] == 0).all()
    assert len(white_rows)


@pytest.mark.parametrize(
    ("kind", "latent_dim"), [(Autoencoder, 3), (VAE, 2), (CVAE, 2), (CVAE, 12)]
)
def test_each_model_has_the_pictures_that_make_sense(
    kind: type[Autoencoder], latent_dim: int
) -> None:
    torch.manual_seed(0)
    model = kind(network, latent_dim)
    pictures = figures.draw(model, batch(), batch(40))
    expected = {"reconstructions", "traversals"}
    expected |= {"label_grid", "style_transfer"} if model.conditional else {"samples"}
    expected |= {"latent_plane", "manifold"} if latent_dim == 2 else set()
    assert set(pictures) == expected
    assert all(min(picture.size) > 60 for picture in pictures.values())
    assert model.training  # as it was before


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_labels_that_were_not_trained_are_not_shown(latent_dim: int) -> None:
    model = CVAE(network, latent_dim)
    some = figures.draw(model, batch(2), batch(40), [0, 7])
    every = figures.draw(model, batch(2), batch(40))
    assert some["label_grid"].height < every["label_grid"].height / 2
    assert some["style_transfer"].width < every["style_transfer"].width
    if latent_dim == 2:
        assert some["manifold"].height < every["manifold"].height


class Reveal(CVAE):
    """Decodes to a bar for its label and a bar for z, so that a tile tells how it was made."""

    @torch.no_grad()
    def sample(self, y: Any = None, z: Any = None, **_: Any) -> torch.Tensor:
        images = torch.zeros(len(z), 1, 28, 28)
        for image, label, first in zip(images, y.argmax(1), z[:, 0], strict=True):
            image[0, : int(label) + 1] = 1.0
            image[0, 20:] = torch.sigmoid(first)
        return images


def tile(page: Any, row: int, column: int, left: int, top: int) -> Any:
    corner = top + 2 + row * 58, left + 2 + column * 58
    return np.array(page)[corner[0] : corner[0] + 56, corner[1] : corner[1] + 56]


def corner(page: Any) -> tuple[int, int]:
    """Left and top of the grid: its first grey gap."""
    grey = np.array(page) == 128
    return int(grey.mean(0).argmax()), int(grey.mean(1).argmax())


def test_the_label_grid_has_a_row_for_each_label_and_a_column_for_each_z() -> None:
    model = Reveal(network, 3)
    page = figures.label_grid(model, columns=4)
    left, top = corner(page)
    for row in range(10):
        for column in range(4):
            shown = tile(page, row, column, left, top)
            assert (shown[: 2 * (row + 1)] == 255).all()
            assert (shown[2 * (row + 1) : 38] == 0).all()
            assert (shown[42:] == tile(page, 0, column, left, top)[42:]).all()
    styles = {int(tile(page, 0, column, left, top)[50, 0]) for column in range(4)}
    assert len(styles) == 4


def test_style_transfer_shows_the_digit_and_then_ten_labels() -> None:
    model = Reveal(network, 3)
    given = batch()
    page = figures.style_transfer(model, given)
    left, top = corner(page)
    for row in range(10):
        digit = tile(page, row, 0, left, top)[::2, ::2] / 255
        assert np.allclose(digit, given.x[row, 0], atol=0.01)
        for label in range(10):
            shown = tile(page, row, label + 1, left, top)
            assert (shown[: 2 * (label + 1)] == 255).all()
            assert (shown[2 * (label + 1) : 38] == 0).all()


def test_the_same_z_in_every_run() -> None:
    one, two = (figures.fixed_latents(CVAE(network, 5), 6) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(figures.fixed_latents(CVAE(network, 5), 3), one[:3])
