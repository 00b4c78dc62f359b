"""All images in a row are clearly of the same number: is a sample the digit asked for?"""

import torch
from torchmetrics.functional.classification import multiclass_accuracy

from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.subject import Subject, conditional_model

_ROW = 10  # samples of one label, as in the grid of pictures


def label_control(subject: Subject) -> Metrics:
    """Share of samples whose class, by the oracle, is the label asked for.

    Of decoder means, beside the oracle's accuracy on grey test digits; of Bernoulli samples, beside
    that on binarized ones; of the worst digit among those with test images; and the share of rows
    of 10 without an error.
    """
    conditional_model(subject)
    samples, count = subject.samples, len(subject.classes)
    drawn = subject.oracle.predict(samples.drawn).labels
    test = subject.test.labels
    right = (samples.predicted == samples.labels).double()
    right_drawn = (drawn == samples.labels).double()
    # the same z is decoded with every label, so a z is what is drawn independently
    by_label, by_label_drawn = right.view(count, -1), right_drawn.view(count, -1)
    has_test_images = torch.isin(subject.classes, test)
    worst = int(by_label.mean(1).where(has_test_images, torch.inf).argmin())
    real = multiclass_accuracy(
        subject.test_prediction.labels, test, subject.num_classes, average="none"
    )[subject.classes[has_test_images]]
    rows = torch.cat([row.prod()[None] for r in by_label for row in r.split(_ROW)])
    floor, floor_drawn = (
        float((found.labels == test).double().mean())
        for found in (subject.test_prediction, subject.test_prediction_drawn)
    )
    return {
        "samples/label_agreement": Metric.share(right, floor, by_label.mean(0)),
        "samples/label_agreement_drawn": Metric.share(
            right_drawn, floor_drawn, by_label_drawn.mean(0)
        ),
        "samples/label_agreement_worst": Metric.share(by_label[worst], float(real.min())),
        "samples/rows_right": Metric.share(rows),
    }
