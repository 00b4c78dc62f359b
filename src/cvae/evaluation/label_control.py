"""Claim: a sample shows the requested digit."""

import torch
from torchmetrics.functional.classification import multiclass_accuracy

from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.sampled import SampledSubject
from cvae.evaluation.subject import require_label

_ROW_SIZE = 10  # samples per label, as in the label grid


def label_control(subject: SampledSubject) -> Metrics:
    """Return label agreement: the share of samples that the oracle assigns the requested label.

    ``label_agreement`` scores decoder means and ``label_agreement_drawn`` sampled pixels; their
    floors are the oracle's accuracy on test images and on the test inputs of the model.
    ``label_agreement_worst`` is the lowest agreement of a label that has test images.
    ``rows_right`` is the share of rows of 10 samples without an error.
    """
    require_label(subject)
    samples, count = subject.samples, len(subject.classes)
    drawn = subject.oracle.predict(samples.drawn).labels
    test = subject.test.labels
    is_correct = (samples.predicted == samples.labels).double()
    is_correct_drawn = (drawn == samples.labels).double()
    # every label is decoded from the same z, so only the means over labels are independent
    by_label, by_label_drawn = is_correct.view(count, -1), is_correct_drawn.view(count, -1)
    has_test_images = torch.isin(subject.classes, test)
    worst = int(by_label.mean(1).where(has_test_images, torch.inf).argmin())
    real_accuracy = multiclass_accuracy(
        subject.test_prediction.labels, test, subject.num_classes, average="none"
    )[subject.classes[has_test_images]]
    rows = torch.cat([row.prod()[None] for r in by_label for row in r.split(_ROW_SIZE)])
    floor, floor_drawn = (
        float((prediction.labels == test).double().mean())
        for prediction in (subject.test_prediction, subject.test_prediction_drawn)
    )
    return {
        "samples/label_agreement": Metric.share(is_correct, floor, by_label.mean(0)),
        "samples/label_agreement_drawn": Metric.share(
            is_correct_drawn, floor_drawn, by_label_drawn.mean(0)
        ),
        "samples/label_agreement_worst": Metric.share(by_label[worst], float(real_accuracy.min())),
        "samples/rows_right": Metric.share(rows),
    }
