"""Warped images: small moves, keyed by image, of the share that is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cvae.augmentation import Warp
from cvae.data import Digits, MNISTDataModule, Rows

INDEX = torch.arange(500)


def warp(**given: Any) -> Warp:
    settings = {"seed": 1, "affine": 0.06, "elastic": 0.5, "share": 0.5, "until_epoch": 9}
    return Warp(**{**settings, **given})


def digits(count: int = 500) -> Tensor:
    """Blots in the middle of 28 x 28 pixels."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    center = 13.5 + torch.randn(2, count, 1, 1, generator=torch.Generator().manual_seed(0))
    grey = 255 * torch.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / 20)
    return grey[:, None].to(torch.uint8)


def test_an_image_is_warped_by_what_it_is_and_when_it_is_seen() -> None:
    whole = warp()(digits(), INDEX, 3)
    some = torch.tensor([411, 5, 70])
    assert torch.equal(warp()(digits()[some], some, 3), whole[some])
    assert not torch.equal(warp()(digits(), INDEX, 4), whole)
    assert not torch.equal(warp(seed=2)(digits(), INDEX, 3), whole)


def test_a_share_of_the_images_is_warped_and_none_at_the_end() -> None:
    changed = (warp(share=0.3)(digits(), INDEX, 0) != digits()).flatten(1).any(1)
    assert 110 < int(changed.sum()) < 190  # four standard deviations
    assert (warp(share=1.0)(digits(), INDEX, 0) != digits()).flatten(1).any(1).all()
    for same in (warp(share=0.0)(digits(), INDEX, 0), warp()(digits(), INDEX, 9)):
        assert torch.equal(same, digits())
    assert torch.equal(warp(affine=0.0, elastic=0.0, share=1.0)(digits(), INDEX, 0), digits())


def test_moves_have_the_size_that_is_asked_for() -> None:
    """Of a ramp, of which the value at a point says where the point came from."""
    ramp = (torch.arange(28) * 9).to(torch.uint8).expand(500, 1, 28, 28)
    points = torch.arange(8, 20) - 13.5
    y, x = torch.meshgrid(points, points, indexing="ij")
    design = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)

    def moved(settings: dict[str, Any]) -> Tensor:
        found = warp(share=1.0, **settings)(ramp, INDEX, 0)[:, 0, 8:20, 8:20].flatten(1) / 9 - 13.5
        return found - x.flatten()

    matrices = torch.linalg.lstsq(design, moved({"affine": 0.05, "elastic": 0.0}).T).solution
    assert matrices[:2].std(dim=1).tolist() == pytest.approx([0.05, 0.05], rel=0.15)
    assert float(matrices[2].abs().max()) < 0.05  # and the middle stays
    # of normal displacements a seventh of a width apart, a point between them takes a mean
    assert 0.3 < float(moved({"affine": 0.0, "elastic": 0.5}).std()) < 0.5


@pytest.mark.parametrize("size", [(9, 14), (1, 1), (5, 40)])
def test_any_shape_is_warped_within_its_own(size: tuple[int, int]) -> None:
    pixels = torch.full((500, 1, *size), 255, dtype=torch.uint8)
    found = warp(share=1.0)(pixels, INDEX, 0)
    assert found.shape == pixels.shape
    assert found.dtype == torch.uint8


def test_only_training_images_are_warped(data_dir: Path) -> None:
    def made(factory: Any) -> MNISTDataModule:
        module = MNISTDataModule(data_dir, "KMNIST", validation_size=45, augmentation=factory)
        module.setup()
        return module

    def rows(images: Digits | None) -> Tensor:
        assert images is not None
        return images[Rows(0, torch.arange(30), 30)].x

    plain = made(None)
    warped = made(lambda seed: warp(seed=seed, share=1.0))
    assert not torch.equal(rows(plain.train), rows(warped.train))
    assert torch.equal(rows(plain.validation), rows(warped.validation))
    assert torch.equal(rows(plain.test), rows(warped.test))
    assert plain.mean_image.equal(warped.mean_image)
    assert all(rows(warped.train).flatten(1).sum(1) > 0)
