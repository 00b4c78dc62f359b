"""Figures of a model, with the same z and the same digits in every run."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image as PILImage
from torch import Tensor

from cvae import directions, noise
from cvae.conditions import OneHot
from cvae.given_pixels import Quadrants
from cvae.image_grid import SCALE, Names, Tiles, join_panels
from cvae.image_grid import class_labels as class_labels
from cvae.image_grid import image_grid as image_grid
from cvae.image_grid import shorten_name as shorten_name
from cvae.models import VAE, Autoencoder
from cvae.types import Batch, Image, Latent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURE_SEED = 0
_MAX_PANELS = 10  # of the decoded latent plane, for conditions other than one label
_PANEL_COLUMNS = 8  # digits across a panel; five panels are 1,290 pixels wide
_PANEL_FONT_SIZE = 20  # readable where a page shows the figure at half its size
_PLANE_EXTENT = 2.5  # standard deviations of the prior to either side
_PLANE_FONT_SIZE = 13  # of the latent plane
_SMALL_FONT_SIZE = 9  # of a legend of several columns
_LEGEND_ROWS, _MAX_LEGEND = 12, 48  # rows of a column, and classes; more get a color bar


def _to_tiles(images: Image, columns: int) -> Tiles:
    return images.unflatten(0, (-1, columns))


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
    return image_grid(_to_tiles(images, columns), class_labels(shown, names), title=title)


def random_samples(model: Autoencoder, rows: int = 10, columns: int = 10) -> PILImage.Image:
    """Draw decoded samples of N(0, I), for a model without labels."""
    images = model.sample(z=fixed_latents(model, rows * columns))
    return image_grid(_to_tiles(images, columns), title="Decoded samples of N(0, I)")


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
    tiles = torch.cat((batch.x[:, None], _to_tiles(images, len(shown))), dim=1)
    labels = class_labels(shown, names, batch.x.shape[3] * SCALE)  # as wide as a column
    title = "Row: one test digit. Column: its z decoded with this label."
    labels = ["test", *labels]
    return image_grid(tiles, (), labels, title, on_baseline=names is not None)


def condition_grids(
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
        tiles = torch.cat((x[:, None], _to_tiles(images, len(values))), dim=1)
        source = "one sample of z" if kind == "samples" else "its z"
        title = f"Row: a test image, then {source}, decoded with the {name} of each column."
        grids[f"{kind}_{name}"] = image_grid(tiles, (), labels, title, on_baseline=True)
    return grids


def completions(
    model: Autoencoder, batch: Batch, rows: int = 10, columns: int = 5
) -> PILImage.Image:
    """Draw the given pixels, their completions with samples of z, and the full test image."""
    assert isinstance(model.condition, Quadrants)
    x, y = batch.x[:rows], batch.y[:rows]
    grey = torch.full_like(x, 0.5)
    observed = model.condition.complete(grey, y)
    z = fixed_latents(model, len(x) * columns)
    images = model.sample(y=y.repeat_interleave(columns, dim=0), z=z)
    tiles = torch.cat((observed[:, None], _to_tiles(images, columns), x[:, None]), dim=1)
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
    styles: Sequence[directions.Direction] = (),
) -> PILImage.Image:
    """Draw one direction of the latent space per row, from -3 to 3 standard deviations.

    Args:
        num_rows: number of latent dimensions, at most; those that vary most over images.
        styles: directions of the first rows.
    """
    shown = [*styles, *directions.coordinate_directions(model, batch, num_rows)]
    z = directions.center(model, batch)
    rows = [directions.traverse(z, d.vector, d.values(columns))[0] for d in shown]
    y, note = None, ""
    if isinstance(model.condition, OneHot) and model.conditional:
        label = _select_labels(model, classes)[:4][-1]
        y = _one_hot_labels(model, [label] * len(shown) * columns)
        note = f" Label {class_labels([label], names)[0]}."
    elif model.conditional:
        y = batch.y[:1].expand(len(shown) * columns, -1)
        note = " Condition of the first test image."
    images = model.sample(y=y, z=torch.cat(rows))
    deviations = torch.linspace(-directions.EXTENT, directions.EXTENT, columns).round(decimals=1)
    unit = "s.d. of N(0, I)" if isinstance(model, VAE) else "s.d. of the codes"
    return image_grid(
        _to_tiles(images, columns),
        [direction.name for direction in shown],
        [f"{value + 0.0:.1f}" for value in deviations.tolist()],
        title=f"Row: one direction of z, the rest at its mean. Column: value in {unit}.{note}",
    )


def latent_plane(
    model: Autoencoder, batch: Batch, name: str = "", names: Names = None
) -> PILImage.Image:
    """Draw the latent points of test images, colored by the first part of y, such as the label.

    With more than two latent dimensions, the axes are the first two principal components. With one
    dimension, the second axis is that part of y.

    Args:
        name: name of the model, for the title.
        names: names of all classes, for the legend.
    """
    import matplotlib as mpl  # imported here: only this figure needs it
    from matplotlib.figure import Figure

    name_of_part, part = next(iter(model.condition.parts.items()))
    labels = (part.select(batch.y) if batch.y.ndim == 2 else batch.y).cpu()
    z, axis_labels, title = _project(model, batch)
    if z.shape[1] == 1:
        z, axis_labels = torch.stack((z[:, 0], labels.to(z)), dim=1), (*axis_labels, name_of_part)
    classes = [] if part.kind == "continuous" else [int(c) for c in labels.unique()]
    shown_names = names if name_of_part == "label" else None
    texts = class_labels(classes, shown_names) if len(classes) <= _MAX_LEGEND else []
    columns = -(-len(texts) // _LEGEND_ROWS)
    size = _PLANE_FONT_SIZE if columns <= 1 else _SMALL_FONT_SIZE
    # characters are 0.6 of the font size wide; a marker and its margins 0.55 inches
    legend_width = columns * (0.55 + 0.6 * size / 72 * max(map(len, texts), default=0))
    colors = "tab10" if texts and part.size <= 10 else "turbo" if classes else "viridis"
    with mpl.rc_context({"font.size": _PLANE_FONT_SIZE}):
        figure = Figure(figsize=(5.3 + legend_width, 4.6), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        points = axes.scatter(z[:, 0], z[:, 1], c=labels, s=7, cmap=colors)
        if texts:
            handles, _ = points.legend_elements(num=None)  # type: ignore[arg-type]
            figure.legend(
                handles,
                texts,
                title=name_of_part,
                loc="outside right center",
                ncols=columns,
                fontsize=size,
                handletextpad=0.1,
            )
        else:
            figure.colorbar(points, label=name_of_part)
        if model.latent_dim == 1 and 0 < columns <= 1:
            axes.set_yticks(classes, texts)
        axes.locator_params(axis="x", nbins=5)
        if model.latent_dim > 1:
            axes.locator_params(axis="y", nbins=5)
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
        axes.set_title(title + (f", {name}" if name else ""))
        if model.latent_dim > 1:
            extent = 1.05 * max(1.0, float(z.abs().max()))
            limits = (-extent, extent)  # square, so that two figures align side by side
            axes.set(xlim=limits, ylim=limits)
        axes.set_box_aspect(1)
        return to_picture(figure)


def to_picture(figure: "Figure") -> PILImage.Image:
    """Return a figure of Matplotlib as a picture."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return PILImage.open(content).convert("RGB")


