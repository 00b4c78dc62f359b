"""Sample images from a trained model and save them."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from cvae.conditions import Labels, OneHot
from cvae.figures import image_grid
from cvae.given_pixels import Quadrants
from cvae.models import Autoencoder
from cvae.types import Image, Latent
from harness.contract.errors import ConfigError
from harness.contract.files import atomic_write, make_output_error

_MAX_COLUMNS = 10  # in the picture of a single label
_OTHER_FORMATS = {".npy": "npy=true saves the array next to it", ".webp": "film=true makes a film"}

Samples = Float[Tensor, "num_rows num_samples channels height width"]
Label = int | list[int] | Literal["all"] | None
Values = float | list[float]  # of one attribute: a number, or a list with one row per number


class Row(NamedTuple):
    """One requested condition."""

    name: str  # text next to its row of samples; empty for a model without labels
    y: Labels | None


class Grid(NamedTuple):
    """Arguments of :func:`cvae.figures.image_grid`."""

    tiles: Samples
    row_labels: Sequence[str]
    title: str = ""
    num_blank: int = 0


def requested_rows(
    model: Autoencoder, label: Label, condition: Mapping[str, Values] | None = None
) -> list[Row]:
    """Return one row for each requested label, or for each combination of attributes.

    Args:
        label: one label, a list with one row each, "all", or None for a model without labels.
        condition: one value or a list for every attribute; only for a model of attributes.

    Raises:
        ConfigError: the label or condition does not fit the model, or is missing.
    """
    kind = type(model).__name__
    if isinstance(model.condition, Quadrants) and model.conditional:
        raise ConfigError(
            "run: this model completes images, and generate.py takes none; see "
            "figures/completions.png in the run folder, or call model.sample(y=images) in Python"
        )
    if not isinstance(model.condition, OneHot) and model.conditional:
        if label is not None or condition is None:
            names = ", ".join(f"{name}: ..." for name in model.condition.parts)
            advice = "" if label is None else ", not label="
            raise ConfigError(f"condition: this run needs condition='{{{names}}}'{advice}")
        return _combine_attributes(model, condition)
    if not model.conditional and (label is not None or condition is not None):
        setting = f"condition={condition}" if label is None else f"label={label}"
        raise ConfigError(f"{setting}: the run's model, {kind}, is unconditional; remove it")
    if condition is not None:
        raise ConfigError(f"condition={dict(condition)}: the run's model takes a label; use label=")
    if model.conditional and label is None:
        raise ConfigError(
            f"label=null: the run's model, {kind}, needs one: 0 to {model.num_classes - 1}, or all"
        )
    labels = _list_labels(label, model.num_classes)
    if unknown := [c for c in labels if c is not None and c >= model.num_classes]:
        last = model.num_classes - 1
        raise ConfigError(f"label={unknown[0]}: must be from 0 to {last}, a list of these, or all")
    return [Row("" if c is None else str(c), c) for c in labels]


def _list_labels(label: Label, num_classes: int) -> list[int | None]:
    if label == "all":
        return list(range(num_classes))
    return [*label] if isinstance(label, list) else [label]


def _combine_attributes(model: Autoencoder, condition: Mapping[str, Values]) -> list[Row]:
    values_by_name = {k: v if isinstance(v, list) else [v] for k, v in condition.items()}
    for name, values in values_by_name.items():
        if not all(isinstance(value, int | float) for value in values):
            raise ConfigError(f"condition: {name}={values}: must be a number or a list of numbers")
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"condition: {name}={values}: must be one or more different values")
    varied = [name for name, values in values_by_name.items() if len(values) > 1] or list(
        values_by_name
    )
    rows = []
    for combination in itertools.product(*values_by_name.values()):
        y = dict(zip(values_by_name, combination, strict=True))
        try:
            model.condition.encode(y, model.output_bias[:1, 0])
        except ValueError as error:
            raise ConfigError(f"condition: {error}") from None
        rows.append(Row(", ".join(f"{name} {y[name]:g}" for name in varied), y))
    return rows


def generate(
    model: Autoencoder,
    rows: Sequence[Row],
    num_samples: int,
    seed: int,
    temperature: float = 1.0,
    sample_pixels: bool = False,
) -> Samples:
    """Return decoded samples of N(0, temperature² I), with the same z for every row.

    Args:
        rows: the requested conditions, from :func:`requested_rows`.
    """
    return _sample_rows(
        model, rows, seed, sample_pixels, num_samples=num_samples, temperature=temperature
    )


def decode_rows(
    model: Autoencoder, rows: Sequence[Row], z: Latent, seed: int, sample_pixels: bool = False
) -> Samples:
    """Return images decoded from the same z for every row.

    Args:
        rows: the requested conditions, from :func:`requested_rows`.
        seed: seed of sampled pixels.
    """
    return _sample_rows(model, rows, seed, sample_pixels, z=z)


def _sample_rows(
    model: Autoencoder, rows: Sequence[Row], seed: int, sample_pixels: bool, **arguments: Any
) -> Samples:
    """Call ``model.sample`` for each row with a generator of the same seed, so z is the same."""
    images = [
        model.sample(
            row.y,
            sample_pixels=sample_pixels,
            generator=torch.Generator().manual_seed(seed),
            **arguments,
        )
        for row in rows
    ]
    return torch.stack(images)


def wrap_row(images: Image, name: str) -> Grid:
    """Return the images of one condition in rows of about equal length, titled by its name."""
    count = len(images)
    rows = -(-count // _MAX_COLUMNS)
    columns = -(-count // rows)
    num_blank = rows * columns - count
    blank = images.new_zeros(num_blank, *images.shape[1:])
    tiles = torch.cat((images, blank)).unflatten(0, (rows, columns))
    return Grid(tiles, (), f"label {name}" if name.isdecimal() else name, num_blank)


def save(images: Samples, output: Path, names: Sequence[str], npy: bool = False) -> list[Path]:
    """Save a PNG with a row per requested condition and, if ``npy``, an array of unsigned bytes.

    The array is (N, height, width) for grey images, and (N, height, width, 3) for color images.

    Raises:
        ConfigError: a file cannot be written, or ``output`` has the suffix of another format.
    """
    grid = Grid(images, names)
    if len(images) == 1:
        grid = wrap_row(images[0], names[0])
    save_picture(image_grid(**grid._asdict()), output)
    if not npy:
        return [output]
    pixels = (images.flatten(0, 1).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    pixels = pixels[:, 0] if pixels.shape[1] == 1 else pixels.movedim(1, 3).contiguous()
    array = output.with_suffix(".npy")
    try:
        np.save(array, pixels.numpy())
    except OSError as error:
        raise make_output_error(array, error) from None
    return [output, array]


def save_picture(picture: PILImage.Image, output: Path) -> None:
    """Save a picture as PNG, in a folder that is created if it does not exist.

    Raises:
        ConfigError: the file cannot be written, or its name has the suffix of another format.
    """
    if hint := _OTHER_FORMATS.get(output.suffix):
        raise ConfigError(f"output={output}: must be a PNG; {hint}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as file:
            picture.save(file, format="PNG", optimize=True)
    except OSError as error:
        raise make_output_error(output, error) from None
