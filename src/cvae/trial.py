"""Trial step on a few images before training, to report wrong shapes of a network."""

import torch
from torch import Tensor

from cvae.models import Autoencoder
from cvae.types import Batch


def trial_loss(model: Autoencoder, batch: Batch) -> Tensor:
    """Return the summed loss of a few images at z = the posterior mean, a scalar.

    In evaluation mode it first checks the shapes of ``encode`` and ``decode`` of the network.

    Raises:
        TypeError, ValueError: a method of network or model returns another type or shape.
    """
    rows = len(batch.x)
    label = batch.y if model.conditional else None
    # a user's model may call other methods of its network
    if not model.training and type(model).__module__ == Autoencoder.__module__:
        with torch.no_grad():
            statistics = model.network.encode(batch.x, label)
            size, dtype = model.num_statistics * model.latent_dim, model.output_bias.dtype
            _expect("encode(x, y)", statistics, (rows, size), dtype)
            z = batch.x.new_zeros(rows, model.latent_dim)
            image = (rows, *model.image_shape)
            _expect("decode(z, y)", model.network.decode(z, label), image, dtype)
    terms = model.terms(batch.x, label, batch.x.new_zeros(rows, model.latent_dim))
    for name, values in terms._asdict().items():
        if isinstance(values, Tensor):
            _expect(name, values, (rows,))
    return model.loss(terms, 0).sum()


def _expect(
    name: str, values: object, shape: tuple[int, ...], widest: torch.dtype = torch.float64
) -> None:
    """Raise on a wrong type or shape, which broadcasting could hide in training."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} gives a {type(values).__name__}, not a tensor")
    if values.dtype.itemsize > widest.itemsize:
        raise TypeError(f"{name} gives {values.dtype}, expected {widest}")
    if values.shape != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected {shape}")
