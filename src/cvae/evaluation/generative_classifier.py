"""The likelihood knows the label: the most likely label of an image, by the model's p(x | y)."""

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from cvae.bounds import BATCH, importance_weighted_nll
from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.subject import LabelBounds, Subject, as_vae, conditional_model
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
        best = subject.classes[label_bounds(subject, stage).log_p.argmax(1)]
        name = f"test/generative_accuracy_k{_STAGES[stage][0]}"
        metrics[name] = Metric.share(best == subject.test.labels)
    return metrics


def log_marginal(subject: Subject, nll: Nats) -> Nats:
    """Return a lower bound on log p(x), with equal mass on the labels that have training images.

    From 50 samples for the labels that come near the best, and 5 for the others.

    Args:
        nll: of every test image with its own label, as tight as there is one.
    """
    log_p = label_bounds(subject, _MARGINAL_STAGE).log_p.clone()
    own = torch.searchsorted(subject.classes, subject.test.labels)
    log_p[torch.arange(len(nll)), own] = -nll
    return log_p.logsumexp(dim=1) - math.log(len(subject.classes))


def label_bounds(subject: Subject, stage: int) -> LabelBounds:
    """Bounds of all test images and labels after a stage, kept in the subject.

    A label that was given up before this stage keeps the bound of fewer samples.

    Raises:
        NotApplicable: the model takes no label.
    """
    conditional_model(subject)
    for k, hopeless in _STAGES[len(subject.label_bounds) : stage + 1]:
        subject.label_bounds.append(_tightened(subject, k, hopeless))
    return subject.label_bounds[stage]


def _tightened(subject: Subject, num_samples: int, hopeless: float) -> LabelBounds:
    count, classes = len(subject.test.labels), len(subject.classes)
    log_p, pairs = torch.zeros(count, classes), torch.arange(count * classes)
    if subject.label_bounds:
        log_p, pairs = subject.label_bounds[-1]
    bounds = _bounds(subject, pairs, num_samples)
    log_p = log_p.flatten().index_put((pairs,), bounds).view(count, classes)
    in_reach = log_p > log_p.max(dim=1, keepdim=True).values - hopeless
    in_reach &= (in_reach.sum(1) > 1)[:, None]
    # a label that was given up stays so
    return LabelBounds(log_p, pairs[in_reach.flatten()[pairs]])


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
