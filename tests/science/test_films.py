"""Tests of films and of morphs between test images."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from cvae import films, sampling
from cvae.data import MNISTDataModule
from cvae.generation import Request
from cvae.likelihoods import Gaussian
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from harness.contract.errors import ConfigError


def make_network(**kwargs: Any) -> MLP:
    return MLP(hidden_dim=8, encoder_blocks=1, decoder_blocks=1, **kwargs)


def randomize_weights(model: Autoencoder) -> Autoencoder:
    """Return the model with weights that make its images differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def data(data_dir: Path) -> MNISTDataModule:
    return MNISTDataModule(data_dir, "KMNIST", validation_size=45)


def read_frames(path: Path) -> list[NDArray[np.int16]]:
    """Return the frames of a film, after checking how long it lasts and that it repeats.

    Equal frames in a row are stored once, with a longer duration.
    """
    pages = []
    with PILImage.open(path) as film:
        assert film.info["loop"] == 0
        for i in range(getattr(film, "n_frames", 1)):
            film.seek(i)
            page = np.array(film.convert("RGB"), dtype=np.int16)
            pages += [page] * round(film.info["duration"] / films.FRAME_MILLISECONDS)
    assert len(pages) == films.NUM_FRAMES
    return pages


def test_every_point_of_a_loop_is_a_sample_of_the_prior() -> None:
    z = films.closed_loop(4000, 3, seed=1, temperature=2.0)
    assert z.shape == (films.NUM_FRAMES, 4000, 3)
    torch.testing.assert_close(z.std(1), torch.full((films.NUM_FRAMES, 3), 2.0), atol=0.1, rtol=0)
    steps = (z - z.roll(1, 0)).norm(dim=2).mean(1)  # from the last frame to the first too
    assert steps.max() < 1.05 * steps.min()


def test_a_film_starts_with_the_picture_of_the_same_seed() -> None:
    model = randomize_weights(CVAE(make_network, latent_dim=4))
    rows = sampling.requested_rows(model, [3, 5])
    first = sampling.decode_rows(model, rows, films.closed_loop(6, 4, seed=7)[0], seed=7)
    torch.testing.assert_close(first, sampling.generate(model, rows, 6, seed=7))


def test_an_interpolation_keeps_directions_and_lengths_between_those_of_its_ends() -> None:
    start, end = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    points = films.interpolate(start, end, torch.tensor([0.0, 0.5, 1.0]))
    expected = torch.stack((start, torch.full((2,), math.sqrt(2)), end))
    torch.testing.assert_close(points, expected, atol=1e-5, rtol=0)
    for other in (2 * start, -start, torch.zeros(2)):
        points = films.interpolate(start, other, torch.tensor([0.0, 0.25, 1.0]))
        expected = torch.stack((start, 0.75 * start + 0.25 * other, other))
        torch.testing.assert_close(points, expected)


def test_a_film_of_labels_loops_in_one_row(tmp_path: Path) -> None:
    model = randomize_weights(CVAE(make_network, latent_dim=4))
    request = Request(None, None, None, seed=0, film=True).for_model(model)
    assert request.file_name() == "label-all-seed-0.webp"
    (path,) = request.save(model, None, tmp_path / "film.webp")
    pages = read_frames(path)
    assert pages[0].shape[1] > 10 * 28 * 3 > 2 * pages[0].shape[0]
    changes = [np.abs(a - b).mean() for a, b in zip(pages, [*pages[1:], pages[0]], strict=True)]
    assert 0 < changes[-1] < 1.5 * max(changes[:-1])  # no jump where the film starts again
    expected = sampling.generate(model, sampling.requested_rows(model, "all"), 1, seed=0)
    shown = pages[0][-95:-11, 11:95, 0][1::3, 1::3]  # the first digit, without its border
    assert np.abs(shown - 255 * expected[0, 0, 0].numpy()).max() <= 1


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        (VAE(make_network, latent_dim=2), 1),
        (Autoencoder(make_network, latent_dim=2, image_shape=(3, 8, 12), likelihood=Gaussian), 3),
    ],
    ids=["vae", "color autoencoder"],
)
def test_models_without_labels_make_films_in_grey_and_color(
    model: Autoencoder, channels: int, tmp_path: Path
) -> None:
    request = Request(None, None, 3, seed=0, film=True, sample_pixels=True).for_model(model)
    assert request.file_name() == "label-none-seed-0-samples-3-sampled.webp"
    (path,) = request.save(randomize_weights(model), None, tmp_path / "film.webp")
    pages = read_frames(path)
    is_grey = all((page[..., 0] == page[..., 1]).all() for page in pages)
    assert is_grey == (channels == 1)


