"""Claim: z carries the properties of an image that y leaves out."""

from cvae.evaluation.claim import Metric, Metrics, NotApplicable
from cvae.evaluation.probes import Values, mlp_values, ridge_values
from cvae.evaluation.subject import Subject


def latent_content(subject: Subject) -> Metrics:
    """Return how well probes predict the other attributes of test images from samples of z.

    Measures every numeric column of ``data.attributes`` that is not part of y: R² of a ridge
    regression and of a 2 x 256 perceptron; the floor is 0. Class numbers count as numbers.
    """
    splits = subject.train, subject.validation, subject.test
    metrics: Metrics = {}
    for name in subject.test.attributes:
        train, validation, test = (split.attributes[name].float() for split in splits)
        metrics |= probe_values(subject, name, train, validation, test)
    if not metrics:
        raise NotApplicable("the data have no attributes other than y")
    return metrics


def probe_values(
    subject: Subject, name: str, train: Values, validation: Values, test: Values
) -> Metrics:
    """Return R² of both probes for a continuous property of the images.

    Nothing is returned if the property is the same for all images.
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
    return {f"latent/{name}_r2_{probe}": _r2(found, test) for probe, found in predicted.items()}


def _r2(predicted: Values, values: Values) -> Metric:
    errors = (predicted - values).double().square()
    return Metric.r2(errors, (values - values.mean()).double().square(), floor=0.0)
