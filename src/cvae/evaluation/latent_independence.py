"""The system no longer relies on z to encode the digit: what can be read of it from z?"""

from cvae.evaluation.claim import Metric, Metrics, NotApplicable
from cvae.evaluation.probes import logistic_predictions, mlp_predictions
from cvae.evaluation.subject import Subject


def latent_independence(subject: Subject) -> Metrics:
    """Accuracy of probes that predict the label from draws of z, on test images.

    A linear reader, logistic regression, and a curious one, a perceptron 2 x 256; beside them the
    share of the most frequent label, which a reader of nothing reaches.
    """
    if len(subject.classes) < 2:
        raise NotApplicable("all training images have the same label")
    labels = subject.test.labels
    z = subject.test_posterior.draw()
    chance = float(labels.bincount().max() / len(labels))
    subject.progress("logistic probe", 0.0)
    linear = logistic_predictions((subject.train_posterior.draw(), subject.train.labels), z)
    curious = mlp_predictions(
        lambda epoch: (subject.train_posterior.draw(epoch), subject.train.labels),
        (subject.validation_posterior.draw(), subject.validation.labels),
        z,
        subject.num_classes,
        lambda share: subject.progress("perceptron probe", share),
    )
    return {
        "latent/label_accuracy_logistic": Metric.share(linear == labels, chance),
        "latent/label_accuracy_mlp": Metric.share(curious == labels, chance),
    }
