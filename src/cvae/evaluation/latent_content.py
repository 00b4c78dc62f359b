"""Claim: z carries the properties of an image that y leaves out."""

import logging

from cvae.evaluation.claim import Metric, Metrics, NotApplicable
from cvae.evaluation.probes import Values, mlp_values, ridge_values
from cvae.evaluation.subject import Subject

log = logging.getLogger(__name__)


def latent_content(subject: Subject) -> Metrics:
    """Return how well probes predict the other attributes of test images from samples of z.

    Measures every numeric column of ``data.attributes`` that is not part of y: R² of a ridge
    regression and of a 2 x 256 perceptron; the floor is 0. Class indices are treated as continuous.
    """
    splits = subject.train, subject.validation, subject.test
    metrics: Metrics = {}
    for name in subject.test.attributes:
        columns = [split.attributes[name] for split in splits]
        if not all(values.isfinite().all() for values in columns):
            log.warning("latent_content: skipping %s, some of its values are not finite", name)
            continue
        # standardize first: float32 rounds away small differences of large numbers
        mean, std = columns[0].mean(), columns[0].std(correction=0)
        train, validation, test = (((v - mean) / std.clamp_min(1e-300)).float() for v in columns)
        metrics |= probe_property(subject, name, train, validation, test)
    if not metrics:
        raise NotApplicable("the data have no numeric attributes that vary, other than y")
    return metrics


def probe_property(
    subject: Subject, name: str, train: Values, validation: Values, test: Values
) -> Metrics:
    """Return R² of both probes for a continuous property of the images.

    Return nothing if the property is the same for all images.
    """
    if len(train.unique()) < 2 or len(test.unique()) < 2:
        return {}
    z = subject.test_posterior.sample()
    subject.progress("ridge probe", 0.0)
    predicted = {
        "ridge": ridge_values((subject.train_posterior.sample(), train), z),
        "mlp": mlp_values(
            lambda epoch: (subject.train_posterior.sample(epoch), train),
            (subject.validation_posterior.sample(), validation),
            z,
            lambda share: subject.progress("perceptron probe", share),
        ),
    }
    return {
        f"latent/{name}_r2_{probe}": _measure_r2(estimates, test)
        for probe, estimates in predicted.items()
    }


def _measure_r2(predicted: Values, values: Values) -> Metric:
    errors = (predicted - values).double().square()
    return Metric.r2(errors, (values - values.mean()).double().square(), floor=0.0)
