"""Subjects whose oracle is trained once for all tests."""

from cvae.evaluation.oracle import Oracle
from cvae.evaluation.sampled import SampledSubject
from cvae.models import Autoencoder
from cvae.types import Split
from tests.science.evaluation.synthetic import TEST, TRAIN, VALIDATION, Templates


def make_sampled_subject(
    model: Autoencoder,
    oracle: Oracle,
    num_samples: int = 50,
    train: Split = TRAIN,
    validation: Split = VALIDATION,
    test: Split = TEST,
) -> SampledSubject:
    subject = SampledSubject(model, train, validation, test, num_samples, num_generated=20)
    subject.oracle = oracle
    return subject


def make_subject(
    model_class: type[Autoencoder], oracle: Oracle, num_samples: int = 50
) -> SampledSubject:
    model = model_class(Templates, 2, image_shape=(1, 12, 12), num_classes=3).eval()
    return make_sampled_subject(model, oracle, num_samples)
