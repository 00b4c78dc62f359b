"""How likely the model finds images: the bound it trains on, and the importance-weighted one."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from cvae import noise
from cvae.models import VAE, Autoencoder
from cvae.types import Batch, Image, ImageIndices, Nats, OneHot, Split

_EVALUATION_SEED = 0  # never a run's: all runs and epochs are scored with the same noise
# how many at a time changes no result: few enough for the caches of a processor
BATCH = 128  # images, or pairs of image and label
_MAX_ROWS = 2048  # evaluations of the decoder


@torch.no_grad()
def importance_weighted_nll(
    model: VAE,
    x: Image,
    y: OneHot | None,
    index: ImageIndices,
    num_samples: int,
    max_rows: int = _MAX_ROWS,
) -> Nats:
    r"""An upper bound on :math:`-\log p(x|y)` on average, in nats per image, by one draw.

    .. math:: -\log \frac1K \sum_{k=1}^K \frac{p(x|z_k,y)\,p(z_k)}{q(z_k|x,y)},\quad z_k \sim q

    (Burda, Grosse and Salakhutdinov 2016, equation 8), in log space; tighter with more samples. The
    noise is keyed by image and sample, so an image's value does not depend on the batch or on
    ``max_rows``.

    Args:
        index: position of each image in its split, the key of its noise.
        num_samples: K.
        max_rows: decoder evaluations held in memory at a time.
    """
    return importance_weighted_nlls(model, x, y, index, [num_samples], max_rows)[num_samples]


@torch.no_grad()
def importance_weighted_nlls(
    model: VAE,
    x: Image,
    y: OneHot | None,
    index: ImageIndices,
    counts: Sequence[int],
    max_rows: int = _MAX_ROWS,
) -> dict[int, Nats]:
    """:func:`importance_weighted_nll` for several K, each from the first K of the same samples."""
    if min(counts) < 1:
        raise ValueError(f"num_samples={min(counts)}: at least 1")
    chunk = max(2, max_rows // max(1, len(x)) // 2 * 2)  # even: noise comes in pairs
    total = x.new_full((len(x),), -math.inf)  # log of the sum of the weights so far
    found: dict[int, Nats] = {}
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
                found[k] = math.log(k) - torch.logaddexp(total, part)
        total = torch.logaddexp(total, log_w.logsumexp(dim=1))
    return {k: found[k] for k in counts}


def split_nlls(
    model: VAE,
    split: Split,
    counts: Sequence[int],
    progress: Callable[[float], None] = lambda share: None,
) -> dict[int, Nats]:
    """:func:`importance_weighted_nlls` of all images of a split; ``progress`` is told its share."""
    parts: dict[int, list[Nats]] = {k: [] for k in counts}
    for index in torch.arange(len(split.labels)).split(BATCH):
        progress(float(index[0]) / len(split.labels))
        x, y = split.inputs[index].float() / 255.0, None
        if model.conditional:
            y = F.one_hot(split.labels[index], model.num_classes).float()
        for k, nll in importance_weighted_nlls(model, x, y, index, counts).items():
            parts[k].append(nll)
    return {k: torch.cat(part) for k, part in parts.items()}


@torch.no_grad()
def score_batch(model: Autoencoder, batch: Batch, num_samples: int = 0) -> dict[str, Nats]:
    """The metrics of every image of a batch by name, in nats.

    Args:
        num_samples: K of nll_kK, the importance-weighted bound; 0 to leave it out.
    """
    x, y, indices, _ = batch.with_stand_in()
    label = y if model.conditional else None
    eps = noise.standard_normal(
        indices, (model.latent_dim,), seed=_EVALUATION_SEED, stream=noise.Stream.POSTERIOR
    )
    values = model.metrics(model.terms(x, label, eps))
    if isinstance(model, VAE) and num_samples:
        nll = importance_weighted_nll(model, x, label, indices, num_samples)
        values[f"nll_k{num_samples}"] = nll
    return {name: value[: len(batch.x)] for name, value in values.items()}
