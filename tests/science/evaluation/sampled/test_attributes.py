"""Claims about models of several attributes."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvae.conditions import Attributes
from cvae.data import ImagesDataModule
from cvae.evaluation.attribute_control import attribute_control
from cvae.evaluation.bound import bound
from cvae.evaluation.claim import NotApplicable
from cvae.evaluation.latent_content import latent_content
from cvae.evaluation.latent_independence import latent_independence
from cvae.evaluation.sampled import SampledSubject
from cvae.evaluation.subject import Subject, require_label
from cvae.models import CVAE, VAE
from tests.science.test_conditions import make_network, save_bars


def make_subject(model: VAE, data: ImagesDataModule) -> Subject:
    train, validation, test = data.splits().values()
    return Subject(model, train, validation, test, num_samples=3)


class HeightEncoder(torch.nn.Module):
    """Network that encodes the height of a bar, and not its label."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()

    def encode(self, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        height = (x[:, 0, :, 5].sum(1) - 6) / 3
        return torch.stack([height, torch.zeros_like(height) - 3], dim=1)

    def decode(self, z: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros(len(z), 1, 12, 12)


def test_probes_predict_the_encoded_height_but_not_the_label(tmp_path: Path) -> None:
    """The encoder is unconditional and returns the height of the bar."""

    data = save_bars(tmp_path)
    data.setup()
    assert data.condition is not None
    model = VAE(HeightEncoder, 1, (1, 12, 12), num_classes=2, condition=data.condition).eval()
    subject = make_subject(model, data)
    metrics = latent_independence(subject)
    assert list(metrics) == [
        "latent/label_accuracy_logistic",
        "latent/label_accuracy_mlp",
        "latent/height_r2_ridge",
        "latent/height_r2_mlp",
    ]
    assert metrics["latent/height_r2_mlp"].value > 0.95
    assert metrics["latent/height_r2_ridge"].value > 0.95
    assert metrics["latent/label_accuracy_mlp"].value < 0.75


def test_probes_predict_encoded_attributes_outside_y_but_not_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = {f"{split}_noise": rng.random(n) for split, n in (("train", 400), ("test", 80))}
    names = {f"{split}_name": np.full(n, "bar") for split, n in (("train", 400), ("test", 80))}
    data = save_bars(tmp_path, **noise, **names)
    data.condition = None
    data.setup()
    model = VAE(HeightEncoder, 1, (1, 12, 12), num_classes=2).eval()
    subject = make_subject(model, data)
    metrics = latent_content(subject)
    probes = ("ridge", "mlp")
    assert list(metrics) == [
        f"latent/{of}_r2_{probe}" for of in ("height", "noise") for probe in probes
    ]
    assert metrics["latent/height_r2_mlp"].value > 0.95
    assert metrics["latent/noise_r2_mlp"].value < 0.1
    for split, images in zip(data.splits().values(), (350, 50, 80), strict=True):
        height = (split.grey[:, 0, :, 5] > 0).sum(1)
        assert len(height) == images
        assert torch.equal(split.attributes["height"], height.double())


def test_attributes_with_large_values_are_probed_and_missing_values_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns: dict[str, Any] = {}
    for split, count in (("train", 400), ("test", 80)):
        height = np.load(save_bars(tmp_path).data_dir / "bars.npz")[f"{split}_height"]
        columns[f"{split}_time"] = 1e9 + height.astype(float)
        columns[f"{split}_rare"] = np.where(height > 10, 1, 0) * (np.arange(count) % 2)
        columns[f"{split}_missing"] = np.where(np.arange(count) == 3, np.nan, 1.0)
        columns[f"{split}_constant"] = np.ones(count)
    data = save_bars(tmp_path, **columns)
    data.condition, data.validation_size = None, 1
    data.setup()
    model = VAE(HeightEncoder, 1, (1, 12, 12), num_classes=2).eval()
    metrics = latent_content(make_subject(model, data))
    assert {name.partition("_r2")[0] for name in metrics} == {
        *("latent/height", "latent/time", "latent/rare")
    }
    assert metrics["latent/time_r2_ridge"].value > 0.95
    assert all(np.isfinite(metric.value) for metric in metrics.values())
    assert "latent_content: skipping missing" in caplog.text


def test_latent_content_needs_an_attribute_outside_y(tmp_path: Path) -> None:
    data = save_bars(tmp_path)
    data.setup()
    model = VAE(HeightEncoder, 1, (1, 12, 12), num_classes=2, condition=data.condition).eval()
    with pytest.raises(NotApplicable, match="no numeric attributes that vary"):
        latent_content(make_subject(model, data))


def test_claims_of_labels_do_not_apply_to_attributes(tmp_path: Path) -> None:
    data = save_bars(tmp_path)
    data.setup()
    assert data.condition is not None
    assert data.train is not None
    assert isinstance(data.train.conditions, torch.Tensor)
    data.condition.fit(data.train.conditions)
    model = CVAE(make_network, 2, (1, 12, 12), num_classes=2, condition=data.condition).eval()
    subject = make_subject(model, data)
    with pytest.raises(NotApplicable, match="the condition is not one label but label, height"):
        require_label(subject)
    names = list(bound(subject))
    assert "test/nll_k3" in names
    assert not any("joint" in name or "marginal" in name for name in names)


class BarDecoder(torch.nn.Module):
    """Decoder that draws a bar of the requested height, plus an error."""

    def __init__(self, error: float, **kwargs: Any) -> None:
        super().__init__()
        self.error = error
        self.condition: Attributes | None = None

    def encode(self, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros(len(x), 2)

    def decode(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert self.condition is not None
        height = y[:, -1] * self.condition.scale[-1] + self.condition.shift[-1] + self.error
        is_ink = torch.arange(12)[None, :, None] < height[:, None, None]
        is_ink = is_ink.expand(-1, -1, 12) & (torch.arange(12) // 4 == 1)
        return torch.where(is_ink, 20.0, -20.0)[:, None]


@pytest.mark.parametrize("error", [0.0, 3.0])
def test_attribute_control_measures_the_error_of_samples(tmp_path: Path, error: float) -> None:
    data = save_bars(tmp_path)
    condition = Attributes({"is_tall": 2, "height": "continuous"})
    data.condition = condition
    arrays = data.load_arrays()
    heights = data.attributes["height"]
    data.load_arrays = lambda: arrays  # type: ignore[method-assign]
    tall = tuple((values > 6).astype(np.int64) for values in heights)
    data.attributes = {"height": heights, "is_tall": (tall[0], tall[1])}
    data.setup()
    assert data.train is not None
    assert isinstance(data.train.conditions, torch.Tensor)
    condition.fit(data.train.conditions)
    network_of: Any = partial(BarDecoder, error)
    model = CVAE(network_of, 1, (1, 12, 12), num_classes=2, condition=condition).eval()
    assert isinstance(model.network, BarDecoder)
    model.network.condition = condition
    train, validation, test = data.splits().values()
    subject = SampledSubject(model, train, validation, test, num_generated=100)
    found = attribute_control(subject)
    assert list(found) == ["samples/is_tall_agreement", "samples/height_error"]
    height, tall_metric = found["samples/height_error"], found["samples/is_tall_agreement"]
    assert height.floor is not None
    assert height.floor < 1.2
    assert height.value == pytest.approx(error, abs=1.3)
    assert (tall_metric.value > 0.9) == (error == 0)


def test_attribute_control_needs_attributes(tmp_path: Path) -> None:
    data = save_bars(tmp_path)
    data.condition = None
    data.setup()
    train, validation, test = data.splits().values()
    for model_class, message in (
        (VAE, "the model takes no attributes"),
        (CVAE, "see label_control"),
    ):
        model = model_class(make_network, 2, (1, 12, 12), num_classes=2).eval()
        with pytest.raises(NotApplicable, match=message):
            attribute_control(SampledSubject(model, train, validation, test))
