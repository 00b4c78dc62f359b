"""Claim: the model assigns a high likelihood to test images."""

import math

import torch

from cvae.bounds import BATCH_SIZE, bits_per_dimension, score_batch, split_nlls
from cvae.conditions import OneHot
from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.generative_classifier import log_marginal
from cvae.evaluation.subject import Subject
from cvae.models import VAE
from cvae.types import Nats

_STANDARD_COUNTS = (1, 50)  # K to report in addition to a larger num_samples


def bound(subject: Subject) -> Metrics:
    """Return the bounds in nats per test image; binary pixels are sampled once.

    ``nll_kK`` is an upper bound on -log p(x|y), tighter with a larger K. ``joint_nll_kK`` bounds
    -log p(x, y) = -log p(x|y) + log C: the C labels with training images are equally likely, others
    have no prior mass. ``marginal_nll_kK`` bounds -log p(x) = -log 1/C sum_y p(x|y), with K samples
    for the image's label and 50 or 5 for the others (:mod:`cvae.evaluation.generative_classifier`).
    Compare the last two with the nll of an unconditional model. A density has names such as
    ``nll_density_kK`` and no bits per dimension.
    """
    parts: dict[str, list[Nats]] = {}
    images = torch.arange(len(subject.test.labels), device=subject.device)
    for index in images.split(BATCH_SIZE):
        for key, values in score_batch(subject.model, subject.test_batch(index)).items():
            parts.setdefault(f"test/{key}", []).append(values)
    scores = {key: torch.cat(values) for key, values in parts.items()}
    name = subject.model.nats_name
    nlls = _compute_nlls(subject, subject.model) if isinstance(subject.model, VAE) else {}
    for k, nll in nlls.items():
        scores[f"test/{name('nll')}_k{k}"] = nll
    if nlls and subject.model.conditional and isinstance(subject.model.condition, OneHot):
        k, nll = max(nlls), nlls[max(nlls)]
        joint = nll + math.log(len(subject.classes))
        scores[f"test/{name('joint_nll')}_k{k}"] = joint
        scores[f"test/{name('marginal_nll')}_k{k}"] = -log_marginal(subject, nll)
    metrics = {key: Metric.mean(values.double(), "nats") for key, values in scores.items()}
    if nlls and subject.model.likelihood.num_levels:
        k, num_pixels = max(nlls), subject.model.num_dimensions
        nats = metrics[f"test/nll_k{k}"]
        metrics[f"test/bits_per_dim_k{k}"] = Metric(
            bits_per_dimension(nats.value, num_pixels),
            "bits",
            bits_per_dimension(nats.standard_error or 0.0, num_pixels),
        )
    return metrics


def _compute_nlls(subject: Subject, model: VAE) -> dict[int, Nats]:
    """Return the importance-weighted nll of every test image, by K."""
    counts = sorted(
        {k for k in _STANDARD_COUNTS if k < subject.num_samples} | {subject.num_samples}
    )

    def show_progress(share: float) -> None:
        subject.progress(f"bound, K = {max(counts)}", share)

    return split_nlls(model, subject.test, counts, show_progress)
