"""Tensors in, pictures out. The same z and the same digits in every run, to compare at a glance."""

import io
from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from torch import Tensor

from cvae import noise
from cvae.models import Autoencoder
from cvae.types import Batch, Image, Latent

_FIGURE_SEED = 0
_SCALE = 2  # screen pixels for each pixel of a digit
_GAP = 2  # screen pixels between digits
_FONT_SIZE = 13
_PLANE_EXTENT = 2.5  # standard deviations of the prior to either side
_INK, _PAPER, _BETWEEN = 0, 255, 128  # grey levels of text, page and gaps

Tiles = Float[Tensor, "rows columns height width"]


def image_grid(
    tiles: Tiles,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    scale: int = _SCALE,
    num_blank: int = 0,
) -> PILImage.Image:
    """A labelled table of grey images in [0, 1], bright on dark.

    Args:
        num_blank: tiles at the end of the last row to leave blank.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    rows, columns, height, width = tiles.shape
    cell_width, cell_height = width * scale + _GAP, height * scale + _GAP
    left = 8 + max((round(font.getlength(text)) + 6 for text in row_labels), default=0)
    top = 6 + (_FONT_SIZE + 8) * (bool(title) + bool(column_labels))
    needed = round(font.getlength(title)) + 16
    size = (
        max(left + columns * cell_width + _GAP + 8, needed),
        top + rows * cell_height + _GAP + 8,
    )
    page = PILImage.new("L", size, _PAPER)
    draw = ImageDraw.Draw(page)
    right, bottom = left + columns * cell_width + _GAP - 1, top + rows * cell_height + _GAP - 1
    draw.rectangle((left, top, right, bottom), fill=_BETWEEN)
    grey = (tiles.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    for i in range(rows):
        for j in range(columns):
            tile = PILImage.fromarray(grey[i, j]).resize((width * scale, height * scale), 0)
            page.paste(tile, (left + _GAP + j * cell_width, top + _GAP + i * cell_height))
    if num_blank:
        x, y = right + 1 - num_blank * cell_width, bottom + 1 - cell_height
        draw.rectangle((x, y, right, bottom), fill=_PAPER)
    if title:
        draw.text((8, 5), title, fill=_INK, font=font)
    for i, text in enumerate(row_labels):
        y = top + _GAP + i * cell_height + height * scale // 2
        draw.text((left - 6, y), text, fill=_INK, font=font, anchor="rm")
    for j, text in enumerate(column_labels):
        x = left + _GAP + j * cell_width + width * scale // 2
        draw.text((x, top - 4), text, fill=_INK, font=font, anchor="mb")
    return page


def _tiles(images: Image, columns: int) -> Tiles:
    return images[:, 0].unflatten(0, (-1, columns))


def _classes_or_all(model: Autoencoder, classes: Sequence[int] | None) -> list[int]:
    """Return ``classes``, or all labels of the model if None."""
    return list(range(model.num_classes) if classes is None else classes)


def fixed_latents(model: Autoencoder, count: int) -> Latent:
    """The same points of N(0, I) whatever the run."""
    index = torch.arange(count)
    stream = noise.Stream.FIGURES
    z = noise.standard_normal(index, (model.latent_dim,), seed=_FIGURE_SEED, stream=stream)
    return z.to(model.output_bias)


def _labels(model: Autoencoder, labels: Sequence[int]) -> Tensor:
    one_hot = torch.nn.functional.one_hot(torch.tensor(labels), model.num_classes)
    return one_hot.to(model.output_bias)


def reconstructions(model: Autoencoder, batch: Batch) -> PILImage.Image:
    """Test images above, the decoder's means at their z below."""
    again = model.reconstruct(batch.x, batch.y if model.conditional else None)
    return image_grid(
        torch.stack((batch.x[:, 0], again[:, 0])),
        ("test image", "reconstruction"),
        title="Reconstruction at the posterior mean",
    )


def label_grid(
    model: Autoencoder, columns: int = 10, classes: Sequence[int] | None = None
) -> PILImage.Image:
    """A row for each label, a column for each z.

    Args:
        classes: labels to show; None for all.
    """
    z, shown = fixed_latents(model, columns), _classes_or_all(model, classes)
    y = _labels(model, [c for c in shown for _ in range(columns)])
    images = model.sample(y=y, z=z.repeat(len(shown), 1))
    title = "Asked for the label of the row; one z a column"
    return image_grid(_tiles(images, columns), list(map(str, shown)), title=title)


def random_samples(model: Autoencoder, rows: int = 10, columns: int = 10) -> PILImage.Image:
    """Decoded points of N(0, I), for a model that takes no label."""
    images = model.sample(z=fixed_latents(model, rows * columns))
    return image_grid(_tiles(images, columns), title="Decoded points of N(0, I)")


