"""Tests that figures show what their labels say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image as PILImage

from cvae import directions, figures, image_grid, sampling
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from cvae.types import Batch


def make_network(**kwargs: Any) -> MLP:
    return MLP(hidden_dim=8, encoder_blocks=1, decoder_blocks=1, **kwargs)


def make_batch(count: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 28, 28, generator=generator).round()
    return Batch(x, torch.eye(10)[torch.arange(count) % 10], torch.arange(count), count)


def test_a_grid_shows_each_tile_at_its_row_and_column() -> None:
    tiles = torch.zeros(2, 3, 1, 4, 4)
    tiles[1, 2] = 1.0
    page = np.array(figures.image_grid(tiles, scale=1))
    white_rows = np.flatnonzero((page[:, 20:24] == 255).all(1))
    bottom_right = page[-14:-10, -14:-10]
    assert (bottom_right == 255).all()
    assert (page[8:12, 10:14] == 0).all()
    assert len(white_rows)


def test_a_grid_of_grey_images_in_three_channels_is_the_same_picture() -> None:
    tiles = torch.rand(2, 3, 1, 9, 14, generator=torch.Generator().manual_seed(0))
    labels = (["one", "two"], ["a", "b", "c"], "Title", 2, 1)
    grey = figures.image_grid(tiles, *labels)
    color = figures.image_grid(tiles.expand(-1, -1, 3, -1, -1), *labels)
    assert (grey.mode, color.mode) == ("L", "RGB")
    assert grey.convert("RGB").tobytes() == color.tobytes()


def test_a_grid_shows_the_three_channels_as_red_green_and_blue() -> None:
    tiles = torch.rand(1, 2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    page = np.array(figures.image_grid(tiles, scale=1))
    for column in range(2):
        left = 10 + column * 9
        shown = page[8:13, left : left + 7]
        assert np.allclose(shown, 255 * tiles[0, column].permute(1, 2, 0), atol=0.51)


def test_class_names_replace_numbers_and_are_shortened() -> None:
    names = ["cat", "a bird with a long name", "exactly 12 c"]
    assert figures.class_labels([0, 1, 2], names) == ["cat", "a bird with…", "exactly 12 c"]
    assert figures.class_labels([0, 2], None) == ["0", "2"]
    assert figures.shorten_name("anemometer", width=30) == "an…"
    assert figures.shorten_name("\udcff") == "?"  # a byte of a file name that is not valid text
    names = [f"class {c}" for c in range(10)]
    torch.manual_seed(0)
    model = CVAE(make_network, 2)
    plain = figures.draw(model, make_batch(), make_batch(40))
    named = figures.draw(model, make_batch(), make_batch(40), names=names)
    for name in set(plain) - {"reconstructions"}:
        assert named[name].tobytes() != plain[name].tobytes(), name
    assert named["label_grid"].width > plain["label_grid"].width
    assert named["style_transfer"].size == plain["style_transfer"].size


class Color(CVAE):
    """Model of color images that decodes each label to one color."""

    @torch.no_grad()
    def sample(self, y: Any = None, z: Any = None, **_: Any) -> torch.Tensor:
        return (y @ torch.eye(10, 3))[:, :, None, None].expand(-1, -1, 28, 28)

    def reconstruct(self, x: Any, y: Any = None) -> torch.Tensor:
        return x / 2

    def embed(self, x: Any, y: Any = None) -> torch.Tensor:
        return x.flatten(1)[:, : self.latent_dim]


def test_every_figure_is_drawn_in_color() -> None:
    examples = make_batch()._replace(x=make_batch().x.repeat(1, 3, 1, 1))
    pictures = figures.draw(Color(make_network, 2), examples, examples)
    assert {picture.mode for picture in pictures.values()} == {"RGB"}
    page = np.array(pictures["label_grid"]).reshape(-1, 3)
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= set(map(tuple, page.tolist()))


def test_samples_are_saved_as_bytes_with_channels_last(tmp_path: Path) -> None:
    images = torch.rand(2, 5, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    picture, array = sampling.save(images, tmp_path / "x.png", ["0", "1"], npy=True)
    with PILImage.open(picture) as page:
        assert page.mode == "RGB"
    found = np.load(array)
    assert found.shape == (10, 6, 8, 3)
    assert np.allclose(found, 255 * images.flatten(0, 1).permute(0, 2, 3, 1), atol=0.51)
    sampling.save(images[:, :, :1], tmp_path / "x.png", ["0", "1"], npy=True)
    assert np.array_equal(np.load(array), found[..., 0])


@pytest.mark.parametrize(
    ("model_class", "latent_dim"), [(Autoencoder, 3), (VAE, 1), (VAE, 2), (CVAE, 2), (CVAE, 12)]
)
def test_each_model_has_the_figures_that_apply(
    model_class: type[Autoencoder], latent_dim: int
) -> None:
    torch.manual_seed(0)
    model = model_class(make_network, latent_dim)
    pictures = figures.draw(model, make_batch(), make_batch(40))
    expected = {"reconstructions", "traversals", "latent_plane"}
    expected |= {"label_grid", "style_transfer"} if model.conditional else {"samples"}
    expected |= {"manifold"} if latent_dim == 2 else set()
    assert set(pictures) == expected
    slow = set() if latent_dim == 2 else {"latent_plane"}
    assert set(figures.draw(model, make_batch(), make_batch(40), at_end=False)) == expected - slow
    assert all(min(picture.size) > 60 for picture in pictures.values())
    assert model.training  # the mode is restored


def test_integer_labels_give_the_same_figures() -> None:
    torch.manual_seed(0)
    model = CVAE(make_network, 2)
    one_hot, integer = make_batch(), make_batch()._replace(y=torch.arange(10))
    expected = figures.draw(model, one_hot, one_hot)
    for name, picture in figures.draw(model, integer, integer).items():
        assert picture.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_labels_without_training_images_are_not_shown(latent_dim: int) -> None:
    model = CVAE(make_network, latent_dim)
    some = figures.draw(model, make_batch(2), make_batch(40), [0, 7])
    every = figures.draw(model, make_batch(2), make_batch(40))
    assert some["label_grid"].height < every["label_grid"].height / 2
    assert some["style_transfer"].width < every["style_transfer"].width
    if latent_dim == 2:
        assert some["manifold"].height < every["manifold"].height


@pytest.mark.parametrize(
    ("count", "across"), [(1, 1), (2, 2), (5, 5), (6, 3), (7, 4), (8, 4), (10, 5), (26, 3)]
)
def test_panels_leave_few_gaps(count: int, across: int) -> None:
    panels = [PILImage.new("L", (40, 30), value) for value in range(count)]
    page = image_grid.join_panels(panels, "")
    assert page.size == (40 * across, 25 + 30 * -(-count // across))
    last = page.getpixel(((count - 1) % across * 40, page.height - 1))
    assert last == count - 1


def test_the_planes_of_all_labels_are_readable_at_700_pixels() -> None:
    page = figures.manifold(CVAE(make_network, 2))
    assert page.width <= 1400
    assert figures._PANEL_FONT_SIZE * 700 / page.width >= 10


class LabelAndLatentBars(CVAE):
    """Model that decodes to a bar for the label and a bar for z, so that tiles reveal both."""

    @torch.no_grad()
    def sample(self, y: Any = None, z: Any = None, **_: Any) -> torch.Tensor:
        images = torch.zeros(len(z), 1, 28, 28)
        for image, label, first in zip(images, y.argmax(1), z[:, 0], strict=True):
            image[0, : int(label) + 1] = 1.0
            image[0, 20:] = torch.sigmoid(first)
        return images


def crop_tile(page: Any, row: int, column: int, left: int, top: int) -> Any:
    corner = top + 2 + row * 58, left + 2 + column * 58
    return np.array(page)[corner[0] : corner[0] + 56, corner[1] : corner[1] + 56]


def find_corner(page: Any) -> tuple[int, int]:
    """Return left and top of the grid: its first grey gap."""
    grey = np.array(page) == 128
    return int(grey.mean(0).argmax()), int(grey.mean(1).argmax())


def test_the_label_grid_has_a_row_for_each_label_and_a_column_for_each_z() -> None:
    model = LabelAndLatentBars(make_network, 3)
    page = figures.label_grid(model, columns=4)
    left, top = find_corner(page)
    for row in range(10):
        for column in range(4):
            shown = crop_tile(page, row, column, left, top)
            assert (shown[: 2 * (row + 1)] == 255).all()
            assert (shown[2 * (row + 1) : 38] == 0).all()
            assert (shown[42:] == crop_tile(page, 0, column, left, top)[42:]).all()
    styles = {int(crop_tile(page, 0, column, left, top)[50, 0]) for column in range(4)}
    assert len(styles) == 4


def test_style_transfer_shows_each_digit_and_a_tile_for_each_label() -> None:
    model = LabelAndLatentBars(make_network, 3)
    images = make_batch()
    page = figures.style_transfer(model, images)
    left, top = find_corner(page)
    for row in range(10):
        digit = crop_tile(page, row, 0, left, top)[::2, ::2] / 255
        assert np.allclose(digit, images.x[row, 0], atol=0.01)
        for label in range(10):
            shown = crop_tile(page, row, label + 1, left, top)
            assert (shown[: 2 * (label + 1)] == 255).all()
            assert (shown[2 * (label + 1) : 38] == 0).all()


def test_every_run_has_the_same_z() -> None:
    one, two = (figures.fixed_latents(CVAE(make_network, 5), 6) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(figures.fixed_latents(CVAE(make_network, 5), 3), one[:3])


class Offset(CVAE):
    """Model whose image is brighter where the first latent dimension is larger."""

    def embed(self, x: Any, y: Any = None) -> torch.Tensor:
        return x.flatten(1)[:, : self.latent_dim] + 4 * torch.tensor([0.0, 1.0, 0.0])

    @torch.no_grad()
    def sample(self, y: Any = None, z: Any = None, **_: Any) -> torch.Tensor:
        return torch.sigmoid(1 + z[:, :1, None, None]).expand(-1, 1, 28, 28)


def test_each_row_of_the_traversals_follows_one_direction() -> None:
    """The second style direction is the first dimension, from -3 to 3."""
    model = Offset(make_network, 3)
    axes = torch.eye(3)
    styles = [directions.Direction(n, v, -3.0, 3.0) for n, v in (("a", axes[2]), ("b", axes[0]))]
    page = figures.traversals(model, make_batch(), num_rows=0, columns=5, styles=styles)
    left, top = find_corner(page)
    shown = [[int(crop_tile(page, i, j, left, top)[9, 9]) for j in range(5)] for i in range(2)]
    expected = 255 * torch.sigmoid(1 + torch.linspace(-3, 3, 5))
    assert shown == [[186] * 5, [round(value) for value in expected.tolist()]]


def test_the_latent_plane_shows_the_two_components_of_largest_variance() -> None:
    """Images that differ only in the third dimension are on a line along the first axis."""
    model = Offset(make_network, 3)
    images = make_batch(30)._replace(x=torch.zeros(30, 1, 28, 28))
    images.x[:, 0, 0, 2] = torch.linspace(-1, 1, 30)
    points, labels, title = figures._project(model, images)
    torch.testing.assert_close(points[:, 0], torch.linspace(-1, 1, 30))
    assert points[:, 1].abs().max() < 1e-6
    assert labels == ("component 1 (100% of variance)", "component 2 (0% of variance)")
    assert "PCA" in title
    assert figures._project(CVAE(make_network, 2), images)[1] == ("$z_0$", "$z_1$")


@pytest.mark.parametrize("num_classes", [2, 26, 60])
def test_the_latent_plane_keeps_its_size_next_to_a_long_legend(
    num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures_drawn: list[Figure] = []
    save = figures.to_picture

    def to_picture(figure: Figure) -> PILImage.Image:
        figures_drawn.append(figure)
        return save(figure)

    monkeypatch.setattr(figures, "to_picture", to_picture)
    model = VAE(make_network, 2, num_classes=num_classes)
    y = torch.eye(num_classes)[torch.arange(120) % num_classes]
    names = [f"a long name {c}" for c in range(num_classes)]
    figures.latent_plane(model, make_batch(120)._replace(y=y), names=names)
    (figure,) = figures_drawn
    axes = figure.axes[0]
    assert axes.get_window_extent().width > 350
    assert axes.yaxis.label.get_window_extent().x0 >= 0  # not cut
    assert axes.title.get_window_extent().x0 >= 0
    assert bool(figure.legends) == (num_classes <= 48)
