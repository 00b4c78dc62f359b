"""Figures of a model, with the same z and the same digits in every run."""

import io
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from torch import Tensor

from cvae import noise
from cvae.conditions import OneHot
from cvae.given_pixels import Quadrants
from cvae.models import Autoencoder
from cvae.types import Batch, Image, Latent

_FIGURE_SEED = 0
_SCALE = 2  # screen pixels for each pixel of a digit
_GAP = 2  # screen pixels between digits
_FONT_SIZE = 13
_MAX_PANELS = 10  # of the latent plane
_PLANE_EXTENT = 2.5  # standard deviations of the prior to either side
_INK, _PAPER, _BETWEEN = "#000000", "#ffffff", "#808080"  # of text, page and gaps
_MAX_NAME = 12  # characters of a class name

Tiles = Float[Tensor, "rows columns channels height width"]
Names = Sequence[str] | None  # of the classes


def image_grid(
    tiles: Tiles,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    scale: int = _SCALE,
    num_blank: int = 0,
    on_baseline: bool = False,
) -> PILImage.Image:
    """Draw a labelled grid of grey or color images in [0, 1].

    Args:
        num_blank: tiles at the end of the last row to leave blank.
        on_baseline: whether to align column labels at their baseline, for words.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    rows, columns, channels, height, width = tiles.shape
    cell_width, cell_height = width * scale + _GAP, height * scale + _GAP
    left = 8 + max((round(font.getlength(text)) + 6 for text in row_labels), default=0)
    top = 6 + (_FONT_SIZE + 8) * (bool(title) + bool(column_labels))
    title_width = round(font.getlength(title)) + 16
    size = (
        max(left + columns * cell_width + _GAP + 8, title_width),
        top + rows * cell_height + _GAP + 8,
    )
    page = PILImage.new("L" if channels == 1 else "RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    right, bottom = left + columns * cell_width + _GAP - 1, top + rows * cell_height + _GAP - 1
    draw.rectangle((left, top, right, bottom), fill=_BETWEEN)
    pixels = (tiles.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    arrays = (pixels[:, :, 0] if channels == 1 else pixels.movedim(2, 4)).numpy()
    for i in range(rows):
        for j in range(columns):
            tile = PILImage.fromarray(arrays[i, j]).resize((width * scale, height * scale), 0)
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
        draw.text((x, top - 4), text, fill=_INK, font=font, anchor="ms" if on_baseline else "mb")
    return page


def _tiles(images: Image, columns: int) -> Tiles:
    return images.unflatten(0, (-1, columns))


def shorten_name(name: str, width: float = float("inf")) -> str:
    """Return a name of at most 12 characters, and at most ``width`` screen pixels."""
    font = ImageFont.load_default(_FONT_SIZE)
    shown = name.encode("utf-8", "replace").decode("utf-8")  # file names may hold invalid text
    is_cut = len(shown) > _MAX_NAME
    shown = shown[: _MAX_NAME - 1] if is_cut else shown
    while len(shown) > 1 and font.getlength(shown + "…" * is_cut) > width:
        shown, is_cut = shown[:-1], True
    return shown + "…" * is_cut


def class_labels(classes: Sequence[int], names: Names, width: float = float("inf")) -> list[str]:
    """Return the texts that label these classes: their names if there are any, or the numbers."""
    return [str(c) if names is None else shorten_name(names[c], width) for c in classes]


def _select_labels(model: Autoencoder, classes: Sequence[int] | None) -> list[int]:
    """Return ``classes``, or all labels of the model if None."""
    return list(range(model.num_classes) if classes is None else classes)


def fixed_latents(model: Autoencoder, count: int) -> Latent:
    """Return samples of N(0, I) that are the same in every run."""
    index = torch.arange(count)
    stream = noise.Stream.FIGURES
    z = noise.standard_normal(index, (model.latent_dim,), seed=_FIGURE_SEED, stream=stream)
    return z.to(model.output_bias)


def _one_hot_labels(model: Autoencoder, labels: Sequence[int]) -> Tensor:
    one_hot = torch.nn.functional.one_hot(torch.tensor(labels), model.num_classes)
    return one_hot.to(model.output_bias)


def reconstructions(model: Autoencoder, batch: Batch) -> PILImage.Image:
    """Draw test images above their reconstructions, decoded from the posterior mean."""
    reconstructed = model.reconstruct(batch.x, batch.y if model.conditional else None)
    return image_grid(
        torch.stack((batch.x, reconstructed)),
        ("test image", "reconstruction"),
        title="Reconstruction at the posterior mean",
    )


def label_grid(
    model: Autoencoder,
    columns: int = 10,
    classes: Sequence[int] | None = None,
    names: Names = None,
) -> PILImage.Image:
    """Draw a row for each label and a column for each z.

    Args:
        classes: labels to show; None for all.
        names: names of all classes, to show instead of their numbers.
    """
    z, shown = fixed_latents(model, columns), _select_labels(model, classes)
    y = _one_hot_labels(model, [c for c in shown for _ in range(columns)])
    images = model.sample(y=y, z=z.repeat(len(shown), 1))
    title = "Row: requested label. Column: one latent sample z."
    return image_grid(_tiles(images, columns), class_labels(shown, names), title=title)


def random_samples(model: Autoencoder, rows: int = 10, columns: int = 10) -> PILImage.Image:
    """Draw decoded samples of N(0, I), for a model without labels."""
    images = model.sample(z=fixed_latents(model, rows * columns))
    return image_grid(_tiles(images, columns), title="Decoded samples of N(0, I)")


def style_transfer(
    model: Autoencoder,
    batch: Batch,
    classes: Sequence[int] | None = None,
    names: Names = None,
) -> PILImage.Image:
    """Draw each test digit, and its z decoded with all labels or with ``classes``."""
    z, shown = model.embed(batch.x, batch.y), _select_labels(model, classes)
    y = _one_hot_labels(model, shown * len(z))
    images = model.sample(y=y, z=z.repeat_interleave(len(shown), dim=0))
    tiles = torch.cat((batch.x[:, None], _tiles(images, len(shown))), dim=1)
    labels = class_labels(shown, names, batch.x.shape[3] * _SCALE)  # as wide as a column
    title = "Row: one test digit. Column: its z decoded with this label."
    labels = ["test", *labels]
    return image_grid(tiles, (), labels, title, on_baseline=names is not None)


def along(
    model: Autoencoder, batch: Batch, name: str, columns: int = 9, rows: int = 10
) -> dict[str, PILImage.Image]:
    """Draw samples and test images with one part of the condition varied over its values.

    Args:
        batch: test images, which also give the other parts of the condition.
        name: name of the part.
    """
    part = model.condition.parts[name]
    x, y = batch.x[:rows], batch.y[:rows]
    if part.kind == "categorical":
        values, encoded = torch.arange(part.size), torch.eye(part.size)
    else:
        seen = batch.y[:, part.start]
        values = torch.linspace(float(seen.min()), float(seen.max()), columns)
        encoded = values[:, None]
    varied = y.repeat_interleave(len(values), dim=0)
    varied[:, part.start : part.start + part.size] = encoded.to(y).repeat(len(y), 1)
    digits = 2 - math.floor(math.log10(max(float(values[-1] - values[0]), 1e-30)))
    labels = ("test", *(f"{round(value, digits) + 0.0:g}" for value in values.tolist()))
    grids = {}
    for kind, z in (("samples", fixed_latents(model, len(y))), ("transfer", model.embed(x, y))):
        images = model.sample(y=varied, z=z.repeat_interleave(len(values), dim=0))
        tiles = torch.cat((x[:, None], _tiles(images, len(values))), dim=1)
        source = "one sample of z" if kind == "samples" else "its z"
        title = f"Row: a test image, then {source}, decoded with the {name} of each column."
        grids[f"{kind}_{name}"] = image_grid(tiles, (), labels, title, on_baseline=True)
    return grids


def completions(
    model: Autoencoder, batch: Batch, rows: int = 10, columns: int = 5
) -> PILImage.Image:
    """Draw given pixels, completions of them for samples of z, and the whole test image."""
    assert isinstance(model.condition, Quadrants)
    x, y = batch.x[:rows], batch.y[:rows]
    grey = torch.full_like(x, 0.5)
    given = model.condition.complete(grey, y)
    z = fixed_latents(model, len(x) * columns)
    images = model.sample(y=y.repeat_interleave(columns, dim=0), z=z)
    tiles = torch.cat((given[:, None], _tiles(images, columns), x[:, None]), dim=1)
    labels = ("given", *[f"z {i + 1}" for i in range(columns)], "truth")
    title = "Row: one test image. Column: its completion with one sample of z."
    return image_grid(tiles, column_labels=labels, title=title, on_baseline=True)


def traversals(
    model: Autoencoder,
    batch: Batch,
    num_rows: int = 10,
    columns: int = 11,
    classes: Sequence[int] | None = None,
    names: Names = None,
) -> PILImage.Image:
    """Draw one latent dimension per row, from -2.5 to 2.5, for those that vary most over images."""
    spread = model.embed(batch.x, batch.y if model.conditional else None).std(dim=0)
    dims = spread.argsort(descending=True)[:num_rows]
    steps = torch.linspace(-_PLANE_EXTENT, _PLANE_EXTENT, columns, device=spread.device)
    z = torch.zeros(len(dims), columns, model.latent_dim, device=spread.device)
    z[torch.arange(len(dims)), :, dims] = steps
    y, of_label = None, ""
    if isinstance(model.condition, OneHot) and model.conditional:
        shown = _select_labels(model, classes)[:4][-1]
        y = _one_hot_labels(model, [shown] * len(dims) * columns)
        of_label = f" Label {class_labels([shown], names)[0]}."
    elif model.conditional:
        y = batch.y[:1].expand(len(dims) * columns, -1)
        of_label = " Condition of the first test image."
    images = model.sample(y=y, z=z.flatten(0, 1))
    return image_grid(
        _tiles(images, columns),
        [f"z{d}" for d in dims.tolist()],
        [f"{s:.1f}" for s in steps.tolist()],
        title=f"Row: one latent dimension, the others at 0. Column: its value.{of_label}",
    )


def latent_plane(
    model: Autoencoder, batch: Batch, name: str = "", names: Names = None
) -> PILImage.Image:
    """Draw the posterior means of a two-dimensional latent, colored by label.

    Args:
        name: name of the model, for the title.
        names: names of all classes, for the legend.
    """
    from matplotlib.figure import Figure  # imported here: only this figure needs it

    z = model.embed(batch.x, batch.y if model.conditional else None).cpu()
    figure = Figure(figsize=(5.6, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    name_of_part, part = next(iter(model.condition.parts.items()))
    labels = part.of(batch.y) if batch.y.ndim == 2 else batch.y
    color_map = "viridis" if part.kind == "continuous" else "tab10"
    colors = axes.scatter(z[:, 0], z[:, 1], c=labels.cpu(), s=5, cmap=color_map)
    if part.kind == "continuous":
        figure.colorbar(colors, label=name_of_part)
    else:
        handles, texts = colors.legend_elements(num=None)  # type: ignore[arg-type]
        if names is not None and name_of_part == "label":
            texts = class_labels(labels.unique().tolist(), names)
        figure.legend(handles, texts, title=name_of_part, loc="outside right center")
    title = "Test images in the latent plane" + (f", {name}" if name else "")
    extent = 1.05 * max(1.0, float(z.abs().max()))
    limits = (-extent, extent)  # square, so that two figures align side by side
    axes.set(xlabel="$z_0$", ylabel="$z_1$", title=title, xlim=limits, ylim=limits)
    axes.set_box_aspect(1)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return PILImage.open(content).convert("RGB")


def manifold(
    model: Autoencoder,
    columns: int = 12,
    classes: Sequence[int] | None = None,
    names: Names = None,
) -> PILImage.Image:
    """Draw the decoded plane of a two-dimensional latent, once per label if conditional."""
    steps = torch.linspace(-_PLANE_EXTENT, _PLANE_EXTENT, columns, device=model.output_bias.device)
    z = torch.cartesian_prod(-steps, steps).flip(1)  # largest z1 in the first row
    if not model.conditional:
        return image_grid(_tiles(model.sample(z=z), columns), title="Decoded latent plane")
    if isinstance(model.condition, OneHot):
        shown = _select_labels(model, classes)
        titles = [f"label {c}" if names is None else shorten_name(names[c]) for c in shown]
        conditions = _one_hot_labels(model, shown)
    else:
        conditions = model.condition.examples(_MAX_PANELS).to(z)
        titles = [f"condition {i + 1}" for i in range(len(conditions))]
    panels = []
    for title, y in zip(titles, conditions, strict=True):
        tiles = _tiles(model.sample(y=y.expand(len(z), -1), z=z), columns)
        panels.append(image_grid(tiles, title=title, scale=1))
    width, height = panels[0].size
    across = 5
    page = PILImage.new(
        panels[0].mode, (across * width, -(-len(panels) // across) * height), _PAPER
    )
    for i, panel in enumerate(panels):
        page.paste(panel, (i % across * width, i // across * height))
    return page


@torch.no_grad()
def draw(
    model: Autoencoder,
    examples: Batch,
    many: Batch,
    classes: Sequence[int] | None = None,
    names: Names = None,
) -> dict[str, PILImage.Image]:
    """Return all figures that apply to the model, by name.

    Args:
        examples: one test image of each class.
        many: more test images, for the traversals and the latent plane.
        classes: labels that have training images; None for all.
        names: names of all classes, to show instead of their numbers.
    """
    was_training = model.training
    model.eval()
    pictures = {"reconstructions": reconstructions(model, examples)}
    if model.conditional and isinstance(model.condition, Quadrants):
        pictures["completions"] = completions(model, many)
    elif model.conditional and not isinstance(model.condition, OneHot):
        for name in model.condition.parts:
            pictures |= along(model, many, name)
    elif model.conditional:
        pictures["label_grid"] = label_grid(model, classes=classes, names=names)
        pictures["style_transfer"] = style_transfer(model, examples, classes, names)
    else:
        pictures["samples"] = random_samples(model)
    pictures["traversals"] = traversals(model, many, classes=classes, names=names)
    if model.latent_dim == 2 and not isinstance(model.condition, Quadrants):
        pictures["latent_plane"] = latent_plane(model, many, names=names)
        pictures["manifold"] = manifold(model, classes=classes, names=names)
    model.train(was_training)
    return pictures
