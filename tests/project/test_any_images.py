"""Color images, several attributes and given quadrants in most commands, on one device and two."""

import importlib
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.conftest import run_script
from tests.tally import Promise

COMMON = [
    "data=images",
    "data.name=shapes",
    "data.batch_size=32",
    "data.eval_batch_size=16",
    "data.validation_size=48",
    "data.num_classes=4",
    "data.binarization=none",
    "model.latent_dim=3",
    "model.network.hidden_dim=16",
    "model/likelihood=discretized_logistic",
    "scheduler=constant",
    "trainer.max_epochs=2",
    "test_num_samples=4",
    "device=cpu",
    "trainer.devices=1",
]
COLOR = [
    *COMMON,
    "data.image_shape=[3,16,16]",
    "model/network=conv",
    "model.network.channels=[4,8]",
    "model.likelihood.num_components=2",
]
ATTRIBUTES = [
    *COMMON,
    "data.name=grey",
    "data.image_shape=[1,16,16]",
    "data/condition=attributes",
    "+data.condition.columns.size=continuous",
    "model/prior=conditional",
    "model.network.encoder_blocks=1",
    "model.network.decoder_blocks=1",
]
QUADRANTS = [
    *COMMON,
    "data.name=grey",
    "data.image_shape=[1,16,16]",
    "data.binarization=dynamic",
    "model/likelihood=bernoulli",
    "experiment=quadrants_1",
    "data.condition.hidden_dim=16",
    "model.network.encoder_blocks=1",
    "model.network.decoder_blocks=1",
]
CASES = {"color": COLOR, "attributes": ATTRIBUTES, "quadrants": QUADRANTS}
NUM_TEST = 20  # test images
# for runs whose weights alone are compared
WITHOUT_FIGURES = ["callbacks.figures=null", "logger=csv"]

REQUESTS = {"color": "label=all", "attributes": "condition={label: 2, size: [3,7,11]}"}


@pytest.fixture(scope="module")
def shapes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with color images, and with grey images of squares of known size."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    color: dict[str, Any] = {"class_names": np.array(["red", "green", "blue", "white"])}
    grey: dict[str, Any] = {}
    hues = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])
    for split, count in (("train", 240), ("test", NUM_TEST)):
        sizes, labels = rng.integers(3, 12, count), np.arange(count) % 4
        images = rng.integers(0, 60, (count, 16, 16), dtype=np.uint8)
        for image, size in zip(images, sizes, strict=True):
            image[:size, :size] = 220
        hued = images[..., None] * hues[labels][:, None, None] // 255
        color |= {f"{split}_images": hued.astype(np.uint8), f"{split}_labels": labels}
        grey |= {f"{split}_images": images, f"{split}_labels": labels, f"{split}_size": sizes}
    np.savez(folder / "shapes.npz", **color)
    np.savez(folder / "grey.npz", **grey)
    return folder


def run(script: str, *arguments: str, timeout: float = 120) -> str:
    done = run_script(script, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=CASES)
