"""The claims: mathematics on data whose answer is known."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw
from rich.console import Console
from skimage.transform import AffineTransform, warp
from torch import Tensor

from cvae import schema
from cvae.evaluation import aggregated_posterior, label_control, oracle, report, style, variety
from cvae.evaluation.claim import Metric, Posterior, Subject
from cvae.evaluation.claims import CLAIMS
from cvae.evaluation.generative_classifier import label_bounds, log_marginal
from cvae.evaluation.likelihood import importance_weighted_nll, importance_weighted_nlls
from cvae.evaluation.morphology import slant, thickness
from cvae.evaluation.oracle import Classifier, Oracle, train_classifier
from cvae.evaluation.prior_samples import fitted_draws, frechet_distance
from cvae.evaluation.probes import logistic_predictions, mlp_predictions
from cvae.models import CVAE, VAE, Autoencoder
from cvae.types import Split
from tests.test_models import ALL_IMAGES, label_for, log_evidence, make, network


def normal(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_the_schema_names_the_claims() -> None:
    assert tuple(CLAIMS) == schema.CLAIMS


# the likelihood


def test_several_counts_share_their_samples() -> None:
    model = make(CVAE)
    assert isinstance(model, CVAE)
    index, y = torch.arange(16), label_for(model, 16)
    for max_rows in (16, 48, 100_000):
        found = importance_weighted_nlls(model, ALL_IMAGES, y, index, (1, 5, 50), max_rows)
        for k, values in found.items():
            alone = importance_weighted_nll(model, ALL_IMAGES, y, index, k)
            torch.testing.assert_close(values, alone, atol=1e-4, rtol=0)


def test_chunks_change_no_value_at_k_5000() -> None:
    """To 1e-3 nats an image and 1e-4 in the mean, in float32, on images of 784 pixels."""
    torch.manual_seed(0)
    model = CVAE(network, latent_dim=6)
    index = torch.arange(3)
    x = (normal(0, 3, 1, 28, 28) > 1).float()
    y = torch.eye(10)[index]
    few, many = (importance_weighted_nll(model, x, y, index, 5000, rows) for rows in (300, 15_000))
    assert (few - many).abs().max() < 1e-3
    assert (few.mean() - many.mean()).abs() < 1e-4


class Linear(torch.nn.Module):
    """p(x | z) with logits w z: all that a one-dimensional latent needs."""

    def __init__(self, image_shape: tuple[int, ...], **given: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.w = torch.nn.Parameter(torch.tensor([1.5, -2.0, 0.5, 1.0]))

    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.stack([0.3 * x.flatten(1).sum(1) - 0.6, torch.full((len(x),), -0.1)], dim=1)

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        return (z * self.w).view(-1, *self.image_shape)


def test_the_estimator_finds_the_evidence() -> None:
    """Of a one-dimensional latent, integrated on a grid; from above on the way."""
    model = VAE(Linear, 1, image_shape=(1, 2, 2), num_classes=4)
    truth = -log_evidence(model.double(), ALL_IMAGES.double(), None).detach().float()
    model = model.float()
    found = importance_weighted_nlls(model, ALL_IMAGES, None, torch.arange(16), (1, 50, 5000))
    torch.testing.assert_close(found[5000], truth, atol=0.05, rtol=0)
    assert found[1].mean() > found[50].mean() > found[5000].mean() - 0.01
    assert torch.exp(-truth).sum() == pytest.approx(1.0, abs=1e-3)


# the oracle


def bars(count: int, seed: int, num_classes: int = 3) -> Split:
    """Images that show their label as the place of a bar."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % num_classes
    pixels = torch.randint(0, 60, (count, 1, 12, 12), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(y.tolist()):
        pixels[i, 0, 2:10, 1 + 4 * label : 3 + 4 * label] = 220
    binary = (pixels > 128).to(torch.uint8) * 255
    return Split(pixels, binary, y)


TRAIN, VALIDATION, TEST = bars(240, 0), bars(30, 1), bars(45, 2)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(TRAIN, VALIDATION, 3, tmp_path_factory.mktemp("oracle"))


def test_the_oracle_learns_grey_and_binarized_images(known: Oracle) -> None:
    assert known.accuracy(TEST.grey.float() / 255, TEST.labels) > 0.95
    assert known.accuracy(TEST.inputs.float() / 255, TEST.labels) > 0.95


def test_the_oracle_is_kept_and_rebuilt_when_damaged(
    known: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known.folder is not None
    before = known.classifier.state_dict()
    (file,) = known.folder.glob("oracle-*.pt")
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "train_classifier", lambda *a: pytest.fail("trained again"))
        again = Oracle(TRAIN, VALIDATION, 3, known.folder).classifier
    torch.testing.assert_close(again.state_dict(), before)
    content = file.read_bytes()
    for damage in (b"", b"<html>", content[: len(content) // 2]):
        file.write_bytes(damage)
        rebuilt = Oracle(TRAIN, VALIDATION, 3, known.folder).classifier
        torch.testing.assert_close(rebuilt.state_dict(), before)
    assert file.stat().st_size > len(content) // 2
    assert not list(known.folder.glob(".*.tmp"))


def test_other_digits_have_another_oracle(known: Oracle) -> None:
    other = TRAIN._replace(labels=TRAIN.labels.roll(1))
    assert Oracle(other, VALIDATION, 3)._key() != known._key()


def test_validation_selects_and_the_test_images_are_not_asked() -> None:
    """Whatever the validation labels are, the epoch kept is one that was best on them."""
    model = train_classifier((TRAIN.grey, TRAIN.labels), (TEST.grey, TEST.labels), 3, 2, 0.5)
    assert isinstance(model, Classifier)
    assert not model.training


# stroke thickness and slant


def stroke(width: float, shear: float = 0.0) -> np.ndarray:  # type: ignore[type-arg]
    """An upright bar of a width in pixels, sheared to the right; drawn 8 times finer."""
    page = PILImage.new("L", (56 * 8, 56 * 8))
    middle, half = 28 * 8, width * 4
    ImageDraw.Draw(page).rectangle((middle - half, 14 * 8, middle + half - 1, 42 * 8 - 1), fill=255)
    fine = np.asarray(page, dtype=np.float64) / 255
    # output (x, y) comes from input (x + shear (y - middle), y); rows go down
    to_upright = AffineTransform(np.array([[1, shear, -shear * middle], [0, 1, 0], [0, 0, 1.0]]))
    fine = warp(fine, to_upright)
    return fine.reshape(56, 8, 56, 8).mean(axis=(1, 3))


def as_images(*pictures: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(np.stack(pictures)).float()[:, None]


def test_thickness_of_drawn_strokes() -> None:
    widths = [2.0, 3.0, 4.0, 6.0]
    found = thickness(as_images(*(stroke(w) for w in widths)))
    assert found == pytest.approx(widths, abs=0.35)
    assert (np.diff(found) > 0.6).all()


@pytest.mark.parametrize("shear", [-0.6, -0.2, 0.0, 0.3, 0.7])
def test_slant_of_sheared_strokes(shear: float) -> None:
    found = slant(as_images(stroke(3.0, shear)))[0]
    assert found == pytest.approx(math.degrees(math.atan(shear)), abs=1.0)


def test_slant_does_not_depend_on_thickness() -> None:
    found = slant(as_images(*(stroke(w, 0.4) for w in (2.0, 5.0))))
    assert found[0] == pytest.approx(found[1], abs=1.5)


def test_no_ink_has_no_style() -> None:
    blank = torch.zeros(1, 1, 28, 28)
    assert math.isnan(thickness(blank)[0])
    assert math.isnan(slant(blank)[0])
    assert thickness(torch.ones(1, 1, 8, 8))[0] > 0


def test_moved_points_lie_along_the_direction() -> None:
    z, direction = normal(0, 4, 3), torch.tensor([[0.6, 0.0, 0.8]])
    points = style.moved(z, direction).view(4, -1, 3)
    along = points @ direction[0]
    torch.testing.assert_close(along, torch.linspace(-2.5, 2.5, 11).expand(4, -1))
    across = torch.tensor([[0.8, 0.0, -0.6], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(points @ across.T, (z @ across.T)[:, None].expand(-1, 11, -1))


def test_style_correlation_of_shared_and_of_unrelated_values() -> None:
    shared, noise = (normal(n, n, 4000).double().numpy() for n in (1, 10))
    assert style.mean_correlation(shared.repeat(10, axis=0)) == pytest.approx(1.0)
    assert style.mean_correlation(noise) == pytest.approx(0.0, abs=0.03)
    assert style.mean_correlation(shared + noise) == pytest.approx(0.5, abs=0.03)


# the latent


def test_mmd_vanishes_under_the_null_and_not_beside_it() -> None:
    values = [
        aggregated_posterior.mmd_squared(normal(i, 300, 4), normal(1000 + i, 300, 4))[0]
        for i in range(60)
    ]
    mean, error = np.mean(values), np.std(values) / 60**0.5
    assert abs(mean) < 4 * error  # unbiased: negative as often
    assert min(values) < 0
    away, _ = aggregated_posterior.mmd_squared(normal(1, 300, 4) + 0.5, normal(2, 300, 4))
    assert away > 10 * max(values)


def test_the_standard_error_of_mmd_is_its_spread_over_draws() -> None:
    found = [
        aggregated_posterior.mmd_squared(normal(i, 200, 4) + 0.5, normal(1000 + i, 300, 4))
        for i in range(100)
    ]
    values, errors = zip(*found, strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


def test_mmd_is_the_sum_over_pairs() -> None:
    a, b = normal(0, 5, 2), normal(1, 4, 2)

    def k(u: Tensor, v: Tensor) -> float:
        return sum(
            math.exp(-float((u - v).square().sum()) / (2 * s * 2)) for s in (0.25, 0.5, 1, 2, 4)
        )

    by_hand = (
        sum(k(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j) / 20
        + sum(k(u, v) for i, u in enumerate(b) for j, v in enumerate(b) if i != j) / 12
        - 2 * sum(k(u, v) for u in a for v in b) / 20
    )
    assert aggregated_posterior.mmd_squared(a, b)[0] == pytest.approx(by_hand, abs=1e-5)


def test_active_units() -> None:
    mean = normal(0, 500, 4) * torch.tensor([1.0, 0.5, 0.05, 0.0])
    posterior = Posterior(mean, mean, torch.ones(500, 4), lambda z: z)
    assert aggregated_posterior.active_units(posterior) == 2


def test_dimensions_that_are_only_noise_are_not_active() -> None:
    """The mean of a base variable is found from a few draws, which vary by themselves."""
    draws = normal(0, 16, 2000, 3)
    draws[..., 0] += normal(1, 2000)
    error = draws.var(0).mean(0) / 16
    found = Posterior(draws.mean(0), draws[0], draws[0], lambda z: z, error)
    assert aggregated_posterior.active_units(found) == 1


def ring(seed: int, count: int = 1500) -> tuple[Tensor, Tensor]:
    """Inside or outside of a circle, half and half: no line tells them apart."""
    z = normal(seed, count, 2)
    return z, (z.square().sum(1) > 2 * math.log(2)).long()


def test_a_linear_probe_does_not_see_what_a_perceptron_does() -> None:
    z, truth = ring(1)
    linear = (logistic_predictions(ring(2), z) == truth).float().mean()
    curious = (mlp_predictions(lambda e: ring(10 + e), ring(3), z, 2) == truth).float().mean()
    assert linear < 0.65
    assert curious > 0.95


def test_a_probe_finds_nothing_where_there_is_nothing() -> None:
    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return normal(seed, 1500, 2), torch.arange(1500) % 2

    z, truth = draw(1)
    right = (mlp_predictions(lambda e: draw(10 + e), draw(2), z, 2) == truth).float().mean()
    assert right == pytest.approx(0.5, abs=0.06)


# samples


def test_frechet_distance_has_its_closed_form() -> None:
    """Of two Gaussians: |difference of means|^2 + sum of (difference of deviations)^2."""
    a = normal(0, 20_000, 3)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov())).T  # exact moments
    std, shift = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0.0, 3.0, 0.0])
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-4)
    assert frechet_distance(a * std + shift, a) == pytest.approx(9 + 1 + 0.25, rel=1e-3)


def test_fitted_draws_follow_the_codes() -> None:
    codes = torch.cat([normal(0, 500, 2) + 5, normal(1, 500, 2) - 5])
    drawn = fitted_draws(codes, 2, 1000)
    assert drawn.abs().mean(0).tolist() == pytest.approx([5, 5], abs=0.3)
    assert ((drawn > 0).float().mean(0) - 0.5).abs().max() < 0.1
    one = fitted_draws(codes, 1, 1000)
    assert one.std(0).tolist() == pytest.approx(codes.std(0).tolist(), rel=0.1)


def test_recall_and_coverage_of_the_same_and_of_less() -> None:
    real, fake = normal(0, 400, 2), normal(1, 400, 2)
    for measure in (variety.recalled, variety.covered):
        assert measure(real, real).all()
        assert measure(real, fake).float().mean() > 0.9
        assert measure(real, fake + 50).float().mean() == 0
        one_mode = measure(real, fake.abs()).float().mean()
        assert one_mode < 0.55  # a quarter of the plane, and its rim


def test_spread_within_a_label() -> None:
    label = np.arange(4000) % 2
    values = normal(0, 4000).numpy().astype(np.float64) * np.array([1.0, 2.0])[label] + 100 * label
    values[:4] = np.nan
    assert variety.within_label_std(values, label, (0, 1)) == pytest.approx(2.5**0.5, rel=0.05)


# whole claims, on a model whose answers are known


class Templates(torch.nn.Module):
    """Decodes every label to its bar, whatever z says; encodes nothing."""

    def __init__(self, image_shape: tuple[int, ...], num_classes: int, **given: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        bar = torch.stack([TRAIN.inputs[TRAIN.labels == c][0] for c in range(3)]).float() / 255
        self.register_buffer("logits", 8 * bar - 4)
        self.relabel = [0, 1, 2]

    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.zeros(len(x), 4)

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        assert isinstance(self.logits, Tensor)
        label = torch.zeros(len(z)).long() if y is None else y.argmax(1)
        return self.logits[torch.tensor(self.relabel)[label]] + z.sum(1)[:, None, None, None] * 0.01


def subject(kind: type[Autoencoder], known: Oracle, num_samples: int = 50) -> Subject:
    model = kind(Templates, 2, image_shape=(1, 12, 12), num_classes=3).eval()
    return Subject(model, TRAIN, VALIDATION, TEST, known, num_samples, num_generated=20)


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
    return split.of(torch.tensor(classes))


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


def test_a_target_is_met_or_missed() -> None:
    assert Metric(0.5, at_least=0.4).is_met
    assert not Metric(0.5, at_most=0.4).is_met
    assert Metric(1.0, at_least=0.85, at_most=1.15).is_met
    assert Metric(1.0).is_met is None


def test_claims_record_no_gradients(known: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(_: Subject) -> dict[str, Metric]:
        return {"with gradients": Metric(float(torch.is_grad_enabled()))}

    monkeypatch.setitem(CLAIMS, "bound", bound)  # type: ignore[arg-type]
    found = report.evaluate(subject(CVAE, known), ["bound"])
    assert found.metrics["bound"]["with gradients"].value == 0


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
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="cvae.terminal")
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


def test_a_target_within_the_error_is_neither_met_nor_missed() -> None:
    assert Metric(0.5, standard_error=0.05, at_least=0.4).standing == "near"
    assert Metric(0.5, standard_error=0.04, at_least=0.4).standing == "met"
    assert Metric(0.5, standard_error=0.05, at_most=0.4).standing == "near"
    assert Metric(0.5, at_most=0.4).standing == "missed"
    assert Metric(0.5, at_most=0.5).standing == "met"
    assert Metric(1.0, standard_error=0.1).standing is None
