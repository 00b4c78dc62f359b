"""All images in a row are clearly of the same number: is a sample the digit asked for?"""

import torch
from torchmetrics.functional.classification import multiclass_accuracy

from cvae.evaluation.claim import Metric, Metrics, Subject, conditional_model, standard_error

_ROW = 10  # samples of one label, as in the article's grid


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
    real_grey, real_drawn = subject.test_prediction.labels, subject.test_prediction_drawn.labels
    right = (samples.predicted == samples.labels).double()
    # the same z is decoded with every label, so a z is what is drawn independently
    by_label = right.view(count, -1)
    by_label_drawn = (drawn == samples.labels).double().view(count, -1)
    has_test_images = torch.isin(subject.classes, test)
    worst = int(by_label.mean(1).where(has_test_images, torch.inf).argmin())
    real = multiclass_accuracy(real_grey, test, subject.num_classes, average="none")
    real = real[subject.classes[has_test_images]]
    rows = torch.cat([row.prod()[None] for r in by_label for row in r.split(_ROW)])
    return {
        "samples/label_agreement": Metric(
            float(right.mean()),
            "%",
            standard_error(by_label.mean(0)),
            float((real_grey == test).double().mean()),
            at_least=0.99,
        ),
        "samples/label_agreement_drawn": Metric(
            float(by_label_drawn.mean()),
            "%",
            standard_error(by_label_drawn.mean(0)),
            float((real_drawn == test).double().mean()),
            at_least=0.98,
        ),
        "samples/label_agreement_worst": Metric(
            float(by_label[worst].mean()),
            "%",
            standard_error(by_label[worst]),
            float(real.min()),
            at_least=0.97,
        ),
        "samples/rows_right": Metric(float(rows.mean()), "%", standard_error(rows)),
    }
