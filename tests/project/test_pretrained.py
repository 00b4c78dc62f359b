"""Tests of ``pretrained/``: its files agree, and measurements give the stated values."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from sklearn.neighbors import KNeighborsClassifier

from cvae import load_pretrained
from cvae.bounds import BATCH_SIZE, score_batch
from cvae.data import MNISTDataModule
from cvae.models import Autoencoder
from harness.contract import exported
from harness.contract.files import file_digest
from harness.contract.sampler import Rows
from harness.run_folder import exported_folder, loading
from tests.conftest import ROOT, run_script

FOLDER = ROOT / "pretrained"
FILM = ROOT / "docs" / "images" / "film.webp"


def read_json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    return load_pretrained()


@pytest.fixture(scope="module")
def data() -> MNISTDataModule:
    """Return the data of the pretrained model, after setup."""
    _, cfg = loading.load_model(FOLDER / exported.WEIGHTS)
    loaded: MNISTDataModule = loading.load_data(cfg)
    loaded.prepare_data()
    loaded.setup()
    return loaded


def test_digests_cover_all_files_which_total_at_most_5_mb() -> None:
    lines = (FOLDER / exported.DIGESTS).read_text().splitlines()
    stated = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert stated.keys() == files.keys() - {exported.DIGESTS}
    assert stated == {name: exported.sha256(files[name]) for name in stated}
    assert sum(map(len, files.values())) <= 5_000_000


def test_the_card_states_the_measured_values() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "pretrained.py"))
    evaluation = read_json("evaluation.json")
    assert (FOLDER / "README.md").read_text() == tool["model_card"](
        read_json("config.json"), evaluation
    )
    assert evaluation["checkpoint_digest"] == file_digest(FOLDER / exported.WEIGHTS)
    claims = {metric["claim"] for metric in evaluation["metrics"].values()}
    assert claims >= {"bound", "label_control", "latent_independence", "style", "variety"}


def test_the_stated_elbo_is_measured_again(model: Autoencoder, data: MNISTDataModule) -> None:
    assert data.test is not None
    evaluation = read_json("evaluation.json")
    assert data.test.digest() == evaluation["test_digest"]
    total = 0.0
    with torch.no_grad():
        for index in torch.arange(len(data.test)).split(BATCH_SIZE):
            scores = score_batch(model, data.test[Rows(0, index, len(index))])
            total += float(scores["elbo"].double().sum())
    stated = evaluation["metrics"]["test/elbo"]["value"]
    assert len(data.test) == 10_000
    assert total / len(data.test) == pytest.approx(stated, abs=0.01)


def test_samples_show_the_requested_labels(model: Autoencoder, data: MNISTDataModule) -> None:
    """The classifier, nearest neighbors of 10,000 training images, has 95 % accuracy on digits."""
    train = data.splits()["train"]
    pixels = train.grey[:10_000].flatten(1).numpy() / 255
    classifier = KNeighborsClassifier(1).fit(pixels, train.labels[:10_000].numpy())
    labels = torch.arange(10).repeat_interleave(30)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(len(labels), model.latent_dim, generator=generator)
    samples = model.sample(y=labels, z=z).flatten(1).numpy()
    assert (classifier.predict(samples) == labels.numpy()).mean() > 0.95


def test_resume_rejects_the_pretrained_model() -> None:
    done = run_script("train", "resume=pretrained")
    assert done.returncode == 2
    assert f"use weights={FOLDER}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_outputs_of_the_pretrained_model_go_to_logs() -> None:
    assert loading.find_run("pretrained") == (
        ROOT / "logs" / "pretrained",
        FOLDER / exported.WEIGHTS,
    )
    assert exported_folder.is_exported(FOLDER)


def test_the_film_of_the_readme_is_made_by_its_command(tmp_path: Path) -> None:
    command = "generate.py run=pretrained film=true seed=1"
    assert f"`python src/{command}`" in (ROOT / "README.md").read_text()
    output = tmp_path / "film.webp"
    done = run_script(*command.replace(".py", "").split(), f"output={output}")
    assert done.returncode == 0, done.stderr
    assert FILM.stat().st_size <= 1_500_000
    with PILImage.open(output) as made, PILImage.open(FILM) as shown:
        assert (made.size, made.n_frames) == (shown.size, shown.n_frames)  # type: ignore[attr-defined]
        for i in range(shown.n_frames):  # type: ignore[attr-defined]
            made.seek(i)
            shown.seek(i)
            frames = (np.array(film.convert("RGB"), np.int16) for film in (made, shown))
            assert np.abs(next(frames) - next(frames)).max() <= 2, i
