"""Latents of a split: values, order and names of the arrays."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cvae.data import MNISTDataModule
from cvae.embedding import embed, save
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from cvae.priors import Flow
from harness.contract.errors import ConfigError

NETWORK = partial(MLP, hidden_dim=8, encoder_blocks=1, decoder_blocks=1)
FLOW = partial(Flow, num_couplings=2, hidden_dim=8)
MODELS: dict[str, Callable[[], Autoencoder]] = {
    "autoencoder": partial(Autoencoder, NETWORK, 3),
    "vae": partial(VAE, NETWORK, 3),
    "cvae": partial(CVAE, NETWORK, 3),
    "flow": partial(CVAE, NETWORK, 3, prior=FLOW),
}


@pytest.fixture
def data(data_dir: Path) -> MNISTDataModule:
    return MNISTDataModule(data_dir, "KMNIST", validation_size=45)


@pytest.mark.parametrize("model_name", list(MODELS))
def test_the_arrays_are_the_posterior_of_each_image(model_name: str, data: MNISTDataModule) -> None:
    torch.manual_seed(0)
    model = MODELS[model_name]()
    for parameter in model.parameters():  # a flow starts as the identity
        torch.nn.init.normal_(parameter, std=0.3)
    latents = embed(model, data)
    assert model.training  # the mode is restored
    x, y, *_ = next(iter(data.test_dataloader()))
    q = model.eval().encode(x, y if model.conditional else None)
    mean, sd = (q, 0 * q) if isinstance(q, torch.Tensor) else (q.mean, q.stddev)
    expected = {"mean": mean, "sd": sd}
    if model_name == "flow":
        expected["w"] = model.embed(x, y)
    expected |= {"labels": y.argmax(1), "indices": torch.arange(len(y))}
    assert list(latents) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(latents[name], values.detach().numpy(), atol=1e-5)


def test_each_split_has_its_own_images(data: MNISTDataModule) -> None:
    model = MODELS["vae"]()
    for split, images in ((name, embed(model, data, name)) for name in ("train", "validation")):
        labels = data.splits()[split].labels.numpy()
        assert (images["labels"] == labels).all()
        assert len(images["mean"]) == len(labels)
    again = embed(model, data, "train")
    assert (again["mean"] == embed(model, data, "train")["mean"]).all()  # binarized once


def test_only_an_npz_file_can_be_written(data: MNISTDataModule, tmp_path: Path) -> None:
    latents = embed(MODELS["vae"](), data)
    save(latents, tmp_path / "new folder" / "x.npz")
    with np.load(tmp_path / "new folder" / "x.npz") as archive:
        assert {name: values.tolist() for name, values in archive.items()} == {
            name: values.tolist() for name, values in latents.items()
        }
    with pytest.raises(ConfigError, match=r"must end in \.npz"):
        save(latents, tmp_path / "x.npy")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        save(latents, tmp_path / "file" / "x.npz")
