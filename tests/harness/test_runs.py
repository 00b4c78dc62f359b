"""Generating images from a run folder, and loading its model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from cvae import load_run, sampling
from cvae.models import CVAE
from harness.contract.errors import ConfigError
from harness.run_folder import checkpoints, folder, loading, reading
from harness.run_folder.folder import RunFolder
from tests.conftest import NUM_TEST, ROOT, run_script, run_warm


def test_generate_writes_png_and_npy(finished_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "some digits.png"
    arguments = [f"run={finished_run}", "label=7", "num_samples=16", "npy=true", f"output={output}"]
    done = run_script("generate", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(output), str(output.with_suffix(".npy"))]
    array = np.load(output.with_suffix(".npy"))
    assert array.shape == (16, 28, 28)
    assert array.dtype == np.uint8
    with Image.open(output) as picture:
        assert picture.size == (18 + 8 * 58, 37 + 2 * 58)  # two rows of eight images
    again = run_script("generate", *arguments[:-1], f"output={tmp_path / 'again.png'}")
    assert again.returncode == 0
    assert (tmp_path / "again.png").read_bytes() == output.read_bytes()  # seed=0 is the default


def test_generate_names_pictures_by_their_settings(finished_run: Path) -> None:
    """The rows have the order of the labels, and the last checkpoint gives another picture."""
    images = {}
    for text, name in (
        ("label=7 num_samples=4", "label-7-seed-0-samples-4"),
        ("label=7", "label-7-seed-0"),
        ("label=7,3 num_samples=4", "label-7-3-seed-0-samples-4"),
        ("label=[3] temperature=0.7 sample_pixels=true", "label-3-seed-0-temperature-0.7-sampled"),
        (f"label=3 run={{}}/{reading.LAST}", "label-3-seed-0-last"),
    ):
        overrides = [f"run={finished_run}", *(w.format(finished_run) for w in text.split(" "))]
        overrides = overrides[1:] if "run={}" in text else overrides
        done = run_script("generate", *overrides, "npy=true")
        assert done.returncode == 0, done.stderr
        stem = finished_run / "generated" / name
        assert done.stdout.splitlines() == [f"{stem}.png", f"{stem}.npy"]
        images[name] = np.load(f"{stem}.npy")
    rows = images["label-7-3-seed-0-samples-4"].reshape(2, 4, 28, 28)
    assert (rows[0] == images["label-7-seed-0-samples-4"]).all()
    assert (rows[1] == images["label-3-seed-0-last"][:4]).mean() < 1
    done = run_script("generate", f"run={finished_run}", "label=3,12")
    assert done.returncode == 2
    assert done.stderr == "error: label=12: must be from 0 to 9, a list of these, or all\n"


def test_samples_of_one_label_are_split_into_balanced_rows(tmp_path: Path) -> None:
    """The rest of the last row is white."""
    for count, rows, columns in ((7, 1, 7), (16, 2, 8), (11, 2, 6), (21, 3, 7)):
        (path,) = sampling.save(torch.ones(1, count, 1, 28, 28), tmp_path / "x.png", ["7"])
        with Image.open(path) as picture:
            assert picture.size == (18 + columns * 58, 27 + rows * 58 + 10)
            pixels = np.array(picture)[26:]
        assert not (pixels < 128).any()


def test_generate_reports_replaced_files(finished_run: Path, tmp_path: Path) -> None:
    overrides = [f"run={finished_run}", "label=7", f"output={tmp_path}/x.png"]
    first, second = run_script("generate", *overrides), run_script("generate", *overrides)
    assert first.stderr == ""
    assert second.stderr == f"{tmp_path}/x.png: replaced\n"
    assert first.stdout == second.stdout


def test_generate_writes_into_the_run_folder(finished_run: Path) -> None:
    checkpoint = finished_run / "checkpoints" / "best.ckpt"
    done = run_script("generate", f"run={checkpoint}", "label=all", "num_samples=3", "seed=5")
    assert done.returncode == 0, done.stderr
    written = Path(done.stdout.strip())
    assert written.parent == finished_run / "generated"
    assert written.is_file()


def test_a_folder_of_several_runs_is_rejected_and_one_run_is_suggested(tmp_path: Path) -> None:
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / reading.CONFIG).touch()
    with pytest.raises(ConfigError, match=f"several runs; name one, such as {tmp_path / '0'}"):
        loading.find_run(tmp_path)


def test_embed_writes_the_latents_of_a_split(finished_run: Path, tmp_path: Path) -> None:
    done = run_script("embed", f"run={finished_run}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{finished_run / 'latents' / 'test.npz'}\n"
    with np.load(finished_run / "latents" / "test.npz") as latents:
        assert list(latents) == ["mean", "sd", "labels", "indices"]
        assert latents["mean"].shape == latents["sd"].shape == (NUM_TEST, 3)
        assert (latents["labels"] == np.arange(NUM_TEST) % 10).all()
    last = run_script("embed", f"run={finished_run / reading.LAST}", "split=train")
    assert last.stdout == f"{finished_run / 'latents' / 'train-last.npz'}\n"
    done = run_script("embed", f"run={finished_run}", f"output={tmp_path}/x.png")
    assert done.returncode == 2
    assert done.stderr == f"error: output={tmp_path}/x.png: must end in .npz\n"


def test_a_finished_run_without_its_best_checkpoint_is_rejected(
    finished_run: Path, tmp_path: Path
) -> None:
    """A run that is still training is read from its last checkpoint instead."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    (run_dir / reading.BEST).unlink()
    with pytest.raises(ConfigError, match=r"best\.ckpt is gone"):
        loading.find_run(run_dir)
    assert loading.find_run(run_dir / reading.LAST) == (run_dir, run_dir / reading.LAST)
    RunFolder(run_dir).record_start(step=1)
    assert loading.find_run(run_dir) == (run_dir, run_dir / reading.LAST)


