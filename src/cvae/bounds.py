"""Evidence lower bound and importance-weighted bound of a trained model."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cvae import noise
from cvae.conditions import Labels
from cvae.models import VAE, Autoencoder
from cvae.types import Batch, Image, ImageIndices, Nats, Split

Scalars = TypeVar("Scalars", float, Tensor)

_EVALUATION_SEED = 0  # fixed, to score all runs and epochs with the same noise
BATCH_SIZE = 128  # images, or pairs of image and label, per batch; results do not depend on it
# decoder evaluations to hold in memory if the decoder returns _NUM_OUTPUTS numbers, fewer if it
# returns more; the limits affect results only by rounding
_CPU_ROWS = 2048  # fits the caches
_GPU_ROWS = 32_768  # 100 MB of logits; fewer would wait for kernel launches
_NUM_OUTPUTS = 784


@torch.no_grad()
def importance_weighted_nll(
    model: VAE,
    x: Image,
    y: Labels | None,
    index: ImageIndices,
    num_samples: int,
    max_rows: int | None = None,
) -> Nats:
    r"""Estimate the importance-weighted bound on :math:`-\log p(x|y)`, in nats per image.

    .. math:: -\log \frac1K \sum_{k=1}^K \frac{p(x|z_k,y)\,p(z_k)}{q(z_k|x,y)},\quad z_k \sim q

    (Burda, Grosse and Salakhutdinov 2016, equation 8). The expected value is an upper bound on
    :math:`-\log p(x|y)`, and is tighter for larger K. The noise is keyed by image and sample, so
    the value of an image does not depend on the batch or on ``max_rows``.

    Args:
        index: position of each image in its split, which keys its noise.
        num_samples: K.
        max_rows: decoder evaluations to hold in memory at a time; None for as many as suit the
            device.
    """
    return importance_weighted_nlls(model, x, y, index, [num_samples], max_rows)[num_samples]


@torch.no_grad()
def importance_weighted_nlls(
    model: VAE,
    x: Image,
    y: Labels | None,
    index: ImageIndices,
    counts: Sequence[int],
    max_rows: int | None = None,
) -> dict[int, Nats]:
    """Return :func:`importance_weighted_nll` for several K, each from the first K samples."""
    if min(counts) < 1:
        raise ValueError(f"num_samples={min(counts)}: must be at least 1")
    if max_rows is None:
        max_rows = _CPU_ROWS if x.device.type == "cpu" else _GPU_ROWS
    max_rows = max_rows * _NUM_OUTPUTS // max(_NUM_OUTPUTS, model.output_bias.numel())
    chunk = max(2, max_rows // max(1, len(x)) // 2 * 2)  # even: noise comes in pairs
    total = x.new_full((len(x),), -math.inf)  # log of the sum of the weights so far
    nlls: dict[int, Nats] = {}
    posterior = model.posterior(x, y)
    for start in range(0, max(counts), chunk):
        stop = min(start + chunk, max(counts))
        eps = noise.standard_normal(
            index,
            (stop - start, model.latent_dim),
            seed=_EVALUATION_SEED,
            stream=noise.Stream.IMPORTANCE,
            start=start * model.latent_dim,
        )
        log_w = model.log_weights(x, y, eps.to(x.dtype), posterior)
        for k in counts:
            if start < k <= stop:
                part = log_w[:, : k - start].logsumexp(dim=1)
                nlls[k] = math.log(k) - torch.logaddexp(total, part)
        total = torch.logaddexp(total, log_w.logsumexp(dim=1))
    return {k: nlls[k] for k in counts}


def split_nlls(
    model: VAE,
    split: Split,
    counts: Sequence[int],
    progress: Callable[[float], None] = lambda share: None,
) -> dict[int, Nats]:
    """Return :func:`importance_weighted_nlls` of a split, and report the fraction done."""
    parts: dict[int, list[Nats]] = {k: [] for k in counts}
    count = len(split.labels)
    for i, index in enumerate(torch.arange(count, device=split.labels.device).split(BATCH_SIZE)):
        progress(i * BATCH_SIZE / count)
        x, y = split.inputs[index].float() / 255.0, None
        if model.conditional:
            y = split.labels[index] if split.conditions is None else split.conditions[index]
        for k, nll in importance_weighted_nlls(model, x, y, index, counts).items():
            parts[k].append(nll)
    return {k: torch.cat(part) for k, part in parts.items()}


def bits_per_dimension(nats: Scalars, num_dimensions: int) -> Scalars:
    """Convert nats per image to bits per dimension."""
    return nats / (num_dimensions * math.log(2.0))


@torch.no_grad()
def score_batch(model: Autoencoder, batch: Batch, num_samples: int = 0) -> dict[str, Nats]:
    """Return the metrics of every image of a batch by name, in nats or bits.

    Args:
        num_samples: K of nll_kK, the importance-weighted bound; 0 to skip it.
    """
    x, y, indices, _ = batch.or_placeholder()
    label = y if model.conditional else None
    eps = noise.standard_normal(
        indices, (model.latent_dim,), seed=_EVALUATION_SEED, stream=noise.Stream.POSTERIOR
    )
    values = model.metrics(model.terms(x, label, eps))
    if isinstance(model, VAE) and num_samples:
        nll = importance_weighted_nll(model, x, label, indices, num_samples)
        values[f"{model.nats_name('nll')}_k{num_samples}"] = nll
        if (model.likelihood.num_levels or 0) > 2:
            bits = bits_per_dimension(nll, model.num_dimensions)
            values[f"bits_per_dim_k{num_samples}"] = bits
    return {name: value[: len(batch.x)] for name, value in values.items()}