def test_the_strip_of_a_morph_ends_at_the_second_test_image(
    data: MNISTDataModule, tmp_path: Path
) -> None:
    model = randomize_weights(CVAE(make_network, latent_dim=4))
    request = Request([2, 4], None, 5, seed=0, morph=[0, 7]).for_model(model)
    assert request.file_name() == "label-2-4-morph-0-7-seed-0-samples-5.png"
    (path,) = request.save(model, data, tmp_path / "strip.png")
    page = np.array(PILImage.open(path), dtype=np.int16)
    ends = films.load_ends(model, data, [0, 7])
    assert ends.labels == (0, 7)
    torch.testing.assert_close(ends.z, model.embed(ends.x, torch.eye(10)[[0, 7]]))
    tiles = [page[-66:-10, x : x + 56][::2, ::2] for x in (-66, -124)]
    decoded = model.sample(y=4, z=ends.z[1:])[0, 0]
    for tile, image in zip(tiles, (ends.x[1, 0], decoded), strict=True):
        assert np.abs(tile - 255 * image.numpy()).max() <= 1


def test_a_morph_film_goes_there_and_back(data: MNISTDataModule, tmp_path: Path) -> None:
    model = randomize_weights(CVAE(make_network, latent_dim=4))
    request = Request(None, None, None, seed=0, film=True, morph=[3, 11]).for_model(model)
    (path,) = request.save(model, data, tmp_path / "morph.webp")
    pages = read_frames(path)
    half = films.NUM_FRAMES // 2
    assert np.abs(pages[0] - pages[half]).mean() > 5 * np.abs(pages[0] - pages[-1]).mean()
    assert all(np.abs(pages[half - i] - pages[half + i]).max() <= 1 for i in range(1, half))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"morph": 12}, "morph=12: must be two positions"),
        ({"morph": [1, 2, 3]}, "must be two positions"),
        ({"morph": [4, 4]}, "must be two positions"),
        ({"morph": [1, 33]}, "morph=1,33: must be positions in the test set, from 0 to 32"),
        ({"morph": [1, 2], "temperature": 0.5}, "temperature=0.5 has no effect with morph="),
        ({"morph": [1, 2], "num_samples": 1}, "num_samples=1: must be at least 2"),
        (
            {"morph": [1, 2], "num_samples": 3, "film": True},
            "num_samples=3 has no effect on a film of morph=",
        ),
        ({"film": True, "npy": True}, "npy=true: a film has no array"),
        ({"film": True, "num_samples": 101}, "num_samples=101: must be at most 100"),
        ({"film": True, "label": 10}, "label=10: must be from 0 to 9"),
        ({"film": True}, r"film.png: a film must end in .webp"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(
    settings: dict[str, Any], message: str, data: MNISTDataModule, tmp_path: Path
) -> None:
    model = CVAE(make_network, latent_dim=2)
    defaults: dict[str, Any] = {"label": None, "condition": None, "num_samples": None, "seed": 0}
    with pytest.raises(ConfigError, match=message):
        Request(**{**defaults, **settings}).for_model(model).save(
            model, data, tmp_path / "film.png"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("morph", [None, [0, 7]])
def test_a_picture_is_not_saved_under_the_suffix_of_a_film(
    morph: list[int] | None, data: MNISTDataModule, tmp_path: Path
) -> None:
    model = CVAE(make_network, latent_dim=2)
    request = Request(3, None, None, seed=0, morph=morph)
    with pytest.raises(ConfigError, match=r"x.webp: must be a PNG; film=true makes a film"):
        request.save(model, data, tmp_path / "x.webp")
    assert list(tmp_path.iterdir()) == []
