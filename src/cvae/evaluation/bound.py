"""The bound: how many nats a test image costs, by every count that figures are quoted in."""

import math

import torch

from cvae.bounds import BATCH, score_batch, split_nlls
from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.generative_classifier import log_marginal
from cvae.evaluation.subject import Subject
from cvae.models import VAE
from cvae.types import Nats

_USUAL_COUNTS = (1, 50)  # K that are always reported, beside the one asked for


def bound(subject: Subject) -> Metrics:
    """Nats per test image, binarized once; an ``nll`` is an upper bound, lower with a larger K.

    The joint is ``-log p(x|y) + log C``: the C labels that have training images are equally likely,
    others have no prior mass. The marginal is the model's own, ``-log 1/C sum_y p(x|y)``: K samples
    for the image's label, fewer for the others (:mod:`cvae.evaluation.generative_classifier`), and
    still an upper bound. They are upper bounds on -log p(x, y) and -log p(x), the quantities to
    compare with an unconditional model's nll.
    """
    parts: dict[str, list[Nats]] = {}
    for index in torch.arange(len(subject.test.labels)).split(BATCH):
        for name, values in score_batch(subject.model, subject.test_batch(index)).items():
            parts.setdefault(f"test/{name}", []).append(values)
    found = {name: torch.cat(values) for name, values in parts.items()}
    nlls = _nlls(subject, subject.model) if isinstance(subject.model, VAE) else {}
    for k, nll in nlls.items():
        found[f"test/nll_k{k}"] = nll
    if nlls and subject.model.conditional:
        k, nll = max(nlls), nlls[max(nlls)]
        found[f"test/joint_nll_k{k}"] = nll + math.log(len(subject.classes))
        found[f"test/marginal_nll_k{k}"] = -log_marginal(subject, nll)
    metrics = {name: Metric.mean(values.double(), "nats") for name, values in found.items()}
    if nlls:
        k, num_pixels = max(nlls), math.prod(subject.model.image_shape)
        nats = metrics[f"test/nll_k{k}"]
        metrics[f"test/bits_per_dim_k{k}"] = Metric(
            bits_per_dimension(nats.value, num_pixels),
            "bits",
            bits_per_dimension(nats.standard_error or 0.0, num_pixels),
        )
    return metrics


def _nlls(subject: Subject, model: VAE) -> dict[int, Nats]:
    """The importance-weighted bound of every test image by K, at the K asked for and the usual."""
    counts = sorted({k for k in _USUAL_COUNTS if k < subject.num_samples} | {subject.num_samples})

    def tell(share: float) -> None:
        subject.progress(f"bound, K = {max(counts)}", share)

    return split_nlls(model, subject.test, counts, tell)


def bits_per_dimension(nats: float, num_dimensions: int) -> float:
    """Nats per image as bits per pixel."""
    return nats / (num_dimensions * math.log(2.0))
