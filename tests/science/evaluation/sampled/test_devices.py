"""Every claim gives the same values on a (fake) GPU as on the CPU."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from cvae import noise
from cvae.conditions import Attributes
from cvae.evaluation import (
    attribute_control,
    classification_accuracy,
    latent_independence,
    oracle,
    probes,
    report,
)
from cvae.evaluation.claims import CLAIMS
from cvae.evaluation.device import choose_device, full_float32
from cvae.evaluation.pictures import draw_pictures
from cvae.evaluation.sampled import SampledSubject
from cvae.likelihoods import DiscretizedLogistic
from cvae.models import CVAE, VAE, Autoencoder
from cvae.priors import Conditional, Flow
from cvae.types import Split
from harness.contract.errors import ConfigError
from tests.fake_gpu import FakeGPU
from tests.science.evaluation.synthetic import TEST, TRAIN, VALIDATION
from tests.science.test_models import make_network

# priors pass the device to torch.autocast, which finds no GPU
pytestmark = pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")


def add_attributes(split: Split) -> Split:
    """Return the split with a label and a height as y, and with an attribute that is not in y."""
    height = split.grey.float().mean(dim=(1, 2, 3))
    y = torch.cat([torch.nn.functional.one_hot(split.labels, 3), height[:, None]], dim=1)
    other = (split.labels + 0.1 * height).double()
    return split._replace(conditions=y.float(), attributes={"other": other})


def build_autoencoder() -> Autoencoder:
    return Autoencoder(make_network, 2, (1, 12, 12), 3)


def build_cvae() -> Autoencoder:
    flow = partial(Flow, num_couplings=2, hidden_dim=8)
    return CVAE(make_network, 2, (1, 12, 12), 3, prior=flow)


def build_cvae_of_attributes() -> Autoencoder:
    condition = Attributes({"label": 3, "height": "continuous"})
    y = add_attributes(TRAIN).conditions
    assert y is not None
    condition.fit(y)
    likelihood = partial(DiscretizedLogistic, num_components=2)
    shape = (1, 12, 12)
    return CVAE(
        make_network, 2, shape, 3, prior=Conditional, likelihood=likelihood, condition=condition
    )


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train classifiers and probes for a few steps, which is enough to compare two devices."""
    for module in (oracle, classification_accuracy):
        monkeypatch.setattr(module, "SHORT_EPOCHS", 1)
    monkeypatch.setattr(oracle, "_ORACLE_EPOCHS", 2)
    monkeypatch.setattr(oracle, "_MIN_BATCHES", 5)
    monkeypatch.setattr(attribute_control, "_EPOCHS", 2)
    monkeypatch.setattr(probes, "_MAX_EPOCHS", 3)


def measure_claims(
    model: Autoencoder, device: str, claims: Sequence[str]
) -> tuple[report.Report, Mapping[str, object]]:
    """Return the results of claims on a device, and the figures."""
    train, validation, test = TRAIN, VALIDATION, TEST
    if isinstance(model.condition, Attributes):
        train, validation, test = (add_attributes(split) for split in (TRAIN, VALIDATION, TEST))
    subject = SampledSubject(model.eval().to(device), train, validation, test, 3, 20)
    results = report.evaluate(subject, claims)
    few = subject.test_batch(torch.arange(3, device=device))
    on_cpu = few._replace(x=few.x.cpu(), y=few.y.cpu(), indices=few.indices.cpu())
    return results, draw_pictures(subject, on_cpu, results.seconds)


@pytest.mark.parametrize(
    ("build", "claims"),
    [
        (build_cvae, list(CLAIMS)),
        (build_cvae_of_attributes, list(CLAIMS)),
        (build_autoencoder, ["prior_samples"]),
    ],
)
def test_every_claim_runs_on_a_gpu(
    build: Callable[[], Autoencoder], claims: list[str], short_training: None
) -> None:
    on_cpu, drawn_on_cpu = measure_claims(build(), "cpu", claims)
    with FakeGPU():
        on_gpu, drawn_on_gpu = measure_claims(build(), "cuda", claims)
    assert on_gpu.left_out == on_cpu.left_out
    found, expected = (
        {(name, key): v for name, metric in metrics.items() for key, v in metric.items()}
        for metrics in (report.to_json(one)["metrics"] for one in (on_gpu, on_cpu))
    )
    numbers = {key for key, value in expected.items() if isinstance(value, float)}
    # a GPU takes more samples of z at a time, so sums differ by rounding
    assert {k: found[k] for k in numbers} == pytest.approx(
        {k: expected[k] for k in numbers}, rel=1e-5
    )
    assert found.keys() == expected.keys()
    assert drawn_on_gpu.keys() == drawn_on_cpu.keys()


def return_on_cpu(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments, **named: function(*arguments, **named).cpu()


@pytest.mark.parametrize(
    ("claim", "owner", "name"),
    [
        ("bound", noise, "standard_normal"),
        ("label_control", SampledSubject, "sample_prior"),
        ("latent_independence", latent_independence, "logistic_predictions"),
    ],
)
def test_a_tensor_left_on_the_cpu_raises(
    claim: str, owner: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, return_on_cpu(getattr(owner, name)))
    with FakeGPU():
        subject = SampledSubject(build_cvae().eval().to("cuda"), TRAIN, VALIDATION, TEST, 3, 20)
        with pytest.raises(RuntimeError, match="at least two devices"):
            report.evaluate(subject, [claim])


def test_the_fake_gpu_raises_where_cuda_does() -> None:
    with FakeGPU():
        a, b = torch.ones(3, device="cuda"), torch.ones(3)
        assert a.device.type == (a[:2] + 1).device.type == b.to(a).device.type == "cuda"
        assert b.device.type == a.cpu().device.type == "cpu"
        assert (a + torch.tensor(1.0))[torch.tensor([0])].tolist() == [2.0]
        for wrong in (lambda: a + b, lambda: b[a.long()], lambda: torch.cat([a, b])):
            with pytest.raises(RuntimeError, match="at least two devices"):
                wrong()
        for to_numpy in (a.numpy, lambda: np.asarray(a)):
            with pytest.raises(TypeError, match="to numpy"):
                to_numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        layer = torch.nn.Linear(3, 1).to("cuda")
        layer(a).backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.device.type == "cuda"


def test_the_accelerator_selects_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="accelerator=gpu: torch finds no CUDA GPU"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name).type for name in ("auto", "gpu", "cpu")] == ["cuda", "cuda", "cpu"]


def test_claims_compute_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with full_float32():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32


def test_the_oracle_is_the_same_on_every_device(short_training: None) -> None:
    with FakeGPU():
        subject = SampledSubject(
            VAE(make_network, 2, (1, 12, 12), 3).eval().to("cuda"), TRAIN, VALIDATION, TEST, 3, 20
        )
        assert subject.train.grey.device.type == "cuda"
        assert subject.oracle.classifier.head.weight.device.type == "cuda"
        on_gpu = {name: w.cpu() for name, w in subject.oracle.classifier.state_dict().items()}
    cpu = SampledSubject(
        VAE(make_network, 2, (1, 12, 12), 3).eval(), TRAIN, VALIDATION, TEST, 3, 20
    )
    torch.testing.assert_close(on_gpu, dict(cpu.oracle.classifier.state_dict()), rtol=0, atol=0)
