"""Tests that the ONNX files of a model give the bound that PyTorch gives."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cvae import likelihoods, onnx_export, priors
from cvae.conditions import Attributes
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP, Conv
from harness.contract.errors import ConfigError

pytestmark = pytest.mark.engines
perceptron = partial(MLP, hidden_dim=12, encoder_blocks=1, decoder_blocks=1)
convolutions = partial(Conv, channels=[4, 8], num_blocks=1, hidden_dim=16)
SHAPE = (1, 12, 12)


def make_attributes() -> Attributes:
    condition = Attributes({"label": 3, "angle": "continuous"})
    condition.fit(condition.from_columns({"label": [0, 1, 2], "angle": [-40.0, 0.0, 50.0]}))
    return condition


def make_zuko_flow(**sizes: int) -> priors.ZukoFlow:
    """Return an autoregressive flow, whose inverse has one pass for each dimension."""
    flows = pytest.importorskip("zuko").flows
    flow = partial(flows.MAF, transforms=2, hidden_features=[8])
    return priors.ZukoFlow(**sizes, flow=flow, conditional=True)


CASES: dict[str, Callable[..., VAE]] = {
    "perceptron": partial(VAE, perceptron, likelihood=likelihoods.ContinuousBernoulli),
    "convolutions and flow": partial(
        CVAE,
        convolutions,
        prior=partial(priors.Flow, num_couplings=2, hidden_dim=8),
        likelihood=likelihoods.Gaussian,
    ),
    "attributes and color": partial(
        CVAE,
        perceptron,
        prior=priors.Conditional,
        likelihood=partial(likelihoods.DiscretizedLogistic, num_components=2),
        image_shape=(3, 12, 12),
        condition=make_attributes(),
    ),
    "flow of zuko": partial(CVAE, perceptron, prior=make_zuko_flow),
}


def build_model(make: Callable[..., Autoencoder]) -> Any:
    torch.manual_seed(0)
    model = make(**({"latent_dim": 4, "image_shape": SHAPE} | getattr(make, "keywords", {})))
    with torch.no_grad():
        for p in model.parameters():  # change the initialization, but do not saturate
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def run_onnx(path: Path, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@torch.no_grad()
def test_the_files_give_the_bound_and_the_images(make: Callable[..., VAE], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = build_model(make)
    differences = onnx_export.save_onnx(model, tmp_path)
    assert set(differences) == {"encoder.onnx", "decoder.onnx", "likelihood.onnx"}
    generator = torch.Generator().manual_seed(1)
    for count in (1, 5):
        x = (255 * torch.rand(count, *model.image_shape, generator=generator)).round() / 255
        eps = torch.randn(count, model.latent_dim, generator=generator)
        y = {"y": model.condition.examples(count)} if model.conditional else {}
        encoded = run_onnx(tmp_path / "encoder.onnx", x=x, eps=eps, **y)
        decoded = run_onnx(tmp_path / "decoder.onnx", latent=encoded["sample"], **y)
        parameters = decoded["parameters"]
        scored = run_onnx(tmp_path / "likelihood.onnx", parameters=parameters, x=x)
        bound = scored["log_prob"] + encoded["log_ratio"]
        expected = model.log_weights(x, y.get("y"), eps[:, None])[:, 0]
        torch.testing.assert_close(bound, expected, rtol=1e-4, atol=1e-3)
        saturated = 40 * parameters  # probabilities that round to 0 in float32
        scored = run_onnx(tmp_path / "likelihood.onnx", parameters=saturated, x=x)
        expected = model.likelihood.log_prob(x, saturated)
        torch.testing.assert_close(scored["log_prob"], expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(
            encoded["latent"], model.embed(x, y.get("y")), rtol=1e-4, atol=1e-5
        )
        image = model.sample(y.get("y"), z=encoded["sample"])
        torch.testing.assert_close(decoded["mean"], image, rtol=0, atol=1e-4)


def test_certain_pixels_have_finite_log_probabilities(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = build_model(partial(CVAE, perceptron))
    with torch.no_grad():
        model.output_bias.fill_(-150.0)  # sigmoid(-150) is 0 in float32
    onnx_export.save_onnx(model, tmp_path)
    parameters, x = torch.full((2, 1, *SHAPE), -150.0), torch.ones(2, *SHAPE)
    (log_prob,) = run_onnx(tmp_path / "likelihood.onnx", parameters=parameters, x=x).values()
    torch.testing.assert_close(log_prob, model.likelihood.log_prob(x, parameters))


def test_a_plain_autoencoder_has_no_likelihood_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = build_model(partial(Autoencoder, perceptron))
    assert set(onnx_export.save_onnx(model, tmp_path)) == {"encoder.onnx", "decoder.onnx"}
    x = torch.rand(2, *SHAPE)
    (code,) = run_onnx(tmp_path / "encoder.onnx", x=x).values()
    torch.testing.assert_close(code, model.embed(x).detach())


def test_an_inverse_of_many_passes_is_rejected_with_one_line(tmp_path: Path) -> None:
    model = CVAE(perceptron, latent_dim=9, image_shape=SHAPE, prior=make_zuko_flow)
    with pytest.raises(ConfigError, match=r"its inverse has 9 passes, above 8; train with"):
        onnx_export.save_onnx(model, tmp_path)


class Branching(MLP):
    """Network whose steps depend on the values of the image."""

    def encode(self, x: Any, c: Any) -> Any:
        return super().encode(x if x.sum() > 3 else -x, c)


def test_a_network_that_cannot_be_traced_fails_with_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = partial(Branching, hidden_dim=12, encoder_blocks=1, decoder_blocks=1)
    with pytest.raises(ConfigError, match=r"^the encoder cannot be exported \(.+\)$"):
        onnx_export.save_onnx(build_model(partial(Autoencoder, network)), tmp_path)
