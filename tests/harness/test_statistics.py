"""Statistics over runs, on numbers whose answer is known."""

import math
from pathlib import Path

import pytest
import yaml

from harness.reports import comparison, run_results
from tests.conftest import ROOT


def test_runs_are_averaged_with_the_sample_standard_deviation() -> None:
    runs = [
        run_results.Run(Path(str(i)), {}, i, {"test/nll_k50": value}, {"test/nll_k50": "nats"})
        for i, value in enumerate((80.0, 82.0, 87.0))
    ]
    statistics = comparison.make_group("all", runs).statistics["test/nll_k50"]
    assert statistics.mean == pytest.approx(83.0)
    assert statistics.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert comparison.make_group("one", runs[:1]).statistics["test/nll_k50"].std is None


@pytest.mark.parametrize(
    ("metric", "lower_is_better"),
    [
        ("test/nll_k50", True),
        ("test/bits_per_dim_k50", True),
        ("samples/frechet_distance", True),
        ("latent/mmd_ratio", True),
        ("latent/label_accuracy_mlp", True),
        ("test/kl", True),
        ("test/elbo", False),
        ("test/reconstruction", False),
        ("samples/label_agreement", False),
        ("samples/cas", False),
        ("style/r2_slant", False),
    ],
)
def test_the_best_group_comes_first_by_every_metric(metric: str, lower_is_better: bool) -> None:
    groups = [
        comparison.make_group(name, [run_results.Run(Path(name), {}, 1, {metric: value}, {})])
        for name, value in (("low", 0.1), ("high", 0.9))
    ]
    lower = yaml.safe_load((ROOT / "conf" / "compare.yaml").read_text())["lower_is_better"]
    first = comparison.sort_groups(groups, metric, lower)[0].title
    assert first == ("low" if lower_is_better else "high")


def test_shares_are_shown_as_percentages() -> None:
    runs = [
        run_results.Run(Path(str(i)), {}, i, {"samples/cas": value}, {"samples/cas": "%"})
        for i, value in enumerate((0.98, 0.99))
    ]
    assert (
        comparison.format_cell(comparison.make_group("all", runs), "samples/cas") == "98.50 ± 0.71%"
    )
