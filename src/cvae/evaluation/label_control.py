"""Claim: a sample shows the requested digit."""

import torch
from torchmetrics.functional.classification import multiclass_accuracy

from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.sampled import SampledSubject
from cvae.evaluation.subject import labelled_model

_ROW = 10  # samples per label, as in the label grid


def label_control(subject: SampledSubject) -> Metrics:
    """Return label agreement: the share of samples that the oracle assigns the requested label.

    ``label_agreement`` scores decoder means and ``label_agreement_drawn`` sampled pixels; their
    floors are the oracle's accuracy on test images and on the test inputs of the model.
    ``label_agreement_worst`` is the agreement of the worst label with test images. ``rows_right``
    is the share of rows of 10 samples without an error.
    """
    labelled_model(subject)
    samples, count = subject.samples, len(subject.classes)
    drawn = subject.oracle.predict(samples.drawn).labels
    test = subject.test.labels
    right = (samples.predicted == samples.labels).double()
    right_drawn = (drawn == samples.labels).double()
    # every label is decoded from the same z, so only the means over labels are independent
    by_label, by_label_drawn = right.view(count, -1), right_drawn.view(count, -1)
    has_test_images = torch.isin(subject.classes, test)
    worst = int(by_label.mean(1).where(has_test_images, torch.inf).argmin())
    real = multiclass_accuracy(
        subject.test_prediction.labels, test, subject.num_classes, average="none"
    )[subject.classes[has_test_images]]
    rows = torch.cat([row.prod()[None] for r in by_label for row in r.split(_ROW)])
    floor, floor_drawn = (
        float((prediction.labels == test).double().mean())
        for prediction in (subject.test_prediction, subject.test_prediction_drawn)
    )
    return {
        "samples/label_agreement": Metric.share(right, floor, by_label.mean(0)),
        "samples/label_agreement_drawn": Metric.share(
            right_drawn, floor_drawn, by_label_drawn.mean(0)
        ),
        "samples/label_agreement_worst": Metric.share(by_label[worst], float(real.min())),
        "samples/rows_right": Metric.share(rows),
    }
