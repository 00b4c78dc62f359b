"""The check before training rejects networks that do not fit the model and accepts the others."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvae.callbacks import EMA
from cvae.lightning_module import VAEModule
from cvae.likelihoods import Bernoulli
from cvae.models import CVAE, VAE, Autoencoder
from harness.contract.errors import ConfigError
from harness.training.preflight import check_module
from tests import PACKAGE
from tests.conftest import run_script, tiny
from tests.harness.test_training import make_objects, read_summary
from tests.science.test_networks import BatchNorm, FlatBatchNorm, Linear, conv, mlp
from tests.tally import Promise

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


class Dropout(Linear):
    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return super().encode(nn.functional.dropout(x, training=self.training), y)


class Spare(Linear):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spare = nn.Linear(3, 2)


class Frozen(Spare):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spare.requires_grad_(False)


class WeightNorm(Linear):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to_image = nn.utils.parametrizations.weight_norm(self.to_image)  # type: ignore[assignment]


class OldWeightNorm(Linear):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to_image = nn.utils.weight_norm(self.to_image)  # type: ignore[assignment]


class Lazy(Linear):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to_latent = nn.LazyLinear(kwargs["num_statistics"] * kwargs["latent_dim"])


class OnlyMeans(Linear):
    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return super().encode(x, y).chunk(2, dim=1)[0]


class Flattened(Linear):
    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        return super().decode(z, y).flatten(1)


class Double(Linear):
    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        return super().decode(z, y).double()


class Squeezed(Linear):
    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return super().encode(x, y).squeeze()


class Pair(Linear):
    def encode(self, x: Tensor, y: Tensor | None) -> Any:
        return tuple(super().encode(x, y).chunk(2, dim=1))


class FixedBatch(Linear):
    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return super().encode(x.view(16, 1, 28, 28), y)


class Unlabelled(Linear):
    def decode(self, z: Tensor) -> Tensor:  # type: ignore[override]
        return super().decode(z, None)


def make_scalar_penalty(**kwargs: Any) -> Callable[..., Tensor]:
    return lambda latent, y, eps: latent.square().mean()


def check_model(model: Autoencoder, data_dir: Path, folder: Path, **settings: Any) -> Any:
    """Run the preflight check on a model with small test data; return the trainer."""
    _, data, trainer = make_objects(data_dir, folder, **settings.pop("trainer", {}))
    for name, value in settings.items():
        setattr(data, name, value)
    data.setup()
    check_module(VAEModule(model, torch.optim.SGD), data, trainer)
    return trainer


class NoSamples(Bernoulli):
    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        logits = parameters.flatten(1)
        return -torch.nn.functional.softplus(logits).sum(1)


class FlatStart(Bernoulli):
    def initial_parameters(self, mean: Tensor, std: Tensor) -> Tensor:
        return torch.logit(mean)


class NoMean(Bernoulli):
    mean = None  # type: ignore[assignment]


class WideSample(Bernoulli):
    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return parameters


class NoInverse(nn.Module):
    def __init__(self, latent_dim: int, condition_size: int) -> None:
        super().__init__()

    def to_base(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        return z - 1, z.new_zeros(len(z))

    def from_base(self, w: Tensor, y: Tensor | None) -> Tensor:
        return w - 1


class NoFromBase(NoInverse):
    from_base = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("prior", "message"),
    [(NoInverse, "NoInverse.to_base.* must be its inverse"), (NoFromBase, "not callable")],
)
def test_a_prior_without_an_inverse_is_rejected(
    prior: Any, message: str, data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(CVAE(Linear, latent_dim=2, prior=prior), data_dir, tmp_path)


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (NoMean, "not callable"),
        (WideSample, r"WideSample.sample\(parameters\) has shape"),
        (NoSamples, "log_prob of two samples of z has shape"),
        (FlatStart, "FlatStart.initial_parameters"),
    ],
)
def test_a_likelihood_that_does_not_fit_is_rejected(
    likelihood: Any, message: str, data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(CVAE(Linear, latent_dim=2, likelihood=likelihood), data_dir, tmp_path)


@pytest.mark.parametrize(
    "network", [mlp, conv, Linear, BatchNorm, FlatBatchNorm, Dropout, Frozen, WeightNorm]
)
@pytest.mark.parametrize("model_class", [Autoencoder, CVAE])
def test_good_networks_pass_unchanged(
    network: Callable[..., Any],
    model_class: type[Autoencoder],
    data_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_class(network, latent_dim=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, data, trainer = make_objects(data_dir, tmp_path)
    data.setup()
    generator = torch.get_rng_state()
    check_module(VAEModule(model, torch.optim.SGD), data, trainer)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert [r for r in caplog.records if r.name.startswith((PACKAGE, "harness"))] == []


MISFITS = [
    (OldWeightNorm, "cannot be copied for EMA: .*parametrizations.weight_norm"),
    (Lazy, "network.to_latent is a LazyLinear without a size"),
    (Double, r"decode\(z, y\) returns torch.float64, expected torch.float32"),
    (OnlyMeans, r"encode\(x, y\) has shape \(1, 2\), expected \(1, 4\)"),
    (Flattened, r"decode\(z, y\) has shape \(1, 784\), expected \(1, 1, 28, 28\)"),
    (Squeezed, r"encode\(x, y\) has shape \(4,\), expected \(1, 4\)"),
    (Pair, "returns a tuple, not a tensor"),
    (FixedBatch, "fails on 1 image: RuntimeError: shape"),
    (Unlabelled, "TypeError: .* takes 2 positional arguments but 3 were given"),
]


@pytest.mark.fault(Promise.INPUT, "a network that does not fit its model")
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(("network", "message"), MISFITS)
def test_a_network_that_does_not_fit_is_rejected_in_one_line(
    network: type[Linear], message: str, data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_model(VAE(network, latent_dim=2), data_dir, tmp_path)
    assert str(caught.value).startswith(f"model.network={__name__}.{network.__name__}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_scalar_penalty_is_rejected(data_dir: Path, tmp_path: Path) -> None:
    model = VAE(Linear, latent_dim=2, penalty=make_scalar_penalty)
    with pytest.raises(ConfigError, match=r"penalty has shape \(\), expected \(1,\)"):
        check_model(model, data_dir, tmp_path)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_model_that_cannot_be_copied_is_not_checked(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_model(VAE(OldWeightNorm, latent_dim=2), data_dir, tmp_path, trainer={"callbacks": []})
    assert "cannot be copied, so it is not checked" in caplog.text


@pytest.mark.parametrize("last_batch_size", [1, 3])
def test_a_last_batch_of_one_image_is_rejected_with_batch_norm(
    last_batch_size: int, data_dir: Path, tmp_path: Path
) -> None:
    """Only BatchNorm on flat features fails on a last batch of one image."""
    settings = {"validation_size": 260 - 64 - last_batch_size}
    check_model(VAE(conv, latent_dim=2), data_dir, tmp_path, **settings)
    check_model(VAE(BatchNorm, latent_dim=2), data_dir, tmp_path, **settings)
    model = VAE(FlatBatchNorm, latent_dim=2)
    if last_batch_size == 1:
        with pytest.raises(ConfigError, match="fails on 1 image in training: ") as caught:
            check_model(model, data_dir, tmp_path, **settings)
        suggestion = re.search(
            r"data.batch_size=32 leaves 1 of 65 rows for the last batch; (\d+) leaves",
            str(caught.value),
        )
        assert suggestion is not None
        settings["batch_size"] = int(suggestion[1])
    check_model(model, data_dir, tmp_path, **settings)


@pytest.mark.parametrize(
    "limit", [{"limit_train_batches": 2}, {"limit_train_batches": 0.7}, {"max_steps": 2}]
)
def test_a_last_batch_that_is_not_used_is_not_checked(
    limit: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    model = VAE(FlatBatchNorm, latent_dim=2)
    check_model(model, data_dir, tmp_path, validation_size=260 - 65, trainer=limit)


def test_unused_parameters_on_one_device_give_a_warning(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_model(VAE(Spare, latent_dim=2), data_dir, tmp_path)
    (record,) = [r for r in caplog.records if r.name.startswith((PACKAGE, "harness"))]
    assert record.levelno == logging.WARNING
    assert "no gradient reaches network.spare.weight, network.spare.bias" in record.message


USER_NETWORK = """
from torch import nn
from cvae.networks import MLP
class Spare(MLP):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.spare = nn.Linear(3, 2)
"""


@pytest.mark.fault(Promise.INPUT, "a parameter without a gradient on two devices")
@pytest.mark.parametrize(
    "strategy",
    ["auto", pytest.param("ddp_find_unused_parameters_true", marks=pytest.mark.engines)],
)
def test_unused_parameters_on_two_devices_need_ddp_find_unused_parameters(
    strategy: str, data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(USER_NETWORK)
    overrides = [
        "model.network._target_=mine.Spare",
        "device=cpu",
        "trainer.devices=2",
        "logger=csv",
    ]
    overrides += [f"trainer.strategy={strategy}", "callbacks.figures=null", "trainer.max_steps=2"]
    run_dir = tmp_path / "run"
    done = run_script("train", *tiny(data_dir, run_dir), *overrides, PYTHONPATH=str(tmp_path))
    if strategy != "auto":
        assert done.returncode == 0, done.stderr
        assert read_summary(run_dir)["steps"] == 2
        return
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: model.network=mine.Spare: no gradient reaches network.spare")
    assert "trainer.strategy=ddp_find_unused_parameters_true" in line
    assert read_summary(run_dir)["status"] == "failed"


def test_double_precision_is_checked_on_a_copy(data_dir: Path, tmp_path: Path) -> None:
    model = VAE(BatchNorm, latent_dim=2)
    check_model(
        model, data_dir, tmp_path, trainer={"precision": "64-true", "callbacks": [EMA(0.9)]}
    )
    assert model.output_bias.dtype == torch.float32
