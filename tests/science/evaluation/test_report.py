"""Tests of values, errors and targets, and of the table that shows them."""

import io
import math
import re
from typing import get_args

import pytest
import torch
from rich.console import Console

from cvae.evaluation import report, settings
from cvae.evaluation.claim import Metric, bootstrap_error, standard_error
from cvae.evaluation.claims import CLAIMS
from cvae.evaluation.progress import claim_progress
from tests.science.evaluation.synthetic import randn


def test_the_standard_error_of_a_mean_matches_its_formula() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert standard_error(values) == pytest.approx(math.sqrt((5 / 3) / 4))
    assert standard_error(values[:1]) == 0.0


def test_the_bootstrap_agrees_with_the_standard_error_of_a_mean() -> None:
    values = randn(0, 400).double().numpy()
    found = bootstrap_error(lambda index: float(values[index].mean()), len(values))
    assert found == pytest.approx(standard_error(values), rel=0.15)


def test_a_target_is_met_or_missed() -> None:
    assert Metric(0.5, at_least=0.4).is_met
    assert not Metric(0.5, at_most=0.4).is_met
    assert Metric(1.0, at_least=0.85, at_most=1.15).is_met
    assert Metric(1.0).is_met is None


def test_a_target_within_the_error_is_neither_met_nor_missed() -> None:
    assert Metric(0.5, standard_error=0.05, at_least=0.4).status == "near"
    assert Metric(0.5, standard_error=0.04, at_least=0.4).status == "met"
    assert Metric(0.5, standard_error=0.05, at_most=0.4).status == "near"
    assert Metric(0.5, at_most=0.4).status == "missed"
    assert Metric(0.5, at_most=0.5).status == "met"
    assert Metric(1.0, standard_error=0.1).status is None


DEFAULT_METRICS = {  # close to the values of the default CVAE
    "samples/label_agreement_drawn": Metric(0.9824, "%", 0.0039, 0.9927, at_least=0.98),
    "style/r2_thickness": Metric(0.822, "", 0.004, at_least=0.90),
    "latent/label_accuracy_logistic": Metric(0.113, "%", 0.003, 0.1135, at_most=0.2),
    "samples/sd_thickness_ratio": Metric(1.037, "", 0.02, 0.975, at_least=0.85, at_most=1.15),
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [80, 140])
def test_a_table_explains_its_marks_in_80_columns(encoding: str, width: int) -> None:
    found = report.Report({"bound": DEFAULT_METRICS}, {}, {})
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


def test_a_terminal_shows_the_claim_its_number_and_the_time_left() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with claim_progress(console) as progress:
        progress.start_claim("generative_classifier", 5, 11)
        progress.update("all labels, K = 500", 0.25)
        progress.end_claim("9.5 s")
    shown = stream.getvalue()
    assert "generative_classifier (5 of 11): all labels, K = " in shown
    assert re.search(r" 25% +[-\d]+:", shown)
    assert "9.5 s" not in shown


def test_settings_list_all_claims() -> None:
    assert tuple(CLAIMS) == get_args(settings.Claim)
