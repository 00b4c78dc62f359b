"""Tests of MNIST in random colors."""

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch

from cvae import coloured_mnist
from cvae.coloured_mnist import ColouredMNISTDataModule, color_digits, random_hues
from cvae.settings import has_data
from cvae.types import Split
from harness.contract.errors import DataError

RNG = np.random.default_rng(0)
TRAIN, TEST = (RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (60, 20))
for digits in (TRAIN, TEST):
    digits[:, 0, :2] = 0, 255  # one pixel of the background and one of the digit


def make_data(monkeypatch: pytest.MonkeyPatch, seed: int = 1) -> ColouredMNISTDataModule:
    arrays = [TRAIN, np.arange(60) % 10, TEST, np.arange(20) % 10]
    monkeypatch.setattr(coloured_mnist, "load_digits", lambda *_: arrays)
    made = ColouredMNISTDataModule(Path("nowhere"), validation_size=15, seed=seed)
    made.setup()
    return made


def compute_hues(split: Split) -> torch.Tensor:
    """Return the hues of digit and background, in [0, 1), (N, 2)."""
    parts = [
        torch.atan2(split.attributes[f"{name}_hue_sin"], split.attributes[f"{name}_hue_cos"])
        for name in ("digit", "background")
    ]
    return torch.stack(parts, dim=1) / (2 * torch.pi) % 1


def test_images_have_the_hues_of_their_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(monkeypatch)
    for split in data.splits().values():
        hues = compute_hues(split)
        pixels = split.grey
        assert hues.shape == (len(pixels), 2)
        for column, value in ((0, 89), (1, 255)):
            for hue, rgb in zip(hues[:, 1 - column], pixels[:, :, 0, column].tolist(), strict=True):
                expected = colorsys.hsv_to_rgb(float(hue), 1.0, value)
                assert rgb == pytest.approx(expected, abs=0.5)
                assert max(rgb) == value
    assert compute_hues(data.splits()["train"]).std() > 0.2
    x, *_ = next(iter(data.train_dataloader()))
    assert x.shape == (45, 3, 28, 28)
    assert data.mean_image.shape == (3, 28, 28)


def test_a_pixel_is_a_mixture_of_digit_and_background() -> None:
    hues = random_hues(np.arange(60), is_test=False)
    found = color_digits(TRAIN, hues).astype(float)
    ground, digit = found[:, :, 0, 0, None, None], found[:, :, 0, 1, None, None]
    exact = ground + (digit - ground) * TRAIN[:, None] / 255
    assert np.array_equal(found, np.rint(exact))


def test_colors_depend_only_on_the_split_and_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = make_data(monkeypatch, seed=1), make_data(monkeypatch, seed=2)
    assert one.train is not None
    assert two.train is not None
    assert torch.equal(one.train.pixels, two.train.pixels)
    first = random_hues(np.arange(60), is_test=False)
    assert np.array_equal(random_hues(np.array([7, 3]), is_test=False), first[[7, 3]])
    assert not np.array_equal(random_hues(np.arange(60), is_test=True), first)


def test_the_files_are_those_of_mnist(tmp_path: Path) -> None:
    node = {"_target_": "cvae.coloured_mnist.ColouredMNISTDataModule", "data_dir": str(tmp_path)}
    assert not has_data({**node, "name": "ColouredMNIST"})
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    assert has_data({**node, "name": "ColouredMNIST"})


def test_colors_are_not_binarized() -> None:
    with pytest.raises(DataError, match=r"set data\.binarization=none"):
        ColouredMNISTDataModule("data", binarization="dynamic")
