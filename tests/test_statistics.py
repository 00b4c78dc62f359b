"""Statistics behind the claims, on data whose answer is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cvae import comparison
from cvae.evaluation import aggregated_posterior, style, variety
from cvae.evaluation.claim import Posterior, bootstrap_error, standard_error
from cvae.evaluation.likelihood import importance_weighted_nll, split_nlls
from cvae.evaluation.oracle import Oracle
from cvae.models import CVAE
from cvae.types import Split
from tests.test_evaluation import TEST, TRAIN, known, normal, subject  # noqa: F401
from tests.test_models import make


def test_standard_error_of_a_mean() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert standard_error(values) == pytest.approx(math.sqrt((5 / 3) / 4))
    assert standard_error(values[:1]) == 0.0


def test_the_bootstrap_finds_the_standard_error_of_a_mean() -> None:
    values = normal(0, 400).double().numpy()
    found = bootstrap_error(lambda index: float(values[index].mean()), len(values))
    assert found == pytest.approx(standard_error(values), rel=0.15)


def test_the_null_quantile_is_exceeded_once_in_twenty(known: Oracle) -> None:  # noqa: F811
    one = subject(CVAE, known)
    limit, spread = aggregated_posterior.mmd_null(one, 200)
    draws = [
        aggregated_posterior.mmd_squared(normal(i, 200, 2), normal(5000 + i, 200, 2))[0]
        for i in range(200)
    ]
    assert 2 <= sum(value > limit for value in draws) <= 24  # 10 expected
    assert spread == pytest.approx(np.std(draws, ddof=1), rel=0.25)
    # a degenerate U-statistic: it falls as 1 / size
    big = aggregated_posterior.mmd_null(one, 4000)[0]
    small = aggregated_posterior.mmd_null(one, 1000)[0]
    assert big == pytest.approx(small / 4)


def test_a_factor_that_z_holds_is_found_with_its_direction(
    known: Oracle,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The factor is 3 z1 - 4 z0 plus 100 per label, and R^2 within labels is still 1."""
    one = subject(CVAE, known)
    train_z, test_z = normal(0, len(TRAIN.labels), 2), normal(1, len(TEST.labels), 2)

    def value(z: Tensor, labels: Tensor) -> np.ndarray:  # type: ignore[type-arg]
        return (3 * z[:, 1] - 4 * z[:, 0] + 100 * labels).double().numpy()

    count = len(one.reference.labels)
    factor = style.Factor(
        value(test_z, TEST.labels), value(train_z[:count], one.reference.labels), np.zeros(60)
    )
    for name, z in (("train_posterior", train_z), ("test_posterior", test_z)):
        one.__dict__[name] = Posterior(z, z, torch.zeros_like(z), lambda w: w)
    monkeypatch.setattr(style, "factors", lambda subject: {"slant": factor})
    ridge = style.ridges.__wrapped__(one)["slant"]
    torch.testing.assert_close(ridge.direction, torch.tensor([[-0.8, 0.6]]), atol=0.02, rtol=0)
    r2 = 1 - (ridge.test_errors**2).mean() / (ridge.test_centred**2).mean()
    assert r2 > 0.99


def test_rank_correlation_has_the_sign_of_the_trend() -> None:
    rising = np.arange(11.0)
    assert style._rho(rising) == pytest.approx(1.0)
    assert style._rho(-(rising**3)) == pytest.approx(-1.0)
    assert style._rho(np.zeros(11)) == 0.0
    assert style._rho(np.where(rising == 3, np.nan, rising)) == 0.0


def test_recall_is_of_fake_balls_and_coverage_of_real_ones() -> None:
    """One far fake point widens the balls of fake points, which raises recall but not coverage."""
    real, fake = normal(0, 200, 2), normal(1, 200, 2) * 0.05
    spread = torch.cat([fake, torch.tensor([[30.0, 0.0], [-30.0, 0.0], [0.0, 30.0], [0.0, -30.0]])])
    assert variety.recalled(real, fake).float().mean() < 0.2
    assert variety.recalled(real, spread).float().mean() == 1.0
    few = variety.covered(real, fake).float().mean()
    assert variety.covered(real, spread).float().mean() == few < 0.2


def test_the_nearest_training_image_is_of_the_same_label(known: Oracle) -> None:  # noqa: F811
    one = subject(CVAE, known)
    grey = TRAIN.grey[:6].float() / 255
    own = variety._nearest(one, grey, TRAIN.labels[:6])
    assert own.tolist() == pytest.approx([0.0] * 6, abs=5e-3)
    other = variety._nearest(one, grey, (TRAIN.labels[:6] + 1) % 3)
    by_hand = [
        float(
            (TRAIN.grey[TRAIN.labels == (y + 1) % 3].float() / 255 - x).flatten(1).norm(dim=1).min()
        )
        for x, y in zip(grey, TRAIN.labels[:6].tolist(), strict=True)
    ]
    assert sorted(other.tolist()) == pytest.approx(sorted(by_hand), abs=5e-3)


def test_the_bound_of_a_split_is_that_of_its_images() -> None:
    """Bounds are in the order of the split, and noise is keyed by the position of an image."""
    model = make(CVAE)
    assert isinstance(model, CVAE)
    count = 300  # more than a batch
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 2, (count, *model.image_shape), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % model.num_classes
    split = Split(pixels * 255, pixels * 255, labels)
    found = split_nlls(model, split, [3])[3]
    index = torch.tensor([0, 127, 128, 299])
    y = torch.nn.functional.one_hot(labels[index], model.num_classes).float()
    alone = importance_weighted_nll(model, pixels[index].float(), y, index, 3)
    torch.testing.assert_close(found[index], alone, atol=1e-5, rtol=0)


def test_runs_are_averaged_with_the_sample_standard_deviation() -> None:
    runs = [
        comparison.Run(Path(str(i)), {}, i, {"test/nll_k50": value}, {"test/nll_k50": "nats"})
        for i, value in enumerate((80.0, 82.0, 87.0))
    ]
    found = comparison.group("all", runs).statistics["test/nll_k50"]
    assert found.mean == pytest.approx(83.0)
    assert found.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert comparison.group("one", runs[:1]).statistics["test/nll_k50"].std is None


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
        comparison.group(name, [comparison.Run(Path(name), {}, 1, {metric: value}, {})])
        for name, value in (("low", 0.1), ("high", 0.9))
    ]
    first = comparison.sort_groups(groups, metric)[0].label
    assert first == ("low" if lower_is_better else "high")


def test_shares_are_shown_as_percentages() -> None:
    runs = [
        comparison.Run(Path(str(i)), {}, i, {"samples/cas": value}, {"samples/cas": "%"})
        for i, value in enumerate((0.98, 0.99))
    ]
    assert comparison.cell(comparison.group("all", runs), "samples/cas") == "98.50 ± 0.71%"
