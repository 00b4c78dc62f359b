"""Images from a trained model, as arrays and as files."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cvae.figures import image_grid
from cvae.models import Autoencoder
from cvae.schema import ConfigError

_COLUMNS = 10  # of the picture of one label


def generate(
    model: Autoencoder,
    label: int | Literal["all"] | None,
    num_samples: int,
    seed: int,
    temperature: float = 1.0,
    binary: bool = False,
) -> Float[Tensor, "num_labels num_samples height width"]:
    """Decoded draws of N(0, temperature² I), the same z for every label.

    Raises:
        ConfigError: a label for a model that takes none, none for one that needs it, or one that
            it does not know.
    """
    kind = type(model).__name__
    if not model.conditional and label is not None:
        raise ConfigError(
            f"label={label}: the run's model, {kind}, is unconditional; leave label out"
        )
    if model.conditional and label is None:
        raise ConfigError(
            f"label: the run's model, {kind}, needs one: label=0 to {model.num_classes - 1}, or all"
        )
    if isinstance(label, int) and label >= model.num_classes:
        raise ConfigError(f"label={label}: must be from 0 to {model.num_classes - 1}, or all")
    images = [
        model.sample(
            None if c is None else [c] * num_samples,
            num_samples=num_samples,
            temperature=temperature,
            binary=binary,
            generator=torch.Generator().manual_seed(seed),  # for each label: the same z
        )
        for c in (range(model.num_classes) if label == "all" else [label])
    ]
    return torch.stack(images)[:, :, 0]


def save(
    images: Float[Tensor, "num_labels num_samples height width"],
    output: Path,
    label: int | Literal["all"] | None,
    npy: bool = False,
) -> list[Path]:
    """Write a PNG, a row for each label, and if asked unsigned bytes (N, height, width)."""
    if output.suffix == ".npy":
        raise ConfigError(f"output={output}: names the PNG; the array goes beside it as .npy")
    if len(images) > 1:
        tiles, names = images, [str(c) for c in range(len(images))]
    else:
        columns = min(_COLUMNS, images.shape[1])
        rows = -(-images.shape[1] // columns)
        blank = images.new_zeros(rows * columns - images.shape[1], *images.shape[2:])
        tiles = torch.cat((images[0], blank)).unflatten(0, (rows, columns))
        names = []
    title = "" if label in (None, "all") else f"label {label}"
    written = [output]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        image_grid(tiles, names, title=title).save(output, format="PNG", optimize=True)
        if npy:
            array = (images.flatten(0, 1).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
            np.save(output.with_suffix(".npy"), array)
            written.append(output.with_suffix(".npy"))
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written ({error.strerror})") from None
    return written
