"""Tests of whole claims, on models with known results."""

import fnmatch
import gc
import io
import math
import weakref

import pytest
import torch
from rich.console import Console

from cvae.evaluation import label_control, report
from cvae.evaluation.claim import Metric
from cvae.evaluation.claims import CLAIMS
from cvae.evaluation.oracle import Oracle
from cvae.evaluation.progress import claim_progress
from cvae.evaluation.subject import Subject
from cvae.evaluation.targets import TARGETS, add_targets
from cvae.models import CVAE, VAE, Autoencoder
from cvae.types import Split
from tests.science.evaluation.sampled.subjects import make_sampled_subject, make_subject
from tests.science.evaluation.synthetic import TEST, TRAIN, VALIDATION, Templates
from tests.science.test_models import make_network


def test_label_control_counts_the_predictions_of_the_oracle(trained_oracle: Oracle) -> None:
    good = make_subject(CVAE, trained_oracle)
    found = label_control.label_control(good)
    assert found["samples/label_agreement"].value == 1.0
    assert found["samples/rows_right"].value == 1.0
    bad = make_subject(CVAE, trained_oracle)
    assert isinstance(bad.model.network, Templates)
    bad.model.network.relabel = [0, 1, 1]  # a 2 is drawn as a 1
    found = label_control.label_control(bad)
    assert found["samples/label_agreement"].value == pytest.approx(2 / 3)
    assert found["samples/label_agreement_worst"].value == 0.0
    assert found["samples/rows_right"].value == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def report_of_cvae(trained_oracle: Oracle) -> report.Report:
    """Return the results of all claims about a CVAE, with targets."""
    subject = make_subject(CVAE, trained_oracle, num_samples=3)
    return report.evaluate(subject, list(CLAIMS), has_targets=True)


@pytest.mark.parametrize("model_class", [Autoencoder, VAE, CVAE])
def test_every_claim_is_measured_or_skipped_with_a_reason(
    model_class: type[Autoencoder], trained_oracle: Oracle, report_of_cvae: report.Report
) -> None:
    if model_class is CVAE:
        result = report_of_cvae
    elif model_class is Autoencoder:
        model = Autoencoder(make_network, 2, image_shape=(1, 12, 12), num_classes=3).eval()
        subject = make_sampled_subject(model, trained_oracle, 3)
        result = report.evaluate(subject, list(CLAIMS))
    else:
        subject = make_subject(model_class, trained_oracle, num_samples=3)
        result = report.evaluate(subject, list(CLAIMS))
    measured, left_out = set(result.metrics) - {"oracle"}, set(result.left_out)
    assert measured | left_out == set(CLAIMS)
    assert not measured & left_out
    needs_label = {"label_control", "classification_accuracy", "generative_classifier"}
    needs_attributes = {"attribute_control", "latent_content"}
    assert left_out == needs_attributes | (set() if model_class is CVAE else needs_label)
    flat = report.to_json(result)["metrics"]
    grey = trained_oracle.accuracy(TEST.grey.float() / 255, TEST.labels)
    assert flat["oracle/accuracy"]["value"] == pytest.approx(grey)
    assert ("test/nll_k3" in flat) == (model_class is not Autoencoder)
    assert ("test/marginal_nll_k3" in flat) == (model_class is CVAE)
    assert ("samples/frechet_distance_mixture" in flat) == (model_class is Autoencoder)
    if model_class is CVAE:
        assert flat["test/joint_nll_k3"]["value"] == pytest.approx(
            flat["test/nll_k3"]["value"] + math.log(3)
        )
        assert flat["samples/label_agreement"]["value"] == 1.0
        assert flat["latent/label_accuracy_mlp"]["value"] < 0.6  # z carries no information
    else:
        assert not any(name.startswith("style/correlation") for name in flat)


def select_classes(split: Split, *classes: int) -> Split:
    wanted = torch.isin(split.labels, torch.tensor(classes))
    return split.select(wanted)


def test_a_label_without_training_images_is_ignored(trained_oracle: Oracle) -> None:
    train = select_classes(TRAIN, 0, 2)
    model = CVAE(Templates, 2, image_shape=(1, 12, 12), num_classes=3).eval()
    subject = make_sampled_subject(model, trained_oracle, 3, train)
    claims = ["bound", "label_control", "generative_classifier", "style"]
    flat = report.to_json(report.evaluate(subject, claims))["metrics"]
    assert subject.test.labels.unique().tolist() == [0, 2]
    assert subject.samples.labels.unique().tolist() == [0, 2]
    assert subject.samples.predicted.unique().tolist() == [0, 2]
    for name in ("label_agreement", "label_agreement_worst", "rows_right"):
        assert flat[f"samples/{name}"]["value"] == 1.0
    assert flat["samples/label_agreement_worst"]["floor"] == 1.0
    assert flat["test/generative_accuracy_k50"]["value"] == 1.0
    nll = flat["test/nll_k3"]["value"]
    assert flat["test/joint_nll_k3"]["value"] == pytest.approx(nll + math.log(2))
    assert nll < flat["test/marginal_nll_k3"]["value"] <= nll + math.log(2) + 1e-5


