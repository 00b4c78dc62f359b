"""Latents of the images of a split, with their labels, as NumPy arrays."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvae.data import MNISTDataModule
from cvae.models import VAE, Autoencoder
from cvae.priors import StandardNormal
from harness.contract.errors import ConfigError
from harness.contract.files import atomic_write, make_output_error

_CHUNK_SIZE = 1000  # images at a time

Latents = dict[str, NDArray[Any]]


@torch.no_grad()
def embed(model: Autoencoder, data: MNISTDataModule, split: str = "test") -> Latents:
    """Return the posterior q(z | x, y) of every image of a split.

    Example::

        latents = embed(load_run("logs/latest"), MNISTDataModule("data"))
        plt.scatter(*latents["mean"].T[:2], c=latents["labels"], cmap="tab10")

    Args:
        model: the model; a conditional one encodes each image with its own label.
        data: the data module; this function sets it up.
        split: train, validation or test. Pixels are binarized once, as in evaluation.

    Returns:
        Arrays by name, for N images and D latent dimensions: ``mean`` and ``sd`` of z, (N, D)
        float32 (for a plain autoencoder its code, and 0); ``w``, (N, D) float32, only with a prior
        other than N(0, I): the base variable at the mean of z, which ``decode`` takes; ``labels``,
        (N,) int64; ``conditions``, (N, condition_size) float32, y in the units of the data, only
        if y is not one label; ``indices``, (N,) int64, positions in ``data.splits()[split]``.
    """
    data.prepare_data()
    data.setup()
    images = data.splits()[split]
    was_training = model.training
    model.eval()
    has_base = isinstance(model, VAE) and not isinstance(model.prior, StandardNormal)
    parts: dict[str, list[NDArray[Any]]] = {}
    for index in torch.arange(len(images.labels)).split(_CHUNK_SIZE):
        x = (images.inputs[index].float() / 255.0).to(model.output_bias)
        conditions = images.labels if images.conditions is None else images.conditions
        y = conditions[index] if model.conditional else None
        q = model.encode(x, y)
        mean, sd = (q, torch.zeros_like(q)) if isinstance(q, Tensor) else (q.mean, q.stddev)
        rows = {"mean": mean, "sd": sd}
        if has_base:
            rows["w"] = model.embed(x, y)
        for name, values in rows.items():
            parts.setdefault(name, []).append(values.float().cpu().numpy())
    model.train(was_training)
    labels = images.labels.numpy()
    if images.conditions is not None:
        parts["conditions"] = [images.conditions.numpy()]
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    return {**arrays, "labels": labels, "indices": np.arange(len(labels))}


def save(latents: Latents, output: Path) -> None:
    """Write the arrays to an .npz file.

    Raises:
        ConfigError: the file cannot be written, or its name does not end in .npz.
    """
    if output.suffix != ".npz":
        raise ConfigError(f"output={output}: must end in .npz")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as file:
            np.savez(file, **cast(dict[str, Any], latents))
    except OSError as error:
        raise make_output_error(output, error) from None