def _project(model: Autoencoder, batch: Batch) -> tuple[Latent, tuple[str, ...], str]:
    """Return points of at most two dimensions, the labels of their axes, and a title."""
    z = directions.embed(model, batch)
    if model.latent_dim <= 2:
        where = "along z" if model.latent_dim == 1 else "in the latent plane"
        return z.cpu(), ("$z_0$", "$z_1$")[: model.latent_dim], f"Test images {where}"
    components = directions.principal_directions(model, batch, count=2)
    plane = (z - z.mean(dim=0)) @ torch.stack([component.vector for component in components], dim=1)
    labels = tuple(f"{c.name} ({100 * (c.share or 0.0):.0f}% of variance)" for c in components)
    return plane.cpu(), labels, "PCA of the latents of test images"


def manifold(
    model: Autoencoder,
    columns: int = _PANEL_COLUMNS,
    classes: Sequence[int] | None = None,
    names: Names = None,
) -> PILImage.Image:
    """Draw the decoded plane of a two-dimensional latent, once per label if conditional."""
    steps = torch.linspace(-_PLANE_EXTENT, _PLANE_EXTENT, columns, device=model.output_bias.device)
    z = torch.cartesian_prod(-steps, steps).flip(1)  # largest z1 in the first row
    extent = f"from -{_PLANE_EXTENT} to {_PLANE_EXTENT}"
    title = f"Decoded latent plane. Right: z0 {extent}. Up: z1 {extent}."
    if not model.conditional:
        return image_grid(_to_tiles(model.sample(z=z), columns), title=title)
    if isinstance(model.condition, OneHot):
        shown = _select_labels(model, classes)
        titles = [f"label {c}" if names is None else shorten_name(names[c]) for c in shown]
        conditions = _one_hot_labels(model, shown)
    else:
        conditions = model.condition.examples(_MAX_PANELS).to(z)
        titles = [f"condition {i + 1}" for i in range(len(conditions))]
    panels = []
    for text, y in zip(titles, conditions, strict=True):
        tiles = _to_tiles(model.sample(y=y.expand(len(z), -1), z=z), columns)
        panels.append(image_grid(tiles, title=text, scale=1, font_size=_PANEL_FONT_SIZE))
    return join_panels(panels, title, _PANEL_FONT_SIZE)