def style_transfer(
    model: Autoencoder, batch: Batch, classes: Sequence[int] | None = None
) -> PILImage.Image:
    """Draw each real digit and its z decoded with all labels, or with ``classes``."""
    z, shown = model.embed(batch.x, batch.y), _classes_or_all(model, classes)
    y = _labels(model, shown * len(z))
    images = model.sample(y=y, z=z.repeat_interleave(len(shown), dim=0))
    tiles = torch.cat((batch.x, _tiles(images, len(shown))), dim=1)
    title = "A test digit, and its style (z) with every label"
    return image_grid(tiles, column_labels=("test", *map(str, shown)), title=title)


def traversals(
    model: Autoencoder,
    batch: Batch,
    num_rows: int = 10,
    columns: int = 11,
    classes: Sequence[int] | None = None,
) -> PILImage.Image:
    """One latent dimension a row, from -2.5 to 2.5: those whose posterior mean varies most."""
    spread = model.embed(batch.x, batch.y if model.conditional else None).std(dim=0)
    dims = spread.argsort(descending=True)[:num_rows]
    steps = torch.linspace(-_PLANE_EXTENT, _PLANE_EXTENT, columns, device=spread.device)
    z = torch.zeros(len(dims), columns, model.latent_dim, device=spread.device)
    z[torch.arange(len(dims)), :, dims] = steps
    shown = _classes_or_all(model, classes)[:4][-1]
    y = None
    if model.conditional:
        y = _labels(model, [shown] * len(dims) * columns)
    images = model.sample(y=y, z=z.flatten(0, 1))
    return image_grid(
        _tiles(images, columns),
        [f"z{d}" for d in dims.tolist()],
        [f"{s:.1f}" for s in steps.tolist()],
        title="One latent dimension a row, the others at 0"
        + (f"; label {shown}" if y is not None else ""),
    )


def latent_plane(model: Autoencoder, batch: Batch, name: str = "") -> PILImage.Image:
    """Posterior means of a two-dimensional latent, coloured by label."""
    from matplotlib.figure import Figure  # late: only this picture needs it

    z = model.embed(batch.x, batch.y if model.conditional else None).cpu()
    figure = Figure(figsize=(5.6, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    colours = axes.scatter(z[:, 0], z[:, 1], c=batch.y.argmax(1).cpu(), s=5, cmap="tab10")
    handles, names = colours.legend_elements(num=None)  # type: ignore[arg-type]
    figure.legend(handles, names, title="label", loc="outside right center")
    title = "Test images in the latent plane" + (f", {name}" if name else "")
    extent = 1.05 * max(1.0, float(z.abs().max()))
    limits = (-extent, extent)  # square, so that two of them stand level
    axes.set(xlabel="$z_0$", ylabel="$z_1$", title=title, xlim=limits, ylim=limits)
    axes.set_box_aspect(1)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return PILImage.open(content).convert("RGB")


def manifold(
    model: Autoencoder, columns: int = 12, classes: Sequence[int] | None = None
) -> PILImage.Image:
    """The decoded plane of a two-dimensional latent; a conditional model's, one for each label."""
    steps = torch.linspace(-_PLANE_EXTENT, _PLANE_EXTENT, columns, device=model.output_bias.device)
    z = torch.cartesian_prod(-steps, steps).flip(1)  # rows go down from large z1
    if not model.conditional:
        return image_grid(_tiles(model.sample(z=z), columns), title="Decoded latent plane")
    panels = []
    for c in _classes_or_all(model, classes):
        y = _labels(model, [c] * len(z))
        tiles = _tiles(model.sample(y=y, z=z), columns)
        panels.append(image_grid(tiles, title=f"label {c}", scale=1))
    width, height = panels[0].size
    across = 5
    page = PILImage.new("L", (across * width, -(-len(panels) // across) * height), _PAPER)
    for i, panel in enumerate(panels):
        page.paste(panel, (i % across * width, i // across * height))
    return page


@torch.no_grad()
def draw(
    model: Autoencoder, examples: Batch, many: Batch, classes: Sequence[int] | None = None
) -> dict[str, PILImage.Image]:
    """All pictures that make sense for a model, by name.

    Args:
        examples: one test image of each class.
        many: more test images, for what needs a distribution.
        classes: labels that have training images; None for all.
    """
    was_training = model.training
    model.eval()
    pictures = {"reconstructions": reconstructions(model, examples)}
    if model.conditional:
        pictures["label_grid"] = label_grid(model, classes=classes)
        pictures["style_transfer"] = style_transfer(model, examples, classes)
    else:
        pictures["samples"] = random_samples(model)
    pictures["traversals"] = traversals(model, many, classes=classes)
    if model.latent_dim == 2:
        pictures["latent_plane"] = latent_plane(model, many)
        pictures["manifold"] = manifold(model, classes=classes)
    model.train(was_training)
    return pictures