def test_a_label_without_test_images_is_not_the_worst(trained_oracle: Oracle) -> None:
    subject = make_subject(CVAE, trained_oracle)
    assert isinstance(subject.model.network, Templates)
    subject.model.network.relabel = [0, 1, 0]
    subject.test = select_classes(TEST, 0, 1)
    found = label_control.label_control(subject)["samples/label_agreement_worst"]
    assert (found.value, found.floor) == (1.0, 1.0)


def test_data_may_have_a_single_label(trained_oracle: Oracle) -> None:
    model = CVAE(Templates, 2, image_shape=(1, 12, 12), num_classes=3).eval()
    train, validation, test = (select_classes(split, 1) for split in (TRAIN, VALIDATION, TEST))
    subject = make_sampled_subject(model, trained_oracle, 3, train, validation, test)
    found = report.evaluate(subject, ["bound", "label_control", "latent_independence", "style"])
    assert found.left_out == {"latent_independence": "y is the same for all images"}
    assert found.metrics["bound"]["test/joint_nll_k3"].value == pytest.approx(
        found.metrics["bound"]["test/nll_k3"].value
    )


def test_claims_record_no_gradients(
    trained_oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bound(_: Subject) -> dict[str, Metric]:
        return {"with gradients": Metric(float(torch.is_grad_enabled()))}

    monkeypatch.setitem(CLAIMS, "bound", bound)  # type: ignore[arg-type]
    found = report.evaluate(make_subject(CVAE, trained_oracle), ["bound"])
    assert found.metrics["bound"]["with gradients"].value == 0


def test_a_log_gets_a_line_for_each_claim_that_ends(trained_oracle: Oracle) -> None:
    stream = io.StringIO()
    with claim_progress(Console(file=stream, width=20)) as progress:
        claims = ["label_control", "bound"]
        found = report.evaluate(make_subject(VAE, trained_oracle, 2), claims, progress=progress)
    assert stream.getvalue().splitlines() == [
        f"bound (1 of 2): {found.seconds['bound']} s",
        "label_control (2 of 2): skipped, the model takes no label",
    ]


def test_a_subject_is_freed_after_its_claims(trained_oracle: Oracle) -> None:
    """A subject holds all images, so no cache may keep a reference to it."""
    subject = make_subject(CVAE, trained_oracle, num_samples=3)
    report.evaluate(subject, ["bound", "generative_classifier", "style", "variety"])
    reference = weakref.ref(subject)
    del subject
    gc.collect()
    assert reference() is None


def test_every_target_belongs_to_a_metric(
    trained_oracle: Oracle, report_of_cvae: report.Report
) -> None:
    """Targets apply to one model and one dataset, so they are off by default."""
    targeted = report.to_json(report_of_cvae)["metrics"]
    having = {name for name, m in targeted.items() if "at_least" in m or "at_most" in m}
    assert all(fnmatch.filter(having, pattern) for pattern in TARGETS)
    subject = make_subject(CVAE, trained_oracle, num_samples=3)
    plain = report.to_json(report.evaluate(subject, ["bound", "label_control"]))["metrics"]
    assert not any("at_least" in m or "at_most" in m for m in plain.values())


def test_a_target_may_depend_on_the_metric() -> None:
    targeted = add_targets(
        {
            "test/generative_accuracy_k50": Metric(0.9, "%"),
            "samples/recall": Metric(0.7, "%", floor=0.8),
            "latent/mmd_ratio": Metric(7.0, floor=6.0, floor_error=0.25),
            "samples/label_agreement_x": Metric(0.9, "%"),
        }
    )
    assert targeted["test/generative_accuracy_k50"].at_least == 0.985
    assert targeted["samples/recall"].at_least == pytest.approx(0.64)
    assert targeted["latent/mmd_ratio"].at_most == 6.5
    assert targeted["samples/label_agreement_x"].is_met is None
    flat = report.to_json(report.Report({"aggregated_posterior": targeted}, {}, {}))["metrics"]
    assert set(flat["latent/mmd_ratio"]) == {"claim", "value", "unit", "floor", "at_most"}
