"""Whole claims, on a model whose answers are known."""

import gc
import math
import weakref

import pytest
import torch

from cvae.bounds import importance_weighted_nll
from cvae.evaluation import label_control, report, settings
from cvae.evaluation.bound import bits_per_dimension
from cvae.evaluation.claim import Metric
from cvae.evaluation.claims import CLAIMS
from cvae.evaluation.generative_classifier import label_bounds, log_marginal
from cvae.evaluation.oracle import Oracle
from cvae.evaluation.subject import Subject
from cvae.models import CVAE, VAE, Autoencoder
from cvae.types import Split
from tests.science.evaluation.known import TEST, TRAIN, VALIDATION, Templates, subject
from tests.science.test_models import network


def test_the_settings_name_the_claims() -> None:
    assert tuple(CLAIMS) == settings.CLAIMS


def test_label_control_counts_what_the_oracle_says(known: Oracle) -> None:
    good = subject(CVAE, known)
    found = label_control.label_control(good)
    assert found["samples/label_agreement"].value == 1.0
    assert found["samples/rows_right"].value == 1.0
    bad = subject(CVAE, known)
    assert isinstance(bad.model.network, Templates)
    bad.model.network.relabel = [0, 1, 1]  # a 2 is drawn as a 1
    found = label_control.label_control(bad)
    assert found["samples/label_agreement"].value == pytest.approx(2 / 3)
    assert found["samples/label_agreement_worst"].value == 0.0
    assert found["samples/rows_right"].value == pytest.approx(2 / 3)


def test_the_likelihood_knows_the_label_of_templates(known: Oracle) -> None:
    one = subject(CVAE, known)
    for stage in range(3):
        assert (label_bounds(one, stage)[0].argmax(1) == TEST.labels).all()
    assert isinstance(one.model, CVAE)
    y = one.condition(TEST.labels)
    nll = importance_weighted_nll(one.model, TEST.inputs.float() / 255, y, torch.arange(45), 50)
    marginal = log_marginal(one, nll)
    assert (marginal >= -nll - math.log(3) - 1e-4).all()  # a sum is at least its largest part
    assert (marginal <= -nll + 1e-4).all()  # and a mean at most


@pytest.mark.parametrize("kind", [Autoencoder, VAE, CVAE])
def test_every_claim_speaks_or_says_why_not(kind: type[Autoencoder], known: Oracle) -> None:
    if kind is Autoencoder:
        model = Autoencoder(network, 2, image_shape=(1, 12, 12), num_classes=3).eval()
        one = Subject(model, TRAIN, VALIDATION, TEST, known, num_samples=3, num_generated=20)
    else:
        one = subject(kind, known, num_samples=3)
    found = report.evaluate(one, list(CLAIMS))
    spoken, left_out = set(found.metrics) - {"oracle"}, set(found.left_out)
    assert spoken | left_out == set(CLAIMS)
    assert not spoken & left_out
    needs_label = {"label_control", "classification_accuracy", "generative_classifier"}
    assert left_out == (set() if kind is CVAE else needs_label)
    flat = report.as_json(found)["metrics"]
    grey = known.accuracy(TEST.grey.float() / 255, TEST.labels)
    assert flat["oracle/accuracy"]["value"] == pytest.approx(grey)
    assert ("test/nll_k3" in flat) == (kind is not Autoencoder)
    assert ("test/marginal_nll_k3" in flat) == (kind is CVAE)
    assert ("samples/frechet_distance_mixture" in flat) == (kind is Autoencoder)
    if kind is CVAE:
        assert flat["test/joint_nll_k3"]["value"] == pytest.approx(
            flat["test/nll_k3"]["value"] + math.log(3)
        )
        assert flat["samples/label_agreement"]["value"] == 1.0
        assert flat["latent/label_accuracy_mlp"]["value"] < 0.6  # z holds nothing
    else:
        assert not any(name.startswith("style/correlation") for name in flat)


def of_classes(split: Split, *classes: int) -> Split:
    wanted = torch.isin(split.labels, torch.tensor(classes))
    return Split(*(part[wanted] for part in split))


def test_a_label_without_training_images_has_no_part(known: Oracle) -> None:
    train = of_classes(TRAIN, 0, 2)
    model = CVAE(Templates, 2, image_shape=(1, 12, 12), num_classes=3).eval()
    one = Subject(model, train, VALIDATION, TEST, known, num_samples=3, num_generated=20)
    claims = ["bound", "label_control", "generative_classifier", "style"]
    flat = report.as_json(report.evaluate(one, claims))["metrics"]
    assert one.test.labels.unique().tolist() == [0, 2]
    assert one.samples.labels.unique().tolist() == [0, 2]
    assert one.samples.predicted.unique().tolist() == [0, 2]
    for name in ("label_agreement", "label_agreement_worst", "rows_right"):
        assert flat[f"samples/{name}"]["value"] == 1.0
    assert flat["samples/label_agreement_worst"]["floor"] == 1.0
    assert flat["test/generative_accuracy_k50"]["value"] == 1.0
    nll = flat["test/nll_k3"]["value"]
    assert flat["test/joint_nll_k3"]["value"] == pytest.approx(nll + math.log(2))
    assert nll < flat["test/marginal_nll_k3"]["value"] <= nll + math.log(2) + 1e-5


def test_a_label_without_test_images_is_not_the_worst(known: Oracle) -> None:
    one = subject(CVAE, known)
    assert isinstance(one.model.network, Templates)
    one.model.network.relabel = [0, 1, 0]
    one.test = of_classes(TEST, 0, 1)
    found = label_control.label_control(one)["samples/label_agreement_worst"]
    assert (found.value, found.floor) == (1.0, 1.0)


def test_data_with_a_single_label(known: Oracle) -> None:
    model = CVAE(Templates, 2, image_shape=(1, 12, 12), num_classes=3).eval()
    train, validation, test = (of_classes(split, 1) for split in (TRAIN, VALIDATION, TEST))
    one = Subject(model, train, validation, test, known, num_samples=3, num_generated=20)
    found = report.evaluate(one, ["bound", "label_control", "latent_independence", "style"])
    assert found.left_out == {"latent_independence": "all training images have the same label"}
    assert found.metrics["bound"]["test/joint_nll_k3"].value == pytest.approx(
        found.metrics["bound"]["test/nll_k3"].value
    )


def test_claims_record_no_gradients(known: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(_: Subject) -> dict[str, Metric]:
        return {"with gradients": Metric(float(torch.is_grad_enabled()))}

    monkeypatch.setitem(CLAIMS, "bound", bound)  # type: ignore[arg-type]
    found = report.evaluate(subject(CVAE, known), ["bound"])
    assert found.metrics["bound"]["with gradients"].value == 0


def test_a_subject_is_freed_after_its_claims(known: Oracle) -> None:
    """It holds all images: what is computed once is kept in it and not beside it."""
    one = subject(CVAE, known, num_samples=3)
    report.evaluate(one, ["bound", "generative_classifier", "style", "variety"])
    reference = weakref.ref(one)
    del one
    gc.collect()
    assert reference() is None


def test_bits_per_dimension() -> None:
    assert bits_per_dimension(784 * math.log(2), 784) == pytest.approx(1)
