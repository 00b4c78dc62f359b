"""Claim: a sample has the requested attributes."""

import numpy as np
import torch

from cvae.conditions import Attributes
from cvae.evaluation.claim import Metric, Metrics, NotApplicable, bootstrap_error
from cvae.evaluation.oracle import Labels, Values, predict, train_classifier, train_regressor
from cvae.evaluation.sampled import SampledSubject

_EPOCHS = 5  # of the classifiers


def attribute_control(subject: SampledSubject) -> Metrics:
    """Return how often, and how closely, samples have the requested attributes.

    For a categorical attribute, ``agreement`` is the share of decoder means that a classifier of
    real images assigns the requested class. For a continuous one, ``error`` is the median absolute
    difference, in the unit of the data, between the requested value and the value that a regressor
    of real images predicts. The floors are the accuracy and the error on test images. The requested
    attributes are those of training images; z is from N(0, I).
    """
    if not subject.model.conditional:
        raise NotApplicable("the model takes no attributes")
    if not isinstance(subject.model.condition, Attributes):
        raise NotApplicable("y has no attributes; see label_control")
    requested = subject.samples.requested
    train, validation, test = (
        split.conditions for split in (subject.train, subject.validation, subject.test)
    )
    assert requested is not None
    assert train is not None
    assert validation is not None
    assert test is not None
    metrics: Metrics = {}
    for name, part in subject.model.condition.parts.items():
        values = [part.select(y) for y in (train, validation, test, requested)]
        if part.kind == "categorical":
            metrics[f"samples/{name}_agreement"] = _measure_agreement(subject, part.size, *values)
        else:
            metrics[f"samples/{name}_error"] = _measure_error(subject, *values)
    return metrics


def _measure_agreement(
    subject: SampledSubject,
    num_classes: int,
    train: Labels,
    validation: Labels,
    test: Labels,
    requested: Labels,
) -> Metric:
    if torch.equal(test, subject.test.labels):  # the oracle classifies labels already
        floor = (subject.test_prediction.labels == test).double().mean()
        return Metric.share(subject.samples.predicted == requested, float(floor))
    classifier = train_classifier(
        (subject.train.grey, train),
        (subject.validation.grey, validation),
        num_classes,
        _EPOCHS,
        subject.binarized_share,
        subject.progress,
    )
    floor = (predict(classifier, subject.test_grey).labels == test).double().mean()
    predicted = predict(classifier, subject.samples.means).labels
    return Metric.share(predicted == requested, float(floor))


def _measure_error(
    subject: SampledSubject,
    train: Values,
    validation: Values,
    test: Values,
    requested: Values,
) -> Metric:
    regressor = train_regressor(
        (subject.train.grey, train),
        (subject.validation.grey, validation),
        subject.binarized_share,
        subject.progress,
    )
    floor = float((regressor(subject.test_grey) - test).abs().median())
    errors = (regressor(subject.samples.means) - requested).abs().double().cpu().numpy()
    error = bootstrap_error(lambda index: float(np.median(errors[index])), len(errors))
    return Metric(float(np.median(errors)), "", error, floor)
