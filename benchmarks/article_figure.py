"""Figure that compares the autoencoder, the VAE and the CVAE of the article."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from cvae import figures
from cvae.image_grid import Tiles, image_grid
from cvae.models import Autoencoder
from cvae.types import Batch

FONT_SIZE = 20  # screen pixels; readable where a page shows the figure at half its size
_MARGIN = 8  # screen pixels; cvae.image_grid leaves the same margin
_TITLE_HEIGHT = FONT_SIZE + 12
_GUTTER = 84  # between the two columns of blocks; holds the test images of the style transfer


class Block(NamedTuple):
    """A grid of images below its title, with an optional column of images to its left."""

    title: str
    tiles: Tiles
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    left_column: Tiles | None = None


@torch.no_grad()
def draw_systems(
    models: Mapping[str, Autoencoder],
    planes: Mapping[str, Autoencoder],
    examples: Batch,
    test_batch: Batch,
) -> PILImage.Image:
    """Draw all systems on one page of two columns.

    Shows reconstructions and decoded samples of N(0, I) of every system, label grid and style
    transfer of those that take a label, and the latent planes.

    Args:
        models: models by the name to show.
        planes: models with a two-dimensional latent, by name.
        examples: one test image of each class.
        test_batch: more test images, for the planes and to compare samples with.
    """
    count = len(examples.x)
    reconstructed, random = [examples.x], [test_batch.x[:count]]
    for model in models.values():
        y = examples.y if model.conditional else None
        reconstructed.append(model.reconstruct(examples.x, y))
        random.append(model.decode(figures.fixed_latents(model, count), y).mean)
    rows = [
        (
            Block("Reconstructions", torch.stack(reconstructed), ["test images", *models]),
            Block("Decoded samples of N(0, I)", torch.stack(random)),
        )
    ]
    rows += [_make_label_blocks(name, m, examples) for name, m in models.items() if m.conditional]
    page = _stack([_draw_blocks(row) for row in rows])
    if not planes:
        return page
    pictures = [figures.latent_plane(model, test_batch, name) for name, model in planes.items()]
    return _stack([page, _place_evenly(pictures, page.width)])


def _make_label_blocks(name: str, model: Autoencoder, examples: Batch) -> tuple[Block, Block]:
    """Return label grid and style transfer of a model that takes a label."""
    count = len(examples.x)
    labels = torch.arange(count)
    z = figures.fixed_latents(model, count)
    grid = model.sample(y=labels.repeat_interleave(count), z=z.repeat(count, 1))
    styles = model.embed(examples.x, examples.y).repeat_interleave(count, dim=0)
    transferred = model.sample(y=labels.repeat(count), z=styles)
    texts = [str(c) for c in range(count)]
    return (
        Block(
            f"{name}. Row: requested label. Column: one latent z.",
            grid.unflatten(0, (count, count)),
            texts,
            [f"z {c + 1}" for c in range(count)],
        ),
        Block(
            f"{name}. Row: z of the test image, with each label.",
            transferred.unflatten(0, (count, count)),
            (),
            texts,
            examples.x[:, None],
        ),
    )


def _draw_blocks(blocks: Sequence[Block]) -> PILImage.Image:
    """Draw blocks next to each other; the grids of all rows of blocks align."""
    font = ImageFont.load_default(FONT_SIZE)
    label_width = round(font.getlength("autoencoder")) + 12
    pictures = [
        image_grid(b.tiles, b.row_labels, b.column_labels, font_size=FONT_SIZE) for b in blocks
    ]
    grid_width = image_grid(blocks[0].tiles).width - 2 * _MARGIN
    width = 2 * _MARGIN + label_width + len(blocks) * grid_width + (len(blocks) - 1) * _GUTTER
    page = PILImage.new("RGB", (width, _TITLE_HEIGHT + max(p.height for p in pictures)), "white")
    draw = ImageDraw.Draw(page)
    for column, (block, picture) in enumerate(zip(blocks, pictures, strict=True)):
        left = _MARGIN + label_width + column * (grid_width + _GUTTER)  # of the grid
        page.paste(picture, (left + grid_width + _MARGIN - picture.width, _TITLE_HEIGHT))
        if block.left_column is not None:
            left_column = image_grid(block.left_column, (), ["test"], font_size=FONT_SIZE)
            page.paste(left_column, (left - left_column.width, _TITLE_HEIGHT))
        draw.text((left, _MARGIN), block.title, fill="black", font=font)
    return page


def _place_evenly(pictures: Sequence[PILImage.Image], width: int) -> PILImage.Image:
    """Center each picture in an equal share of the width."""
    page = PILImage.new("RGB", (width, max(p.height for p in pictures)), "white")
    share = width // len(pictures)
    for column, picture in enumerate(pictures):
        page.paste(picture, (column * share + (share - picture.width) // 2, 0))
    return page


def _stack(pages: Sequence[PILImage.Image]) -> PILImage.Image:
    """Join pictures vertically."""
    page = PILImage.new("RGB", (max(p.width for p in pages), sum(p.height for p in pages)), "white")
    top = 0
    for picture in pages:
        page.paste(picture, (0, top))
        top += picture.height
    return page
