"""Images from a trained model, as arrays and as files."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cvae.figures import image_grid
from cvae.models import Autoencoder
from harness.contract.errors import ConfigError

_NUM_SAMPLES = 16  # the default, left out of file names
_COLUMNS = 10  # of the picture of one label, at most

Label = int | list[int] | Literal["all"] | None


def generate(
    model: Autoencoder,
    label: Label,
    num_samples: int,
    seed: int,
    temperature: float = 1.0,
    binary: bool = False,
) -> Float[Tensor, "num_labels num_samples height width"]:
    """Decoded draws of N(0, temperature² I), the same z for every label.

    Args:
        label: one label, a list with one row each, "all", or None for a model without labels.

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
    labels = _labels(label, model.num_classes)
    if unknown := [c for c in labels if c is not None and c >= model.num_classes]:
        last = model.num_classes - 1
        raise ConfigError(f"label={unknown[0]}: must be from 0 to {last}, a list of these, or all")
    images = [
        model.sample(
            None if c is None else [c] * num_samples,
            num_samples=num_samples,
            temperature=temperature,
            binary=binary,
            generator=torch.Generator().manual_seed(seed),  # for each label: the same z
        )
        for c in labels
    ]
    return torch.stack(images)[:, :, 0]


def _labels(label: Label, num_classes: int) -> list[int | None]:
    if label == "all":
        return list(range(num_classes))
    return [*label] if isinstance(label, list) else [label]


def file_name(
    label: Label,
    num_samples: int,
    seed: int,
    temperature: float = 1.0,
    binary: bool = False,
    checkpoint: str = "",
) -> str:
    """Return a file name that differs whenever the picture does.

    Args:
        checkpoint: name of the checkpoint if it is not best.ckpt.
    """
    labels = "none" if label is None else str(label)
    if isinstance(label, list):
        labels = "-".join(map(str, label))
    parts = [f"label-{labels}", f"seed-{seed}"]
    parts += [f"samples-{num_samples}"] if num_samples != _NUM_SAMPLES else []
    parts += [f"temperature-{temperature}"] if temperature != 1 else []
    parts += ["binary"] if binary else []
    parts += [checkpoint] if checkpoint else []
    return "-".join(parts) + ".png"


def save(
    images: Float[Tensor, "num_labels num_samples height width"],
    output: Path,
    label: Label,
    npy: bool = False,
) -> list[Path]:
    """Write a PNG, a row for each label, and if asked unsigned bytes (N, height, width)."""
    if output.suffix == ".npy":
        raise ConfigError(f"output={output}: names the PNG; the array goes beside it as .npy")
    tiles, title, num_blank = images, "", 0
    names = [] if label is None else [str(c) for c in _labels(label, len(images))]
    if len(images) == 1:  # in rows of about equal length
        names, title = [], f"label {names[0]}" if names else ""
        count = images.shape[1]
        rows = -(-count // _COLUMNS)
        columns = -(-count // rows)
        num_blank = rows * columns - count
        blank = images.new_zeros(num_blank, *images.shape[2:])
        tiles = torch.cat((images[0], blank)).unflatten(0, (rows, columns))
    written = [output]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        page = image_grid(tiles, names, title=title, num_blank=num_blank)
        page.save(output, format="PNG", optimize=True)
        if npy:
            array = (images.flatten(0, 1).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
            np.save(output.with_suffix(".npy"), array)
            written.append(output.with_suffix(".npy"))
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written ({error.strerror})") from None
    return written
