"""Read images, labels, class names and attributes from an .npz file."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.contract.errors import DataError

_CLASS_NAMES = "class_names"


Attributes = dict[str, tuple[NDArray[Any], NDArray[Any]]]  # by name: train and test values


def read_npz(
    path: Path, num_classes: int
) -> tuple[list[NDArray[Any]], list[str] | None, Attributes]:
    """Return the four arrays, the class names if any, and the attributes.

    The arrays are train images, train labels, test images and test labels. Images have the shape
    (N, channels, height, width).

    Raises:
        DataError: the file is missing or damaged, or an array has a wrong type or shape.
    """
    keys = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive[key] for key in keys]
            names = archive.get(_CLASS_NAMES)
            attribute_keys = [
                key for key in archive if key.startswith("train_") and key not in keys
            ]
            attribute_names = [key.removeprefix("train_") for key in attribute_keys]
            if missing := [name for name in attribute_names if f"test_{name}" not in archive]:
                raise DataError(f"{path}: train_{missing[0]} without test_{missing[0]}; add it")
            if "label" in attribute_names:
                raise DataError(f"{path}: train_label clashes with train_labels: rename it")
            attributes = {
                name: (archive[f"train_{name}"], archive[f"test_{name}"])
                for name in attribute_names
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: {reason}; must contain {', '.join(keys)}") from None
    for i, split in ((0, "train"), (2, "test")):
        arrays[i] = _add_channels(path, split, arrays[i], arrays[i + 1].shape)
    for name, pair in attributes.items():
        for values, labels, split in zip(pair, arrays[1::2], ("train", "test"), strict=True):
            if values.shape != labels.shape:
                raise DataError(
                    f"{path}: {split}_{name} {values.shape} with {split}_labels {labels.shape}; "
                    "must have one value for each image"
                )
    class_names = None if names is None else _to_names(path, names, num_classes)
    return arrays, class_names, attributes


def _add_channels(
    path: Path, split: str, images: NDArray[Any], labels: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Return images as (N, channels, height, width)."""
    prefix = f"{path}: {split}_images {images.dtype} {images.shape}"
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels != images.shape[:1]:
        raise DataError(
            f"{prefix} with {split}_labels {labels}; must be unsigned bytes (N, height, width) "
            "or (N, height, width, 3), and labels (N,)" + _suggest_fix(images)
        )
    if images.size and images.max() == 1:
        raise DataError(f"{prefix} range from 0 to 1, but white is 255; multiply by 255")
    if images.ndim == 3:
        return images[:, None]
    is_first, is_last = (images.shape[axis] in (1, 3) for axis in (1, 3))
    if is_first and is_last:
        raise DataError(
            f"{prefix}: axis 1 or axis 3 may be the channels; use images of more than 3 pixels per "
            "side, and no channel axis for grey images"
        )
    if not is_first and not is_last:
        hint = "; drop the alpha channel" if 4 in (images.shape[1], images.shape[3]) else ""
        raise DataError(f"{prefix}: must have 1 or 3 channels, as axis 1 or axis 3{hint}")
    return images if is_first else np.moveaxis(images, 3, 1)


def _suggest_fix(images: NDArray[Any]) -> str:
    is_fraction = (
        images.dtype.kind == "f" and images.size and images.min() >= 0 and images.max() <= 1
    )
    return "; multiply by 255 and convert to uint8" if is_fraction else ""


def _to_names(path: Path, names: NDArray[Any], num_classes: int) -> list[str]:
    if names.dtype.kind != "U" or names.shape != (num_classes,):
        raise DataError(
            f"{path}: {_CLASS_NAMES} {names.dtype} {names.shape} with "
            f"data.num_classes={num_classes}; must be {num_classes} strings, one per class"
        )
    return [str(name) for name in names]