@torch.no_grad()
def draw(
    model: Autoencoder,
    examples: Batch,
    test_batch: Batch,
    classes: Sequence[int] | None = None,
    names: Names = None,
    at_end: bool = True,
) -> dict[str, PILImage.Image]:
    """Return all figures that apply to the model, by name.

    Args:
        examples: one test image of each class.
        test_batch: more test images, for the traversals and the latent plane.
        classes: labels that have training images; None for all.
        names: names of all classes, to show instead of their numbers.
        at_end: also draw the slow figures, which take a second or two: the directions of
            thickness and slant in the traversals and, unless z has two dimensions, the latent
            plane.
    """
    was_training = model.training
    model.eval()
    pictures = {"reconstructions": reconstructions(model, examples)}
    if model.conditional and isinstance(model.condition, Quadrants):
        pictures["completions"] = completions(model, test_batch)
    elif model.conditional and not isinstance(model.condition, OneHot):
        for name in model.condition.parts:
            pictures |= condition_grids(model, test_batch, name)
    elif model.conditional:
        pictures["label_grid"] = label_grid(model, classes=classes, names=names)
        pictures["style_transfer"] = style_transfer(model, examples, classes, names)
    else:
        pictures["samples"] = random_samples(model)
    styles = _find_styles(model, test_batch) if at_end else []
    pictures["traversals"] = traversals(model, test_batch, 10, 11, classes, names, styles)
    has_labels = not isinstance(model.condition, Quadrants)
    if has_labels and len(test_batch.x) > 2 and (at_end or model.latent_dim == 2):
        pictures["latent_plane"] = latent_plane(model, test_batch, names=names)
    if has_labels and model.latent_dim == 2:
        pictures["manifold"] = manifold(model, classes=classes, names=names)
    model.train(was_training)
    return pictures


def _find_styles(model: Autoencoder, batch: Batch) -> list[directions.Direction]:
    from cvae.morphology import FACTORS  # imported here: scikit-image takes half a second

    return directions.style_directions(model, batch, FACTORS)
