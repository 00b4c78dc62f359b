"""Tests of the claims about likelihood, on models with known results."""

import math

import pytest
import torch

from cvae.bounds import bits_per_dimension, importance_weighted_nll
from cvae.evaluation.bound import bound
from cvae.evaluation.generative_classifier import label_bounds, log_marginal
from cvae.models import CVAE, VAE
from tests.science.evaluation.synthetic import TEST, make_subject


@pytest.mark.parametrize("model_class", [VAE, CVAE])
def test_the_bound_is_tight_if_the_decoder_ignores_z(model_class: type[VAE]) -> None:
    """One sample then gives the same bound as many.

    The templates differ so much that x determines y, so the joint and marginal bounds agree.
    """
    values = {
        name: metric.value
        for name, metric in bound(make_subject(model_class, num_samples=60)).items()
    }
    assert values["test/nll_k60"] == pytest.approx(-values["test/elbo"], abs=0.05)
    assert values["test/nll_k60"] == pytest.approx(values["test/nll_k1"], abs=0.05)
    assert ("test/joint_nll_k60" in values) == (model_class is CVAE)
    if model_class is CVAE:
        assert values["test/joint_nll_k60"] == pytest.approx(values["test/nll_k60"] + math.log(3))
        assert values["test/marginal_nll_k60"] == pytest.approx(
            values["test/joint_nll_k60"], abs=0.1
        )


def test_the_generative_classifier_recognizes_templates() -> None:
    subject = make_subject(CVAE)
    for stage in range(3):
        assert (label_bounds(subject, stage)[0].argmax(1) == TEST.labels).all()
    assert isinstance(subject.model, CVAE)
    y = subject.condition(TEST.labels)
    nll = importance_weighted_nll(subject.model, TEST.inputs.float() / 255, y, torch.arange(45), 50)
    marginal = log_marginal(subject, nll)
    assert (marginal >= -nll - math.log(3) - 1e-4).all()  # a sum is at least its largest term
    assert (marginal <= -nll + 1e-4).all()  # a mean is at most its largest term


def test_bits_per_dimension_divide_nats_by_log_2_and_dimensions() -> None:
    assert bits_per_dimension(784 * math.log(2), 784) == pytest.approx(1)
