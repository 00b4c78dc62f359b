"""Claim: a classifier of real digits can train on samples alone."""

import torch

from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.oracle import SHORT_EPOCHS, predict, train_classifier
from cvae.evaluation.sampled import SampledSubject
from cvae.evaluation.subject import require_label

_SIZE_FACTOR = 6  # times Subject.num_generated; 60,000 images by default
_EPOCH = 1  # of the prior noise; SampledSubject.samples uses 0


def classification_accuracy(subject: SampledSubject) -> Metrics:
    """Return the classification accuracy score (Ravuri and Vinyals 2019) of the oracle's network.

    ``cas`` trains on decoder means and tests on test images; ``cas_drawn`` trains on sampled pixels
    and tests on the inputs of the model, usually binarized. The floor is the score after the same
    training on real images.
    """
    require_label(subject)
    subject.progress("generating a training set", 0.0)
    labels = subject.classes.repeat_interleave(_SIZE_FACTOR * subject.num_generated)
    z = subject.sample_prior(len(labels), _EPOCH)
    means, drawn = subject.decode_and_sample(z, labels, _EPOCH)
    inputs = subject.test.inputs.float() / 255.0
    metrics: Metrics = {}
    for name, generated, real in (
        ("samples/cas", means, subject.test_grey),
        ("samples/cas_drawn", drawn, inputs),
    ):
        pixels = (generated * 255).round().to(torch.uint8)
        classifier = train_classifier(
            (pixels, labels), None, subject.num_classes, SHORT_EPOCHS, 0.0, subject.progress
        )
        ceiling = subject.oracle.ceiling(binarized=real is inputs and subject.is_binary)
        is_correct = predict(classifier, real).labels == subject.test.labels
        is_ceiling_correct = predict(ceiling, real).labels == subject.test.labels
        metrics[name] = Metric.share(is_correct, float(is_ceiling_correct.double().mean()))
    return metrics
