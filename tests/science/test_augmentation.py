"""Tests of the warps of training images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cvae.augmentation import Warp
from cvae.data import MNISTDataModule
from cvae.image_set import ImageSet
from harness.contract.sampler import Rows

INDEX = torch.arange(500)


def make_warp(**changed: Any) -> Warp:
    settings = {"seed": 1, "affine": 0.06, "elastic": 0.5, "share": 0.5, "until": 0.75}
    return Warp(**{**settings, "max_epochs": 12, **changed})


def draw_digits(count: int = 500) -> Tensor:
    """Return images of 28 x 28 pixels with a blot near the center."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    center = 13.5 + torch.randn(2, count, 1, 1, generator=torch.Generator().manual_seed(0))
    grey = 255 * torch.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / 20)
    return grey[:, None].to(torch.uint8)


def test_the_warp_depends_only_on_seed_epoch_and_image() -> None:
    all_warped = make_warp()(draw_digits(), INDEX, 3)
    some = torch.tensor([411, 5, 70])
    apart = make_warp()(draw_digits()[some], some, 3).int() - all_warped[some]
    assert int(apart.abs().max()) <= 1  # rounding may differ in another batch
    assert not torch.equal(make_warp()(draw_digits(), INDEX, 4), all_warped)
    assert not torch.equal(make_warp(seed=2)(draw_digits(), INDEX, 3), all_warped)


def test_a_share_of_the_images_is_warped_and_none_in_the_last_epochs() -> None:
    changed = (make_warp(share=0.3)(draw_digits(), INDEX, 0) != draw_digits()).flatten(1).any(1)
    assert 110 < int(changed.sum()) < 190  # four standard deviations
    assert (make_warp(share=1.0)(draw_digits(), INDEX, 0) != draw_digits()).flatten(1).any(1).all()
    for same in (
        make_warp(share=0.0)(draw_digits(), INDEX, 0),
        make_warp()(draw_digits(), INDEX, 9),
    ):
        assert torch.equal(same, draw_digits())
    endless = make_warp(max_epochs=-1)(draw_digits(), INDEX, 10**6)
    assert not torch.equal(endless, draw_digits())
    assert torch.equal(
        make_warp(affine=0.0, elastic=0.0, share=1.0)(draw_digits(), INDEX, 0), draw_digits()
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_warps_have_the_requested_size(axis: int) -> None:
    """On a ramp along one axis, the grey level of a pixel shows where it comes from."""
    height, width = 20, 36
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    along = (y, x)[axis]
    ramp = (6 * (along - along.min())).to(torch.uint8).expand(500, 1, height, width)
    inside = (x.abs() < 10) & (y.abs() < 5)

    def measure_displacement(settings: dict[str, Any]) -> Tensor:
        grey = make_warp(share=1.0, **settings)(ramp, INDEX, 0)[:, 0, inside]
        return grey / 6 + along.min() - along[inside]

    design = torch.stack([x[inside], y[inside], torch.ones(int(inside.sum()))], dim=-1)
    matrices = torch.linalg.lstsq(
        design, measure_displacement({"affine": 0.05, "elastic": 0.0}).T
    ).solution
    assert matrices[:2].std(dim=1).tolist() == pytest.approx([0.05, 0.05], rel=0.15)
    assert float(matrices[2].abs().max()) < 0.05  # the center does not move
    # interpolation averages the displacements of several control points
    assert 0.3 < float(measure_displacement({"affine": 0.0, "elastic": 0.5}).std()) < 0.5


@pytest.mark.parametrize("size", [(9, 14), (1, 1), (5, 40)])
def test_warps_keep_any_image_shape(size: tuple[int, int]) -> None:
    pixels = torch.full((500, 1, *size), 255, dtype=torch.uint8)
    warped = make_warp(share=1.0)(pixels, INDEX, 0)
    assert warped.shape == pixels.shape
    assert warped.dtype == torch.uint8
    if min(size) > 1:  # black only enters at the border
        assert (warped[:, 0, size[0] // 2, size[1] // 2] > 200).all()


def test_the_channels_of_an_image_are_warped_alike() -> None:
    color = draw_digits().repeat(1, 3, 1, 1) // torch.tensor([1, 2, 4])[:, None, None]
    warped = make_warp()(color.to(torch.uint8), INDEX, 0)
    assert torch.equal(warped[:, :1], make_warp()(draw_digits(), INDEX, 0))
    for channel, divisor in ((1, 2), (2, 4)):
        difference = warped[:, channel] - warped[:, 0].float() / divisor
        assert float(difference.abs().max()) <= 2  # rounding, before and after


def test_only_training_images_are_warped(data_dir: Path) -> None:
    def make_data(factory: Any) -> MNISTDataModule:
        module = MNISTDataModule(data_dir, "KMNIST", validation_size=45, augmentation=factory)
        module.setup()
        return module

    def read_pixels(images: ImageSet | None) -> Tensor:
        assert images is not None
        return images[Rows(0, torch.arange(30), 30)].x

    plain = make_data(None)
    warped = make_data(lambda seed: make_warp(seed=seed, share=1.0))
    assert not torch.equal(read_pixels(plain.train), read_pixels(warped.train))
    assert torch.equal(read_pixels(plain.validation), read_pixels(warped.validation))
    assert torch.equal(read_pixels(plain.test), read_pixels(warped.test))
    assert plain.mean_image.equal(warped.mean_image)
    assert all(read_pixels(warped.train).flatten(1).sum(1) > 0)
