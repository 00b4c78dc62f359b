"""The bound: how many nats a test image costs, by every count that figures are quoted in."""

import math
from functools import lru_cache

import torch

from cvae.evaluation.claim import Metric, Metrics, NotApplicable, Subject, as_vae, standard_error
from cvae.evaluation.generative_classifier import log_marginal
from cvae.evaluation.likelihood import BATCH, score_batch, split_nlls
from cvae.models import bits_per_dimension
from cvae.types import Batch, Nats

_USUAL_COUNTS = (1, 50)  # K that are always reported, beside the one asked for


def bound(subject: Subject) -> Metrics:
    """Nats per test image, binarized once; an ``nll`` is an upper bound, lower with a larger K.

    The joint is ``-log p(x|y) + log C``: the C labels that have training images are equally likely,
    others have no prior mass. The marginal is the model's own, ``-log 1/C sum_y p(x|y)``: K samples
    for the image's label, fewer for the others (:mod:`cvae.evaluation.generative_classifier`), and
    still an upper bound. They are upper bounds on -log p(x, y) and -log p(x), the quantities to
    compare with an unconditional model's nll.
    """
    count = len(subject.test.labels)
    parts: dict[str, list[Nats]] = {}
    for index in torch.arange(count).split(BATCH):
        x, y = subject.inputs(subject.test, index)
        one_hot = torch.nn.functional.one_hot(subject.test.labels[index], subject.num_classes)
        batch = Batch(x, one_hot.float() if y is None else y, index, len(index))
        for name, values in score_batch(subject.model, batch).items():
            parts.setdefault(f"test/{name}", []).append(values)
    found = {name: torch.cat(values) for name, values in parts.items()}
    metrics: Metrics = {}
    try:
        nlls = test_nlls(subject)
    except NotApplicable:
        nlls = {}
    for k, nll in nlls.items():
        found[f"test/nll_k{k}"] = nll
    if nlls and subject.model.conditional:
        k, nll = max(nlls), nlls[max(nlls)]
        found[f"test/joint_nll_k{k}"] = nll + math.log(len(subject.classes))
        found[f"test/marginal_nll_k{k}"] = -log_marginal(subject, nll)
    for name, values in found.items():
        metrics[name] = Metric(float(values.double().mean()), "nats", standard_error(values))
    if nlls:
        k, num_pixels = max(nlls), math.prod(subject.model.image_shape)
        nats = metrics[f"test/nll_k{k}"]
        metrics[f"test/bits_per_dim_k{k}"] = Metric(
            bits_per_dimension(nats.value, num_pixels),
            "bits",
            bits_per_dimension(nats.standard_error or 0.0, num_pixels),
        )
    return metrics


@lru_cache(maxsize=1)
def test_nlls(subject: Subject) -> dict[int, Nats]:
    """The importance-weighted bound of every test image by K, at the K asked for and the usual."""
    model = as_vae(subject)
    counts = sorted({k for k in _USUAL_COUNTS if k < subject.num_samples} | {subject.num_samples})

    def tell(share: float) -> None:
        subject.progress(f"bound, K = {max(counts)}", share)

    return split_nlls(model, subject.test, counts, tell)
