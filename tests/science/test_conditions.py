"""Conditions: encoding of labels and attributes, and models that take them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from cvae import figures
from cvae.conditions import Attributes, ConditionSpec, Labels, OneHot, Values
from cvae.data import ImagesDataModule
from cvae.lightning_module import VAEModule
from cvae.models import CVAE
from cvae.networks import MLP
from cvae.penalties import Adversary, LabelwiseAdversary
from cvae.priors import Conditional
from cvae.rotated_mnist import random_angles, rotate
from cvae.sampling import generate, requested_rows
from cvae.types import Batch
from harness.contract.errors import ConfigError, DataError
from harness.contract.sampler import Rows
from harness.training.run import train

ROWS = torch.zeros(3, 1)


def make_attributes() -> Attributes:
    condition = Attributes({"digit": 4, "angle": "continuous"})
    angles = torch.tensor([-60.0, 0.0, 30.0, 60.0])
    condition.fit(condition.from_columns({"digit": torch.arange(4), "angle": angles}))
    return condition


def make_network(**kwargs: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(hidden_dim=12, encoder_blocks=1, decoder_blocks=1, **kwargs)


def test_encode_returns_a_row_for_each_value() -> None:
    found = make_attributes().encode({"digit": 2, "angle": [30.0, 0.0, -60.0]}, ROWS)
    expected = torch.tensor([[0, 0, 1, 0, 30.0], [0, 0, 1, 0, 0.0], [0, 0, 1, 0, -60.0]])
    assert torch.equal(found, expected)
    assert torch.equal(make_attributes().encode(found, ROWS), found)


def test_a_label_may_be_given_by_name() -> None:
    assert torch.equal(OneHot(4).encode({"label": 2}, ROWS), OneHot(4).encode(2, ROWS))


def test_networks_take_standardized_values() -> None:
    condition = make_attributes()
    angles = torch.tensor([-60.0, 0.0, 30.0, 60.0])
    y = condition.encode({"digit": torch.arange(4), "angle": angles}, torch.zeros(4, 1))
    c = condition(y)
    assert torch.equal(c[:, :4], torch.eye(4))
    torch.testing.assert_close(c[:, 4], (angles - angles.mean()) / angles.std(correction=0))


@pytest.mark.parametrize(
    ("condition", "y", "message"),
    [
        (make_attributes(), {"digit": 4, "angle": 0}, "digit=4: labels must be from 0 to 3"),
        (make_attributes(), {"digit": 1.0, "angle": 0}, "digit=1: must be an integer, 0 to 3"),
        (make_attributes(), {"digit": 1, "angle": 62}, "angle=62: must be -60 to 60"),
        (make_attributes(), {"digit": 1, "angle": float("nan")}, "angle=nan: must be -60 to 60"),
        (
            make_attributes(),
            {"digit": 1, "angle": [0, 1]},
            r"angle has shape \(2,\): must be one value or 3 values",
        ),
        (
            make_attributes(),
            {"digit": 1, "angel": 0},
            r"no part angel: must be digit \(0 to 3\), angle",
        ),
        (
            make_attributes(),
            {"digit": 1},
            r"lacks angle: must have digit \(0 to 3\), angle \(-60 to 60",
        ),
        (make_attributes(), 3, r"a mapping of digit \(0 to 3\), angle \(-60 to 60\)"),
        (OneHot(4), {"digit": 1}, r"no part digit: must be label \(0 to 3\)"),
        (OneHot(4), {}, "lacks label"),
    ],
)
def test_wrong_values_are_rejected_with_names_and_ranges(
    condition: ConditionSpec, y: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        condition.encode(y, ROWS)


@pytest.mark.parametrize(
    "columns",
    [{}, {"angle": "periodic"}, {"a/b": 3}, {"a": 0}, {"a": True}, {"a": 1.5}, {"a": None}],
    ids=str,
)
def test_wrong_columns_are_rejected(columns: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="columns"):
        Attributes(columns)


def test_checkpoints_keep_the_range_and_the_scale() -> None:
    model = CVAE(make_network, 2, (1, 4, 4), condition=make_attributes())
    other = CVAE(
        make_network, 2, (1, 4, 4), condition=Attributes({"digit": 4, "angle": "continuous"})
    )
    other.load_state_dict(model.state_dict())
    x, eps = torch.ones(3, 1, 4, 4), torch.zeros(3, 2)
    y: Labels = {"digit": [0, 1, 2], "angle": 30.0}
    assert torch.equal(model.terms(x, y, eps).elbo, other.terms(x, y, eps).elbo)
    with pytest.raises(ValueError, match="angle=90: must be -60 to 60"):
        other.sample(y={"digit": 0, "angle": 90})


def test_samples_take_one_value_for_all_or_one_per_image() -> None:
    model = CVAE(make_network, 2, (1, 4, 4), condition=make_attributes(), prior=Conditional).eval()
    assert model.sample(y={"digit": 1, "angle": 30.0}, num_samples=5).shape == (5, 1, 4, 4)
    assert model.sample(y={"digit": [1, 2], "angle": 30.0}).shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="contradictory numbers"):
        model.sample(y={"digit": [1, 2], "angle": 30.0}, num_samples=3)


def test_a_penalty_of_labels_rejects_attributes() -> None:
    make = partial(CVAE, make_network, 2, (1, 4, 4), condition=make_attributes())
    make(penalty=Adversary)
    with pytest.raises(ValueError, match="LabelwiseAdversary needs one label, but y has the parts"):
        make(penalty=LabelwiseAdversary)


def test_generate_has_a_row_for_each_combination_of_values() -> None:
    model = CVAE(make_network, 2, (1, 4, 4), condition=make_attributes()).eval()
    rows = requested_rows(model, None, {"digit": 3, "angle": [-60, 0, 60]})
    assert [row.name for row in rows] == ["angle -60", "angle 0", "angle 60"]
    images = generate(model, rows, num_samples=4, seed=0)
    assert images.shape == (3, 4, 1, 4, 4)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images[1], model.sample(y={"digit": 3, "angle": 0}, z=z))


@pytest.mark.parametrize(
    ("label", "condition", "message"),
    [
        (3, None, "needs condition='{digit: ..., angle: ...}', not label="),
        (None, None, "needs condition="),
        (None, {"digit": 3}, "lacks angle"),
        (None, {"digit": 3, "angle": [0, 99]}, "angle=99: must be -60 to 60"),
        (None, {"digit": 3, "angle": []}, r"angle=\[\]: must be one or more different values"),
        (None, {"digit": 3, "angle": {"a": 1}}, "must be a number or a list of numbers"),
        (None, {"digit": 3, "angle": [5, 5]}, r"\[5, 5\]: must be one or more different values"),
    ],
)
def test_wrong_requests_are_rejected(label: Any, condition: Any, message: str) -> None:
    model = CVAE(make_network, 2, (1, 4, 4), condition=make_attributes()).eval()
    with pytest.raises(ConfigError, match=message):
        requested_rows(model, label, condition)


def test_a_model_of_labels_takes_no_attributes() -> None:
    with pytest.raises(ConfigError, match="takes a label; use label="):
        requested_rows(CVAE(make_network, 2, (1, 4, 4)), None, {"digit": 3})


def save_bars(folder: Path, **changed: Any) -> ImagesDataModule:
    """Save images of bars whose height is an attribute; return their data module."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 400), ("test", 80)):
        heights = rng.integers(1, 12, count)
        images = np.zeros((count, 12, 12), np.uint8)
        for image, height in zip(images, heights, strict=True):
            image[:height, 4:8] = 255
        arrays |= {
            f"{split}_images": images,
            f"{split}_labels": np.arange(count) % 2,
            f"{split}_height": heights.astype(np.float32),
        }
    np.savez(folder / "bars.npz", **(arrays | changed))
    condition = Attributes({"label": 2, "height": "continuous"})
    return ImagesDataModule(
        folder,
        "bars",
        num_classes=2,
        image_shape=(1, 12, 12),
        validation_size=50,
        condition=condition,
    )


