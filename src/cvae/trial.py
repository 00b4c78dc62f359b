"""Trial step on a few images before training, which reports wrong shapes of a network."""

import torch
from torch import Tensor

from cvae.models import VAE, Autoencoder
from cvae.types import Batch, Condition, Image

_NUM_SAMPLES = 2  # samples of z, as in the importance-weighted bound


def trial_loss(model: Autoencoder, batch: Batch) -> Tensor:
    """Return the summed loss of a few images, with z at the posterior mean.

    In evaluation mode, check first the shapes that ``encode`` and ``decode`` of the network return.

    Raises:
        TypeError, ValueError: a method of the network or model returns a wrong type or shape, or
            the likelihood does not fit the pixels.
    """
    rows = len(batch.x)
    check_pixels(model, batch.x)
    label = batch.y if model.conditional else None
    # models of your own may call other methods of the network
    if not model.training and type(model).__module__ == Autoencoder.__module__:
        with torch.no_grad():
            c = None if label is None else model.condition(label)
            statistics = model.network.encode(batch.x, c)
            size, dtype = model.num_statistics * model.latent_dim, model.output_bias.dtype
            _check_tensor("encode(x, y)", statistics, (rows, size), dtype)
            z = batch.x.new_zeros(rows, model.latent_dim)
            outputs = (rows, *model.output_bias.shape)
            _check_tensor("decode(z, y)", model.network.decode(z, c), outputs, dtype)
        if isinstance(model, VAE):
            _check_prior(model, c, rows)
    if not model.training:
        _check_likelihood(model, batch.x)
    terms = model.terms(batch.x, label, batch.x.new_zeros(rows, model.latent_dim))
    for name, values in terms._asdict().items():
        if isinstance(values, Tensor):
            _check_tensor(name, values, (rows,))
    return model.loss(terms, 0).sum()


@torch.no_grad()
def _check_likelihood(model: Autoencoder, x: Image) -> None:
    """Raise if the likelihood returns wrong shapes for its start or for samples of z."""
    rows, likelihood = len(x), model.likelihood
    mean = x.mean(0).clamp(0.01, 0.99)
    start = likelihood.initial_parameters(mean, torch.full_like(mean, 0.1))
    shape = (likelihood.num_parameters, *model.image_shape)
    _check_tensor(f"{type(likelihood).__name__}.initial_parameters(mean, std)", start, shape)
    log_p = likelihood.log_prob(x, start.expand(rows, _NUM_SAMPLES, *shape).to(x))
    _check_tensor("log_prob of two samples of z", log_p, (rows, _NUM_SAMPLES))
    parameters, shape = start[None].to(x), (1, *model.image_shape)
    _check_tensor(
        f"{type(likelihood).__name__}.mean(parameters)", likelihood.mean(parameters), shape
    )
    pixels = likelihood.sample(parameters, torch.Generator().manual_seed(0))
    _check_tensor(f"{type(likelihood).__name__}.sample(parameters)", pixels, shape)


@torch.no_grad()
def _check_prior(model: VAE, c: Condition | None, rows: int) -> None:
    """Raise if ``from_base`` is missing, returns a wrong shape or does not invert ``to_base``."""
    w = torch.linspace(-1, 1, model.latent_dim).to(model.output_bias).expand(rows, -1)
    z = model.prior.from_base(w, c)
    name = type(model.prior).__name__
    _check_tensor(f"{name}.from_base(w, y)", z, (rows, model.latent_dim))
    recovered, log_det = model.prior.to_base(z, c)
    _check_tensor(f"{name}.to_base(z, y)", recovered, (rows, model.latent_dim))
    _check_tensor(f"{name}.to_base(z, y)[1]", log_det, (rows,))
    if not torch.allclose(recovered, w, atol=0.1):
        raise ValueError(f"{name}.to_base(from_base(w, y), y) is not w: must be its inverse")


def check_pixels(model: Autoencoder, x: Image) -> None:
    """Check that x is binary if the likelihood is for binary pixels.

    Raises:
        ValueError: x has grey pixels.
    """
    if model.likelihood.num_levels == 2 and ((x != 0) & (x != 1)).any():
        raise ValueError(
            "x has grey pixels, but a Bernoulli likelihood is for binary ones: binarize them, or "
            "use another likelihood: DiscretizedLogistic, ContinuousBernoulli or Gaussian"
        )


def _check_tensor(
    name: str, values: object, shape: tuple[int, ...], widest: torch.dtype = torch.float64
) -> None:
    """Raise if type or shape is wrong, which broadcasting could hide in training."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} returns a {type(values).__name__}, not a tensor")
    if values.dtype.itemsize > widest.itemsize:
        raise TypeError(f"{name} returns {values.dtype}, expected {widest}")
    if values.shape != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected {shape}")
