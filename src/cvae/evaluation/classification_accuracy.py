"""Samples can stand in for data: a classifier of real digits that learns from them alone."""

import torch

from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.oracle import SHORT_EPOCHS, predict, train_classifier
from cvae.evaluation.subject import Subject, bernoulli, conditional_model

_PER_LABEL = 6  # times Subject.num_generated: 60,000 at the default
_EPOCH = 1  # of the prior's draws: others than those of the samples


def classification_accuracy(subject: Subject) -> Metrics:
    """Classification accuracy score (Ravuri and Vinyals 2019), by the oracle's network.

    Trained on labelled decoder means and tested on grey digits; trained on Bernoulli samples and
    tested on binarized ones. Beside it the same training on real images.
    """
    conditional_model(subject)
    subject.progress("generating a training set", 0.0)
    labels = subject.classes.repeat_interleave(_PER_LABEL * subject.num_generated)
    means = subject.decode(subject.prior_draws(len(labels), _EPOCH), labels)
    binarized = subject.test.inputs.float() / 255.0
    metrics: Metrics = {}
    for name, generated, real in (
        ("samples/cas", means, subject.test_grey),
        ("samples/cas_drawn", bernoulli(means, _EPOCH), binarized),
    ):
        pixels = (generated * 255).round().to(torch.uint8)
        classifier = train_classifier(
            (pixels, labels), None, subject.num_classes, SHORT_EPOCHS, 0.0, subject.progress
        )
        ceiling = subject.oracle.ceiling(binarized=real is binarized)
        right = predict(classifier, real).labels == subject.test.labels
        best = predict(ceiling, real).labels == subject.test.labels
        metrics[name] = Metric.share(right, float(best.double().mean()))
    return metrics