def test_attributes_are_read_in_the_order_of_the_images(tmp_path: Path) -> None:
    data = save_bars(tmp_path)
    data.setup()
    for split in (data.train, data.validation, data.test):
        assert split is not None
        assert isinstance(split.conditions, torch.Tensor)
        heights = (split.pixels[:, 0, :, 5] > 0).sum(1)
        assert torch.equal(split.conditions[:, 2], heights.float())
        assert torch.equal(split.conditions[:, :2], torch.eye(2)[split.labels])
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.y[:, 2], batch.x[:, 0, :, 5].sum(1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train_height": np.full(400, np.nan)},
            "train images of bars: height has values that are not",
        ),
        ({"test_height": np.zeros(3)}, "must have one value for each image"),
    ],
)
def test_wrong_attributes_are_rejected(tmp_path: Path, changed: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        save_bars(tmp_path, **changed).setup()


def test_a_missing_attribute_is_named(tmp_path: Path) -> None:
    data = save_bars(tmp_path)
    data.condition = Attributes({"label": 2, "width": "continuous"})
    with pytest.raises(
        DataError, match="train images of bars: no attribute width: must be one of label"
    ):
        data.setup()


def test_a_condition_of_your_own_gets_the_columns_of_the_data(tmp_path: Path) -> None:
    class Tall(Attributes):
        def __init__(self) -> None:
            super().__init__({"is_tall": 2})

        def from_columns(self, columns: Mapping[str, Values]) -> torch.Tensor:
            return super().from_columns({"is_tall": (torch.tensor(columns["height"]) > 6).long()})

    data = save_bars(tmp_path)
    data.condition = Tall()
    data.setup()
    assert data.test is not None
    batch = data.test[Rows(0, torch.arange(80), 80)]
    assert torch.equal(batch.y[:, 1], (batch.x[:, 0, :, 5].sum(1) > 6).float())


def test_one_condition_object_serves_several_datasets(tmp_path: Path) -> None:
    """Images of another dataset may have values outside the range of the training images."""
    data, again = save_bars(tmp_path), save_bars(tmp_path)
    data.setup()
    assert data.train is not None
    assert isinstance(data.train.conditions, torch.Tensor)
    assert data.condition is not None
    data.condition.fit(data.train.conditions[:5])
    again.condition = data.condition
    again.setup()


def fit_attributes(values: torch.Tensor) -> Attributes:
    condition = Attributes({"a": "continuous"})
    condition.fit(condition.from_columns({"a": values}))
    return condition


@pytest.mark.parametrize("count", [1, 5])
def test_a_constant_attribute_takes_its_value_only(count: int) -> None:
    condition = fit_attributes(torch.full((count,), 2.5))
    assert torch.equal(condition(condition.encode({"a": 2.5}, ROWS)), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"a=99: must be 2\.5 to 2\.5"):
        condition.encode({"a": 99}, ROWS)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_values_of_any_unit_are_standardized(scale: float) -> None:
    condition = fit_attributes(scale * torch.arange(101, dtype=torch.float64))
    c = condition(condition.encode({"a": scale * torch.arange(101.0)}, torch.zeros(101, 1)))
    assert float(c.mean()) == pytest.approx(0, abs=1e-4)
    assert float(c.std(correction=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (1.7e9 + torch.arange(100).double(), "too little for float32: subtract a constant"),
        (torch.tensor([0.0, 1e39], dtype=torch.float64), "not finite numbers in float32"),
    ],
)
def test_values_that_float32_cannot_hold_are_rejected(values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_attributes(values)


def test_figures_vary_one_part_at_a_time() -> None:
    model = CVAE(make_network, 2, (1, 8, 8), condition=make_attributes())
    y = model.condition.examples(12)
    many = Batch(torch.ones(12, 1, 8, 8), y, torch.arange(12), 12)
    pictures = figures.draw(model, many, many)
    assert set(pictures) == {
        "reconstructions",
        *("samples_digit", "transfer_digit", "samples_angle", "transfer_angle"),
        *("traversals", "latent_plane", "manifold"),
    }


@torch.no_grad()
@pytest.mark.parametrize("columns", [{"angle": "continuous"}, {"size": 3, "label": 4}], ids=str)
def test_class_names_label_no_other_attribute(columns: Any) -> None:
    condition = Attributes(columns)
    y = condition.examples(12)
    condition.fit(y)
    model = CVAE(make_network, 2, (1, 8, 8), condition=condition)
    many = Batch(torch.ones(12, 1, 8, 8), y, torch.arange(12), 12)
    picture = figures.latent_plane(model, many, names=["a", "b"])
    assert picture.size == figures.latent_plane(model, many).size


def test_a_positive_angle_turns_counterclockwise() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 12:16, 22:26] = 255  # to the right of the center
    turned = rotate(image, np.array([90.0]))[0]
    rows, columns = np.nonzero(turned > 127)
    assert (rows.mean(), columns.mean()) == (
        pytest.approx(3.5, abs=0.6),
        pytest.approx(13.5, abs=0.6),
    )
    assert np.array_equal(rotate(image, np.zeros(1)), image)


def test_angles_are_uniform_and_the_same_in_every_run() -> None:
    train, test = random_angles(4000, False), random_angles(4000, True)
    assert np.array_equal(train, random_angles(4000, False))
    assert not np.array_equal(train, test)
    assert np.abs(train).max() <= 60
    assert np.quantile(train, [0.25, 0.5, 0.75]) == pytest.approx([-30, 0, 30], abs=4)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
def test_statistics_after_a_warm_start_are_those_of_the_new_data(tmp_path: Path) -> None:
    data = save_bars(tmp_path)
    data.setup()
    model = CVAE(make_network, 2, (1, 12, 12), num_classes=2, condition=data.condition)
    model.initialize_output_bias(data.mean_image, data.std_image)
    of_another_run = {**model.state_dict(), "condition.high": torch.full((3,), 99.0)}
    module = VAEModule(model, partial(torch.optim.SGD, lr=0.0))
    trainer = lightning.Trainer(
        max_epochs=1,
        limit_train_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    train(module, data, trainer, test=False, weights=of_another_run)
    assert isinstance(model.condition, Attributes)
    assert model.condition.training_range("height") == (1.0, 11.0)
