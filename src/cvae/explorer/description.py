"""Description of a model for the explorer page: ``model.json``."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cvae import noise
from cvae.coloured_mnist import ColouredMNISTDataModule
from cvae.conditions import Attributes, Part
from cvae.data import MNISTDataModule
from cvae.directions import (
    Direction,
    display_range,
    embed,
    principal_directions,
    style_directions,
)
from cvae.image_set import ImageSet
from cvae.models import VAE, Autoencoder
from cvae.morphology import FACTORS
from cvae.rotated_mnist import RotatedMNISTDataModule
from cvae.types import Batch, Latent
from harness.contract.sampler import Rows

_MAX_IMAGES = 1000  # to measure ranges
_MAX_EXAMPLES, _EXAMPLES_PER_CLASS = 20, 2
_NUM_COMPONENTS = 6
_SEED = 0  # of the stored noise


@torch.no_grad()
def describe(model: Autoencoder, data: MNISTDataModule, name: str) -> dict[str, Any]:
    """Return the description of a model that the page reads, as JSON values.

    Args:
        data: the data of the run, after ``setup``. Only its validation images are used.
        name: name of the run.
    """
    assert data.validation is not None, "call setup() first"
    held_out = data.validation
    batch = _select_images(held_out, torch.arange(min(_MAX_IMAGES, len(held_out))))
    latent = embed(model, batch)
    is_binary = data.binarization == "dynamic"
    is_centered = has_centered_digits(data)
    directions = style_directions(model, batch, FACTORS) if is_centered else []
    directions += principal_directions(model, batch, _NUM_COMPONENTS)
    color = "grey" if model.image_shape[0] == 1 else "color"
    return {
        "name": name,
        "digest": _digest(model),
        "kind": type(model).__name__,
        "data": data.dataset,
        "image_shape": list(model.image_shape),
        "latent_dim": model.latent_dim,
        "pixels": "binary" if is_binary else color,
        "centered": is_centered,
        "has_prior": isinstance(model, VAE),
        "has_bound": isinstance(model, VAE),
        "parts": list(_describe_parts(model, data.class_names)),
        "condition_size": model.condition.size if model.conditional else 0,
        "directions": [_describe_direction(direction) for direction in directions],
        "dimensions": list(_describe_dimensions(model, latent)),
        "eps": _sample_normal(model.latent_dim),
        "thresholds": _sample_uniform(model.output_bias[0].numel()) if is_binary else None,
        "examples": list(_describe_examples(model, held_out, data.class_names)),
    }


def has_centered_digits(data: MNISTDataModule) -> bool:
    """Return whether images are 28 x 28 pixels with a centered character, as in MNIST."""
    if isinstance(data, ColouredMNISTDataModule | RotatedMNISTDataModule):
        return True
    return type(data) is MNISTDataModule and data.dataset != "FashionMNIST"


def _digest(model: Autoencoder) -> str:
    """Return a fingerprint of the weights, with which a link names its model."""
    content = hashlib.sha256()
    for weights in model.state_dict().values():
        content.update(weights.numpy().tobytes())
    return content.hexdigest()[:16]


def _select_images(images: ImageSet, index: Tensor) -> Batch:
    return images[Rows(0, index, len(index))]


def _describe_parts(model: Autoencoder, class_names: list[str] | None) -> Iterator[dict[str, Any]]:
    if not model.conditional:
        return
    for name, part in model.condition.parts.items():
        entry: dict[str, Any] = {"name": name, **part._asdict()}
        if part.kind == "categorical":
            entry["names"] = _list_class_names(name, part, class_names)
        elif isinstance(model.condition, Attributes):
            entry["low"], entry["high"] = model.condition.training_range(name)
        yield entry


def _list_class_names(name: str, part: Part, class_names: list[str] | None) -> list[str]:
    """Return the names of the classes of a part, or numbers if the data have no names."""
    if name == "label" and class_names is not None:
        return list(class_names)
    return [str(number) for number in range(part.size)]


def _describe_direction(direction: Direction) -> dict[str, Any]:
    return {**direction._asdict(), "vector": direction.vector.float().tolist()}


def _describe_dimensions(model: Autoencoder, latent: Latent) -> Iterator[dict[str, float]]:
    """Yield the standard deviation of each dimension over held-out images, and its range."""
    for i, spread in enumerate(latent.std(dim=0, correction=0).tolist()):
        low, high = display_range(model, latent[:, i])
        yield {"spread": spread, "low": low, "high": high}


def _sample_normal(count: int) -> list[float]:
    """Return a sample of N(0, I), which the page uses as eps in each bound."""
    index = torch.zeros(1, dtype=torch.long)
    eps = noise.standard_normal(index, (count,), seed=_SEED, stream=noise.Stream.POSTERIOR)
    return eps[0].tolist()


def _sample_uniform(count: int) -> list[float]:
    """Return uniform samples in (0, 1), one per pixel: the thresholds that binarize a drawing."""
    index = torch.zeros(1, dtype=torch.long)
    bits = noise.random_bits(index, count, seed=_SEED, stream=noise.Stream.BINARIZATION)
    odd = ((bits[0] >> 41) & (2**23 - 1)) * 2 + 1  # 24 bits, exact in float32
    return (odd.double() * 2.0**-24).tolist()


def _describe_examples(
    model: Autoencoder, images: ImageSet, class_names: list[str] | None
) -> Iterator[dict[str, Any]]:
    """Yield the first held-out images of each class."""
    firsts = [
        torch.nonzero(images.labels == c)[:_EXAMPLES_PER_CLASS, 0] for c in images.labels.unique()
    ]
    ranked = [index[k : k + 1] for k in range(_EXAMPLES_PER_CLASS) for index in firsts]
    index = torch.cat(ranked)[:_MAX_EXAMPLES]
    batch = _select_images(images, index)
    y = batch.y if model.conditional else None
    for i, label in enumerate(images.labels[index].tolist()):
        text = f"label {class_names[label] if class_names else label}"
        yield {
            "pixels": base64.b64encode(images.pixels[index[i]].numpy().tobytes()).decode(),
            "y": [] if y is None else y[i].tolist(),
            "text": text if y is None else _describe_condition(model, y[i : i + 1], class_names),
        }


def _describe_condition(model: Autoencoder, y: Tensor, class_names: list[str] | None) -> str:
    """Return the values of one row of y as text, such as "label 3, angle -12"."""
    texts = []
    for name, part in model.condition.parts.items():
        value = part.select(y)[0].item()
        if part.kind == "categorical":
            texts.append(f"{name} {_list_class_names(name, part, class_names)[int(value)]}")
        else:
            texts.append(f"{name} {value:.3g}")
    return ", ".join(texts)