def test_load_run_returns_the_model(finished_run: Path) -> None:
    for place in (finished_run, finished_run / "checkpoints" / "last.ckpt"):
        model = load_run(place)
        assert isinstance(model, CVAE)
        assert not model.training
        assert model.sample(y=7, num_samples=2).shape == (2, 1, 28, 28)


def test_a_checkpoint_loads_without_its_run_folder(finished_run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(finished_run / "checkpoints" / "best.ckpt", alone)
    one, two = load_run(alone), load_run(finished_run)
    z = torch.randn(3, 3)
    assert torch.equal(one.sample([1, 2, 3], z), two.sample([1, 2, 3], z))


def test_a_config_without_a_prior_loads(finished_run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.ckpt"
    checkpoint = loading.load_checkpoint(finished_run / "checkpoints" / "best.ckpt")
    del checkpoint["config"]["model"]["prior"]
    checkpoints.save(checkpoint, old)
    z = torch.randn(3, 3)
    expected = load_run(finished_run).sample([1, 2, 3], z)
    assert torch.equal(load_run(old).sample([1, 2, 3], z), expected)


def test_loading_a_bad_folder_or_checkpoint_names_the_reason(
    finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="no checkpoint"):
        load_run(tmp_path)
    bad = tmp_path / "bad.ckpt"
    bad.write_text("<html>")
    with pytest.raises(ConfigError, match="looks like HTML"):
        load_run(bad)
    checkpoints.save({"state_dict": {}}, bad)
    with pytest.raises(ConfigError, match="not a checkpoint of this project"):
        load_run(bad)
    checkpoint = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["config"]["model"]["latent_dim"] = 5
    checkpoints.save(checkpoint, bad)
    with pytest.raises(ConfigError, match="the weights do not fit the model"):
        load_run(bad)


def test_short_keys_are_unique() -> None:
    nested = {"a": {"x": 1, "y": 2}, "b": {"x": 3, "c": {"z": 4}}, "seed": 0, "empty": {}}
    assert reading.short_keys(nested) == {
        "a.x": 1,
        "y": 2,
        "b.x": 3,
        "z": 4,
        "seed": 0,
        "empty": {},
    }


def test_the_archived_config_is_resolved(finished_run: Path) -> None:
    cfg = reading.load_config(finished_run)
    assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(cfg, resolve=True)
    assert Path(cfg.data.data_dir).is_absolute()
    assert cfg.callbacks.best.dirpath == str(finished_run / "checkpoints")
    assert cfg.callbacks.best.monitor == cfg.monitor == "val/elbo"
    assert "hydra" not in cfg


def test_latest_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "ROOT", tmp_path)
    for name in ("one", "two"):
        run_dir = tmp_path / "logs" / "train" / name
        run_dir.mkdir(parents=True)
        folder.update_latest_link(run_dir)
        assert (tmp_path / "logs" / "latest").resolve() == run_dir
    folder.update_latest_link(tmp_path / "elsewhere")
    assert (tmp_path / "logs" / "latest").resolve() == run_dir
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["latest", "train"]


READS = """
import sys
from pathlib import Path
from harness.run_folder import checkpoints, trust
from harness.run_folder.folder import RunFolder
from harness.training.launch import launch

def note(module, name, path_of):
    function = getattr(module, name)
    def noted(*arguments, **named):
        print("read", path_of(*arguments))
        return function(*arguments, **named)
    setattr(module, name, noted)

note(trust, "read_text", lambda folder, name: name)
note(checkpoints, "load", lambda path: path.name)
launch(RunFolder(Path(sys.argv[1])))
"""


def test_resume_reads_each_file_once(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy, ignore=shutil.ignore_patterns("wandb", "figures"))
    cfg = reading.load_untrusted_config(copy)
    cfg.trainer.max_epochs, cfg.logger = 3, None
    RunFolder(copy).write_config(cfg)
    reading.update_summary(copy, status="interrupted")
    script = tmp_path / "reads.py"
    script.write_text(READS)
    done = run_warm(script, [str(copy)], ROOT, 120)
    assert done.returncode == 0, done.stdout + done.stderr
    read = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("read ")]
    # best.ckpt is read for the test
    assert sorted(read) == ["best.ckpt", "config.yaml", "last.ckpt"]
