"""Exported folders: loading them, damage to them, and commands that take them as ``run=``."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cvae import load_run
from harness.config.paths import ROOT
from harness.contract import exported
from harness.contract.errors import ConfigError
from harness.run_folder import exported_folder, loading, reading
from tests.conftest import run_script, tiny


@pytest.fixture(scope="module")
def original(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported folder of a finished run, in float16."""
    folder = tmp_path_factory.mktemp("exported") / "a model"
    folder.mkdir()
    model, cfg = loading.load_model(loading.find_run(finished_run)[1])
    summary = reading.read_summary(finished_run)
    config = exported_folder.portable_config(reading.to_plain(cfg), summary)
    exported.save(model.state_dict(), config, folder, half=True)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "a model"))


@pytest.fixture
def outputs(folder: Path) -> Iterator[Path]:
    """Yield the folder for outputs, and remove it afterwards."""
    path = exported_folder.output_dir(folder)
    assert path == ROOT / "logs" / "a model"
    shutil.rmtree(path, ignore_errors=True)
    yield path
    shutil.rmtree(path)


def change_config(folder: Path, **entries: Any) -> None:
    """Change the config, with new digests."""
    config = json.loads((folder / exported.CONFIG).read_text())
    (folder / exported.CONFIG).write_text(json.dumps({**config, **entries}))
    exported.write_digests(folder, (exported.CONFIG, exported.WEIGHTS))


def test_float16_weights_load_as_float32(original: Path, finished_run: Path) -> None:
    trained = load_run(finished_run).state_dict()
    for path in (original, original / exported.WEIGHTS):
        loaded = load_run(path).state_dict()
        assert loaded.keys() == trained.keys()
        for name, value in trained.items():
            assert loaded[name].dtype == value.dtype
            assert torch.equal(loaded[name], value.half().to(value.dtype)), name


def test_the_config_names_no_path_of_this_machine(original: Path, finished_run: Path) -> None:
    text = (original / exported.CONFIG).read_text()
    config = json.loads(text)
    assert str(ROOT) not in text
    assert str(finished_run) not in text
    assert '"/' not in text
    assert "logger" not in config
    assert config["callbacks"]["best"]["dirpath"] == "checkpoints"
    assert config["training"]["epochs"] == 2


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link_weights_out(folder: Path) -> None:
    shutil.move(folder / exported.WEIGHTS, folder.parent / "elsewhere")
    (folder / exported.WEIGHTS).symlink_to(folder.parent / "elsewhere")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda f: flip_a_bit(f / exported.WEIGHTS), "model.safetensors: damaged"),
    "config": (lambda f: flip_a_bit(f / exported.CONFIG), "config.json: damaged"),
    "digests": (lambda f: flip_a_bit(f / exported.DIGESTS), "SHA256SUMS|does not match"),
    "empty digests": (lambda f: (f / exported.DIGESTS).write_text(""), "not a list of digests"),
    "no digests": (lambda f: (f / exported.DIGESTS).unlink(), "SHA256SUMS is missing"),
    "no weights": (lambda f: (f / exported.WEIGHTS).unlink(), "no exported model .*is missing"),
    "no config": (lambda f: (f / exported.CONFIG).unlink(), "no exported model .*is missing"),
    "not a format": (
        lambda f: change_config(f, format="2"),
        "format must be an integer from 1 to 2",
    ),
    "a newer format": (lambda f: change_config(f, format=3), "newer version"),
    "a link": (link_weights_out, "leads out of the folder"),
    "other code": (
        lambda f: change_config(f, model={"_target_": "os.system", "command": "true"}),
        "model._target_='os.system'",
    ),
    "other weights": (lambda f: change_config(f, model={"_target_": "torch.nn.Identity"}), "fit"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_hostile_folder_is_rejected_in_one_line(kind: str, folder: Path) -> None:
    change, message = DAMAGE[kind]
    change(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


def test_an_export_of_an_earlier_version_loads_without_data(folder: Path) -> None:
    """Format 1 had neither digests nor the data of the run."""
    expected = load_run(folder)
    config = json.loads((folder / exported.CONFIG).read_text())
    (folder / exported.DIGESTS).unlink()
    (folder / exported.CONFIG).write_text(json.dumps({"format": 1, "model": config["model"]}))
    model, cfg = loading.load_model(loading.find_run(folder)[1])
    assert torch.equal(model.output_bias, expected.output_bias)
    with pytest.raises(ConfigError, match="export the run again"):
        loading.load_data(cfg)


def test_commands_read_the_folder_and_write_to_logs(
    folder: Path, outputs: Path, data_dir: Path
) -> None:
    change_config(folder, data=_with_data_dir(folder, data_dir))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for script, settings, output in (
        ("generate", ["label=1", "num_samples=2"], "generated/label-1-seed-0-samples-2.png"),
        ("evaluate", ["claims=bound", "num_samples=2", "figures=false"], "evaluation.json"),
        ("embed", [], "latents/test.npz"),
    ):
        done = run_script(script, f"run={folder}", *settings)
        assert done.returncode == 0, done.stderr
        assert (outputs / output).is_file(), done.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _with_data_dir(folder: Path, data_dir: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / exported.CONFIG).read_text())["data"]
    return {**data, "data_dir": str(data_dir)}


def test_the_outputs_of_an_export_in_a_run_are_named_after_the_run(tmp_path: Path) -> None:
    assert (
        exported_folder.output_dir(tmp_path / "15-40" / "export") == ROOT / "logs" / "15-40-export"
    )


def test_a_run_starts_from_an_exported_folder(folder: Path, data_dir: Path, tmp_path: Path) -> None:
    short = ["trainer.max_epochs=1", "optimizer.lr=1e-12", "scheduler=constant"]
    short += ["callbacks.figures=null", "logger=csv", "test=false"]
    overrides = [
        *tiny(data_dir, tmp_path / "run"),
        *short,
        "callbacks.ema=null",
        f"weights='{folder}'",
    ]
    done = run_script("train", *overrides)
    assert done.returncode == 0, done.stderr
    before, after = load_run(folder).state_dict(), load_run(tmp_path / "run").state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("script", ["train", "compare"])
def test_resume_and_compare_reject_an_exported_folder_in_one_line(
    script: str, folder: Path
) -> None:
    (folder / reading.EVALUATION).write_text('{"metrics": {}}')
    override = f"resume='{folder}'" if script == "train" else f"runs={folder}"
    done = run_script(script, override)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    message = {"train": "weights=", "compare": "no run folder"}[script]
    assert message in done.stderr
