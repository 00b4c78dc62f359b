"""Values, errors and targets, and the table that shows them."""

import fnmatch
import io
import math

import pytest
import torch
from rich.console import Console

from cvae.evaluation import report
from cvae.evaluation.claim import Metric, bootstrap_error, standard_error
from cvae.evaluation.claims import CLAIMS
from cvae.evaluation.oracle import Oracle
from cvae.evaluation.targets import TARGETS, with_targets
from cvae.models import CVAE
from tests.science.evaluation.known import normal, subject


def test_standard_error_of_a_mean() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert standard_error(values) == pytest.approx(math.sqrt((5 / 3) / 4))
    assert standard_error(values[:1]) == 0.0


def test_the_bootstrap_finds_the_standard_error_of_a_mean() -> None:
    values = normal(0, 400).double().numpy()
    found = bootstrap_error(lambda index: float(values[index].mean()), len(values))
    assert found == pytest.approx(standard_error(values), rel=0.15)


def test_a_target_is_met_or_missed() -> None:
    assert Metric(0.5, at_least=0.4).is_met
    assert not Metric(0.5, at_most=0.4).is_met
    assert Metric(1.0, at_least=0.85, at_most=1.15).is_met
    assert Metric(1.0).is_met is None


def test_a_target_within_the_error_is_neither_met_nor_missed() -> None:
    assert Metric(0.5, standard_error=0.05, at_least=0.4).standing == "near"
    assert Metric(0.5, standard_error=0.04, at_least=0.4).standing == "met"
    assert Metric(0.5, standard_error=0.05, at_most=0.4).standing == "near"
    assert Metric(0.5, at_most=0.4).standing == "missed"
    assert Metric(0.5, at_most=0.5).standing == "met"
    assert Metric(1.0, standard_error=0.1).standing is None


DEFAULT = {  # close to the values of the default CVAE
    "samples/label_agreement_drawn": Metric(0.9824, "%", 0.0039, 0.9927, at_least=0.98),
    "style/r2_thickness": Metric(0.822, "", 0.004, at_least=0.90),
    "latent/label_accuracy_logistic": Metric(0.113, "%", 0.003, 0.1135, at_most=0.2),
    "samples/sd_thickness_ratio": Metric(1.037, "", 0.02, 0.975, at_least=0.85, at_most=1.15),
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [80, 140])
def test_a_table_explains_its_marks_and_alarms_nobody(encoding: str, width: int) -> None:
    found = report.Report({"bound": DEFAULT}, {}, {})
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="harness.contract.terminal")
    report.print_table(found, "a [red] :smile: é", Console(file=stream, width=width))
    stream.seek(0)
    text = stream.read()
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("a [red] :smile: " + ("é" if encoding == "utf-8" else r"\xe9"))
    assert "✗" not in text
    met, at_least = ("✓", "≥") if encoding == "utf-8" else ("+", ">=")
    assert f"{at_least} 98.0 ~" in text
    assert f"{at_least} 0.90 -" in text
    assert f"0.85-1.15 {met}" in text
    assert f"{met} met, ~ within two s.e. of it, - not met" in text


def test_a_target_may_depend_on_what_was_measured() -> None:
    found = with_targets(
        {
            "test/generative_accuracy_k50": Metric(0.9, "%"),
            "samples/recall": Metric(0.7, "%", floor=0.8),
            "latent/mmd_ratio": Metric(7.0, floor=6.0, floor_error=0.25),
            "samples/label_agreement_x": Metric(0.9, "%"),
        }
    )
    assert found["test/generative_accuracy_k50"].at_least == 0.985
    assert found["samples/recall"].at_least == pytest.approx(0.64)
    assert found["latent/mmd_ratio"].at_most == 6.5
    assert found["samples/label_agreement_x"].is_met is None
    flat = report.as_json(report.Report({"aggregated_posterior": found}, {}, {}))["metrics"]
    assert set(flat["latent/mmd_ratio"]) == {"claim", "value", "unit", "floor", "at_most"}


def test_every_target_is_that_of_a_metric(known: Oracle) -> None:
    """And there is none unless it is asked for: targets are those of one model and one set."""
    one = subject(CVAE, known, num_samples=3)
    targeted = report.as_json(report.evaluate(one, list(CLAIMS), has_targets=True))["metrics"]
    having = {name for name, m in targeted.items() if "at_least" in m or "at_most" in m}
    assert all(fnmatch.filter(having, pattern) for pattern in TARGETS)
    plain = report.as_json(report.evaluate(one, ["bound", "label_control"]))["metrics"]
    assert not any("at_least" in m or "at_most" in m for m in plain.values())
