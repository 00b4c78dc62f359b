"""The likelihood knows the label: the most likely label of an image, by the model's p(x | y)."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cvae.evaluation.claim import (
    Metric,
    Metrics,
    Subject,
    as_vae,
    conditional_model,
    standard_error,
)
from cvae.evaluation.likelihood import BATCH, importance_weighted_nll
from cvae.types import Nats

_STAGES = ((5, 20.0), (50, 10.0), (500, 0.0))  # K, and the nats behind that end a label's chances
_MARGINAL_STAGE = 1  # whose bounds are tight enough for log p(x)


def generative_classifier(subject: Subject) -> Metrics:
    """Share of test images whose label is argmax_y of the bound on log p(x | y), by K.

    For a wrong label the posterior is off and the bound too low, which flatters a small K: hence
    two of them. More samples are worth a few nats, so labels 20 nats behind the best after 5
    samples, or 10 after 50, are given up, and images with no other label left are decided.
    """
    metrics: Metrics = {}
    for stage in range(_MARGINAL_STAGE, len(_STAGES)):
        log_p, _ = label_bounds(subject, stage)
        right = (subject.classes[log_p.argmax(1)] == subject.test.labels).double()
        metrics[f"test/generative_accuracy_k{_STAGES[stage][0]}"] = Metric(
            float(right.mean()), "%", standard_error(right), at_least=0.985
        )
    return metrics


def log_marginal(subject: Subject, nll: Nats) -> Nats:
    """Return a lower bound on log p(x), with equal mass on the labels that have training images.

    From 50 samples for the labels that come near the best, and 5 for the others.

    Args:
        nll: of every test image with its own label, as tight as there is one.
    """
    log_p = label_bounds(subject, _MARGINAL_STAGE)[0].clone()
    own = torch.searchsorted(subject.classes, subject.test.labels)
    log_p[torch.arange(len(nll)), own] = -nll
    return log_p.logsumexp(dim=1) - math.log(len(subject.classes))


@lru_cache(maxsize=len(_STAGES))
def label_bounds(
    subject: Subject, stage: int
) -> tuple[Float[Tensor, "num_images num_trained"], Int64[Tensor, " num_pairs"]]:
    """Lower bounds on log p(x | y) of all test images and labels, and the pairs not given up.

    The columns are the labels that have training images, ``subject.classes``.
    A label that was given up before this stage keeps the bound of fewer samples.
    """
    conditional_model(subject)
    count, classes = len(subject.test.labels), len(subject.classes)
    log_p, pairs = torch.zeros(count, classes), torch.arange(count * classes)
    if stage:
        log_p, pairs = label_bounds(subject, stage - 1)
    k, hopeless = _STAGES[stage]
    log_p = log_p.flatten().index_put((pairs,), _bounds(subject, pairs, k)).view(count, classes)
    in_reach = log_p > log_p.max(dim=1, keepdim=True).values - hopeless
    in_reach &= (in_reach.sum(1) > 1)[:, None]
    return log_p, pairs[in_reach.flatten()[pairs]]  # who was given up stays so


def _bounds(subject: Subject, pairs: Int64[Tensor, " num_pairs"], num_samples: int) -> Nats:
    """Return the bound for pairs, numbered image * len(classes) + index of the label in classes."""
    model, classes = as_vae(subject), subject.classes
    parts = [torch.zeros(0)]
    for part in pairs.split(BATCH):
        subject.progress(f"every label, K = {num_samples}", BATCH * len(parts) / (len(pairs) + 1))
        image, label = part // len(classes), classes[part % len(classes)]
        x = subject.test.inputs[image].float() / 255.0
        y = subject.condition(label)
        parts.append(-importance_weighted_nll(model, x, y, image, num_samples))
    return torch.cat(parts)
