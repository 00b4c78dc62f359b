"""Claim: the model's p(x | y) is highest for the label of the image."""

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from cvae.bounds import BATCH_SIZE, importance_weighted_nll
from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.subject import LabelBounds, Subject, require_label, require_vae
from cvae.types import Nats

# K, and how many nats a dropped label is behind the best one
_STAGES = ((5, 20.0), (50, 10.0), (500, 0.0))
_MARGINAL_STAGE = 1  # its bounds are tight enough for log p(x)


def generative_classifier(subject: Subject) -> Metrics:
    """Return the share of test images whose label is argmax_y of the bound on log p(x | y), by K.

    A small K overestimates the accuracy, because the bound is loosest for wrong labels; hence two
    values of K. More samples gain only a few nats, so labels 20 nats behind the best after 5
    samples, or 10 after 50, are dropped. An image with one remaining label gets no more samples.
    """
    metrics: Metrics = {}
    for stage in range(_MARGINAL_STAGE, len(_STAGES)):
        best = subject.classes[label_bounds(subject, stage).log_p.argmax(1)]
        name = f"test/generative_accuracy_k{_STAGES[stage][0]}"
        metrics[name] = Metric.share(best == subject.test.labels)
    return metrics


def log_marginal(subject: Subject, nll: Nats) -> Nats:
    """Return a lower bound on log p(x), with equal mass on the labels that have training images.

    The bound of the image's own label is ``nll``. Of the other labels, those near the best have 50
    samples, the rest 5.

    Args:
        nll: bound of every test image with its own label, at the largest K.
    """
    log_p = label_bounds(subject, _MARGINAL_STAGE).log_p.clone()
    own_label = torch.searchsorted(subject.classes, subject.test.labels)
    log_p[torch.arange(len(nll), device=nll.device), own_label] = -nll
    return log_p.logsumexp(dim=1) - math.log(len(subject.classes))


def label_bounds(subject: Subject, stage: int) -> LabelBounds:
    """Return the bounds of all test images and labels after a stage, cached in the subject.

    A label that an earlier stage dropped keeps the bound of fewer samples.

    Raises:
        NotApplicable: the model is a plain autoencoder, or its condition is not one label.
    """
    require_label(subject)
    for k, margin in _STAGES[len(subject.label_bounds) : stage + 1]:
        subject.label_bounds.append(_refine_bounds(subject, k, margin))
    return subject.label_bounds[stage]


def _refine_bounds(subject: Subject, num_samples: int, margin: float) -> LabelBounds:
    count, classes = len(subject.test.labels), len(subject.classes)
    log_p = torch.zeros(count, classes, device=subject.device)
    pairs = torch.arange(count * classes, device=subject.device)
    if subject.label_bounds:
        log_p, pairs = subject.label_bounds[-1]
    bounds = _compute_bounds(subject, pairs, num_samples)
    log_p = log_p.flatten().index_put((pairs,), bounds).view(count, classes)
    is_close = log_p > log_p.max(dim=1, keepdim=True).values - margin
    is_close &= (is_close.sum(1) > 1)[:, None]
    # a dropped label stays dropped
    return LabelBounds(log_p, pairs[is_close.flatten()[pairs]])


def _compute_bounds(subject: Subject, pairs: Int64[Tensor, " num_pairs"], num_samples: int) -> Nats:
    """Return the bound for pairs, numbered image * len(classes) + index of the label in classes."""
    model, classes = require_vae(subject), subject.classes
    parts = [torch.zeros(0, device=subject.device)]
    for part in pairs.split(BATCH_SIZE) if len(pairs) else ():
        subject.progress(
            f"all labels, K = {num_samples}", BATCH_SIZE * len(parts) / (len(pairs) + 1)
        )
        image, label = part // len(classes), classes[part % len(classes)]
        x = subject.test.inputs[image].float() / 255.0
        y = subject.condition(label)
        parts.append(-importance_weighted_nll(model, x, y, image, num_samples))
    return torch.cat(parts)