def finished(
    request: pytest.FixtureRequest, shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Return the name of a case and the folder of its finished run."""
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    run("train", *CASES[request.param], f"data.data_dir={shapes_dir}", f"hydra.run.dir={run_dir}")
    return request.param, run_dir


def import_evaluation_settings() -> Any:
    # imported late, as users may delete the evaluation
    return importlib.import_module("cvae.evaluation.settings")


def load_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run_dir / "checkpoints" / "best.ckpt")["state_dict"]
    return state


def test_two_devices_take_the_same_steps(
    finished: tuple[str, Path], shapes_dir: Path, tmp_path: Path
) -> None:
    name, run_dir = finished
    overrides = [
        *CASES[name],
        f"data.data_dir={shapes_dir}",
        f"hydra.run.dir={tmp_path}",
        "device=cpu_pair",
        *WITHOUT_FIGURES,
    ]
    run("train", *(o for o in overrides if o not in ("device=cpu", "trainer.devices=1")))
    one, two = load_weights(run_dir), load_weights(tmp_path)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-4, rtol=1e-3)


def test_a_resumed_run_takes_the_same_steps(
    finished: tuple[str, Path], shapes_dir: Path, tmp_path: Path
) -> None:
    name, run_dir = finished
    run(
        "train",
        *(*CASES[name], f"data.data_dir={shapes_dir}"),
        *(f"hydra.run.dir={tmp_path}", "trainer.max_epochs=1", "test=false", *WITHOUT_FIGURES),
    )
    run("train", f"resume={tmp_path}", "trainer.max_epochs=2")
    one, two = load_weights(run_dir), load_weights(tmp_path)
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_generate_embed_compare_and_evaluate_take_the_run(
    finished: tuple[str, Path], tmp_path: Path
) -> None:
    name, run_dir = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    assert "test/nll_k4" in summary["metrics"]
    assert ("test/bits_per_dim_k4" in summary["metrics"]) == (name != "quadrants")
    if name in REQUESTS:
        run("generate", f"run={run_dir}", REQUESTS[name], "num_samples=4", "npy=true")
        (array,) = (run_dir / "generated").glob("*.npy")
        assert np.load(array).shape == ((16, 16, 16, 3) if name == "color" else (12, 16, 16))
    run("embed", f"run={run_dir}")
    latents = np.load(run_dir / "latents" / "test.npz")
    assert latents["mean"].shape == (NUM_TEST, 3)
    assert ("w" in latents) == (name != "color")
    run("compare", f"runs={run_dir.parent}")
    table = run("evaluate", f"run={run_dir}", "num_samples=3", "num_generated=10")
    metrics = json.loads((run_dir / "evaluation.json").read_text())["metrics"]
    assert {"test/nll_k3", "test/bits_per_dim_k3"} <= set(metrics)
    nats, bits = (metrics[f"test/{what}_k3"]["value"] for what in ("nll", "bits_per_dim"))
    num_counted = {"color": 3 * 256, "attributes": 256, "quadrants": 192}[name]
    assert bits == pytest.approx(nats / (num_counted * np.log(2)))
    if name != "color":
        assert "generative_classifier: skipped, the condition is not one label" in table
    claims = import_evaluation_settings().Claim
    if "latent_independence" not in get_args(claims):
        return
    if name == "quadrants":
        assert "latent_independence: skipped, the condition is a part of the image" in table
    elif name == "attributes":
        assert {"latent/size_r2_ridge", "latent/size_r2_mlp"} <= set(metrics)
        assert "label_control: skipped, the condition is not one label but label, size" in table
    else:
        assert {"samples/label_agreement", "latent/label_accuracy_mlp"} <= set(metrics)


@pytest.mark.engines
def test_the_model_is_exported(finished: tuple[str, Path]) -> None:
    _, run_dir = finished
    run("export", f"run={run_dir}")
    assert (run_dir / "export" / "decoder.onnx").is_file()


@pytest.mark.engines
def test_a_compiled_model_takes_the_same_steps(
    finished: tuple[str, Path], shapes_dir: Path, tmp_path: Path
) -> None:
    name, run_dir = finished
    run(
        "train",
        *(
            *CASES[name],
            f"data.data_dir={shapes_dir}",
            f"hydra.run.dir={tmp_path}",
            "compile=default",
        ),
        timeout=500,  # long enough for a busy machine
    )
    one, two = load_weights(run_dir), load_weights(tmp_path)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-3, rtol=1e-2)


@pytest.mark.engines
@pytest.mark.parametrize("name", CASES)
def test_a_search_trains_its_trials(name: str, shapes_dir: Path, tmp_path: Path) -> None:
    run(
        "train",
        *(
            "-m",
            "hydra/sweeper=optuna",
            "hydra.sweeper.num_trials=2",
            f"hydra.sweep.dir={tmp_path}",
        ),
        *(*CASES[name], f"data.data_dir={shapes_dir}", "optimizer.lr=interval(1e-4,1e-3)"),
        timeout=300,
    )
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    assert [trial["status"] for trial in found] == ["finished", "finished"]


def make_overrides_without_data(folder: Path) -> list[str]:
    """Return the overrides of a run on mine.npz, which does not exist."""
    return [
        "data=images",
        f"data.data_dir={folder}",
        "data.name=mine",
        "data.num_classes=3",
        "data.validation_size=5",
        "model.network.hidden_dim=16",
        "trainer.max_epochs=1",
        "test_num_samples=2",
        "logger=csv",
    ]


@pytest.mark.fault(Promise.INPUT, "missing data")
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_without_data_leaves_no_folder(devices: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = [*make_overrides_without_data(tmp_path), f"trainer.devices={devices}", "device=cpu"]
    run_dir.mkdir()
    done = run_script("train", *overrides, f"hydra.run.dir={run_dir}")
    assert done.returncode == 2
    assert "mine.npz" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not run_dir.exists()


def test_a_run_without_data_keeps_foreign_files_and_sweep_summaries(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    done = run_script(
        "train", *make_overrides_without_data(tmp_path), f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    done = run_script(
        "train", "-m", *make_overrides_without_data(tmp_path), f"hydra.sweep.dir={tmp_path / 's'}"
    )
    assert done.returncode == 1
    (summary,) = (tmp_path / "s").rglob("summary.json")
    assert json.loads(summary.read_text())["status"] == "failed"
