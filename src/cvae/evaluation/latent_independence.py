"""Claim: z carries little information about y."""

from torch import Tensor

from cvae.conditions import Part
from cvae.evaluation.claim import Metric, Metrics, NotApplicable
from cvae.evaluation.latent_content import probe_property
from cvae.evaluation.probes import logistic_predictions, mlp_predictions
from cvae.evaluation.subject import Subject
from cvae.given_pixels import Quadrants
from cvae.types import Split


def latent_independence(subject: Subject) -> Metrics:
    """Return how well probes predict each part of y from samples of z of test images.

    For a categorical part, the accuracy of a logistic regression and of a 2 x 256 perceptron; the
    floor is chance: the share of the most frequent class. For a continuous part, R² of a ridge
    regression and of the perceptron; the floor is 0.
    """
    metrics: Metrics = {}
    for name, part in subject.model.condition.parts.items():
        if part.kind != "image":
            measure = _measure_accuracy if part.kind == "categorical" else _measure_r2
            metrics |= measure(subject, name, part)
    if not metrics and isinstance(subject.model.condition, Quadrants):
        raise NotApplicable("the condition is a part of the image")
    if not metrics:
        raise NotApplicable("y is the same for all images")
    return metrics


def _select_part(split: Split, part: Part) -> Tensor:
    return split.labels if split.conditions is None else part.select(split.conditions)


def _measure_accuracy(subject: Subject, name: str, part: Part) -> Metrics:
    labels, train_labels = _select_part(subject.test, part), _select_part(subject.train, part)
    if len(train_labels.unique()) < 2:
        return {}
    z = subject.test_posterior.sample()
    chance = float(labels.bincount().max() / len(labels))
    subject.progress("logistic probe", 0.0)
    logistic = logistic_predictions((subject.train_posterior.sample(), train_labels), z)
    perceptron = mlp_predictions(
        lambda epoch: (subject.train_posterior.sample(epoch), train_labels),
        (subject.validation_posterior.sample(), _select_part(subject.validation, part)),
        z,
        part.size,
        lambda share: subject.progress("perceptron probe", share),
    )
    return {
        f"latent/{name}_accuracy_logistic": Metric.share(logistic == labels, chance),
        f"latent/{name}_accuracy_mlp": Metric.share(perceptron == labels, chance),
    }


def _measure_r2(subject: Subject, name: str, part: Part) -> Metrics:
    train, validation, test = (
        _select_part(split, part) for split in (subject.train, subject.validation, subject.test)
    )
    return probe_property(subject, name, train, validation, test)
