"""Tests of the exported files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from cvae.models import CVAE
from cvae.networks import Conv
from cvae.priors import Flow
from harness.contract import files
from harness.contract.errors import ConfigError
from harness.contract.exported import write_digests
from harness.run_folder import loading, reading
from tests.conftest import ROOT, clean_environment, run_script, tiny

pytestmark = pytest.mark.engines
convolutions = partial(Conv, channels=[4, 8], num_blocks=1, hidden_dim=16)
flow = partial(Flow, num_couplings=2, hidden_dim=8)


@pytest.fixture(scope="module")
def exported(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a run folder and its export folder."""
    pytest.importorskip("onnxruntime")
    run_dir = tmp_path_factory.mktemp("export") / "a run"
    overrides = ["callbacks.figures=null", "logger=csv", "model/penalty=adversary"]
    done = run_script("train", *tiny(data_dir, run_dir), *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    reading.update_evaluation(
        run_dir,
        {"checkpoint_digest": files.file_digest(run_dir / reading.BEST)},
        {"metrics": {"samples/label_agreement": {"value": 0.5, "unit": "%"}}},
    )
    done = run_script("export", f"run={run_dir}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decoder.onnx: within" in done.stdout
    return run_dir, run_dir / "export"


def test_an_exported_model_loads_without_lightning(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    run_dir, folder = exported
    script = (
        "import sys, torch\n"
        "from cvae.export import load\n"
        f"model = load({str(folder)!r})\n"
        "assert 'lightning' not in sys.modules\n"
        f"torch.save(model.state_dict(), {str(tmp_path / 'again.pt')!r})"
    )
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    trained = loading.load_run(run_dir).state_dict()
    expected = {name: v for name, v in trained.items() if not name.startswith("penalty.")}
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_no_file_names_a_path_of_this_machine(exported: tuple[Path, Path]) -> None:
    run_dir, folder = exported
    for file in folder.iterdir():
        content = file.read_bytes()
        assert str(ROOT).encode() not in content, file.name
        assert str(run_dir).encode() not in content, file.name


def test_the_penalty_is_not_exported(exported: tuple[Path, Path]) -> None:
    from cvae import export

    run_dir, folder = exported
    assert loading.load_run(run_dir).penalty is not None
    assert export.load(folder).penalty is None
    assert "penalty" not in json.loads((folder / "config.json").read_text())["model"]


def test_hugging_face_hub_reads_the_model_card(exported: tuple[Path, Path]) -> None:
    from huggingface_hub import ModelCard

    run_dir, folder = exported
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit"
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    summary = reading.read_summary(run_dir)
    assert found["test/elbo"] == round(summary["metrics"]["test/elbo"], 4)
    assert found["samples/label_agreement"] == 50
    assert summary["name"] in card.text


def test_an_exported_decoder_agrees_with_pytorch(tmp_path: Path) -> None:
    from cvae import export

    model = CVAE(convolutions, latent_dim=4, prior=flow)
    differences = export.save_program(model, tmp_path)
    assert max(differences.values()) <= 1e-5


def test_an_export_does_not_write_through_links(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    copy = tmp_path / "a copy"
    shutil.copytree(exported[0], copy)
    for path in (copy / "export").iterdir():
        path.unlink()
        path.symlink_to(precious)
    done = run_script("export", f"run={copy}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert precious.read_text() == "mine"
    assert not any(path.is_symlink() for path in (copy / "export").iterdir())


def test_the_card_omits_metrics_of_other_weights(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    """The card also omits metrics that are not finite."""
    run_dir = exported[0]
    reading.update_evaluation(
        run_dir,
        {"checkpoint_digest": files.file_digest(run_dir / reading.LAST)},
        {"metrics": {"latent/mmd_ratio": {"unit": ""}}},
    )
    done = run_script("export", f"run={run_dir / reading.LAST}", f"output={tmp_path / 'last'}")
    assert done.returncode == 0, done.stdout + done.stderr
    card = (tmp_path / "last" / "README.md").read_text()
    assert "test/elbo" not in card
    assert "mmd_ratio" not in card
    assert "moving average" in card


def test_a_damaged_or_hostile_folder_is_rejected(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    from cvae import export

    def load_error(change: Callable[[Path], object]) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(exported[1], copy)
        change(copy)
        with pytest.raises(ConfigError) as caught:
            export.load(copy)
        return str(caught.value)

    def replace(copy: Path, change: Callable[[Path], object]) -> None:
        change(copy)
        write_digests(copy, ("config.json", "model.safetensors"))

    def add_hostile_target(copy: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        config["model"]["network"] = {"_target_": "os.system", "command": "touch /tmp/owned"}
        (copy / "config.json").write_text(json.dumps(config))

    weights = "model.safetensors"
    assert "no exported model" in load_error(lambda c: (c / weights).unlink())
    assert "damaged" in load_error(lambda c: (c / weights).write_bytes(b"PK" * 50))
    assert "no exported model" in load_error(
        lambda c: replace(c, lambda f: (f / weights).write_bytes(b"PK" * 50))
    )
    assert "format" in load_error(
        lambda c: replace(c, lambda f: (f / "config.json").write_text("{}"))
    )
    assert "os.system" in load_error(lambda c: replace(c, add_hostile_target))
    other = {"output_bias": torch.zeros(3)}
    from safetensors.torch import save_file

    assert "do not fit the model" in load_error(
        lambda c: replace(c, lambda f: save_file(other, f / weights))
    )
