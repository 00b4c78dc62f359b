"""The commands in benchmarks/ that compare models and recipes, on short runs."""

import importlib
import json
import math
import os
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from cvae.types import Batch
from harness.contract import files
from harness.contract.errors import ConfigError, RunFailed
from harness.run_folder import reading
from tests.conftest import ROOT, tiny

sys.path.append(str(ROOT / "benchmarks"))

import alternatives
import article
import article_figure
import jobs


def import_benchmark(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a file of benchmarks/, with its output in tmp_path."""
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "FOLDER", tmp_path / name)
    monkeypatch.setattr(module, "OUTPUT", tmp_path / f"{name}.json")
    monkeypatch.setattr(module, "SEEDS", (1, 2))
    return module


def make_alternative(name: str) -> Any:
    """Return a small model of benchmarks/alternatives.py with random weights, for 2x2 images."""
    network = partial(MLP, hidden_dim=8, encoder_blocks=1, decoder_blocks=1)
    torch.manual_seed(0)
    model_class = getattr(alternatives, name)
    model = model_class(network, latent_dim=2, image_shape=(1, 2, 2), num_classes=2, warmup_steps=0)
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return model


def read_trained_names(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the names of the runs that a command trained, from its output."""
    lines = capsys.readouterr().out.splitlines()
    return [line.split()[1] for line in lines if line.startswith("run ") and " of " in line]


# the models of the article


def test_the_figure_of_the_article_is_an_aligned_grid_with_readable_text() -> None:
    """The grids of both rows have the same columns, and the text is readable at 700 pixels."""
    torch.manual_seed(0)
    network = partial(MLP, hidden_dim=8, encoder_blocks=1, decoder_blocks=1)
    models = {"autoencoder": Autoencoder(network, 2), "vae": VAE(network, 2)}
    models["cvae"] = CVAE(network, 2)
    x = torch.rand(20, 1, 28, 28).round()
    many = Batch(x, torch.eye(10)[torch.arange(20) % 10], torch.arange(20), 20)
    examples = Batch(x[:10], many.y[:10], torch.arange(10), 10)
    page = article_figure.draw_systems(models, {}, examples, many)
    assert page.width <= 1400
    assert article_figure.FONT_SIZE * 700 / page.width >= 10
    gaps = np.array(page.convert("L")) == 128  # between images
    per_line = gaps[:, 200:600].all(axis=1)  # the lines between the rows of the left grids
    first, last = np.flatnonzero(per_line)[[0, -1]]
    above, below = np.flatnonzero(gaps[first]), np.flatnonzero(gaps[last])
    left = above[above < 750]
    right = above[above > 750]
    assert len(left) == len(right) == 10 * 58 + 2
    assert set(above) <= set(below)  # the lower row also has the column of test images
    assert len(below) == len(above) + 60


def test_the_article_trains_14_runs_and_evaluates_12() -> None:
    article_jobs = article.make_jobs(Path("/x"), [1, 2, 3], ["logger=csv"])
    assert len(article_jobs) == len({job.folder for job in article_jobs}) == 14
    assert sum(bool(job.claims) for job in article_jobs) == 12
    assert [j.train[-1] for j in article_jobs if not j.claims] == ["model.latent_dim=2"] * 2


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--train", "model.latnet_dim=3"], ["model.latnet_dim", "model.latent_dim?"]),
        (["--train", "model.latent_dim=0"], ["model.latent_dim=0", "from 1 to 65536"]),
        (["--train", "model.beta=2"], ["model.beta", "exists with model=cvae or model=cvae_plain"]),
        (["--train", "seed=3"], ["--train seed=3", "all runs"]),
        (["--train", "hydra.run.dir=x"], ["hydra.run.dir", "all runs"]),
        (["--evaluate", "run=/x"], ["--evaluate run=", "all runs"]),
        (["--evaluate", "num_generate=9"], ["num_generate=9", "num_generated?"]),
        (["--evaluate", "num_generated=9"], ["--evaluate num_generated=9", "at least 10"]),
        (["--num-jobs", "0"], ["--num-jobs", "invalid choice"]),
    ],
)
def test_bad_settings_of_the_article_are_rejected_at_once(
    arguments: list[str], fragments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        article.main(["--folder", str(tmp_path), *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert all(part in error for part in fragments), error
    assert not list(tmp_path.iterdir())


def replace_training_and_evaluation(
    monkeypatch: pytest.MonkeyPatch, status: str = "finished"
) -> list[str]:
    """Replace training and evaluation by functions that write files; return a list of the calls."""
    calls: list[str] = []

    def train(run_dirs: Sequence[Path], *_: Any) -> None:
        for run_dir in run_dirs:
            calls.append(f"train {run_dir.name}")
            (run_dir / "checkpoints").mkdir()
            (run_dir / "checkpoints" / "best.ckpt").write_bytes(b"weights")
            reading.update_summary(run_dir, status=status)

    def evaluate(job: Any) -> None:
        calls.append(f"evaluate {job.folder.name}")
        best = job.folder / "checkpoints" / "best.ckpt"
        weights = {"checkpoint": best.name, "checkpoint_digest": files.file_digest(best)}
        measured = {"metrics": {}, "seconds": dict.fromkeys(job.claims, 1.0)}
        files.write_json(job.folder / reading.EVALUATION, {**weights, **measured})
        (job.folder / "evaluated.txt").write_text(" ".join(job.evaluate))

    monkeypatch.setattr(jobs, "run_jobs", train)
    monkeypatch.setattr(jobs, "_evaluate", evaluate)
    return calls


def test_a_run_is_evaluated_again_with_other_settings_or_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = replace_training_and_evaluation(monkeypatch)
    (job, *_) = article.make_jobs(tmp_path, [1], [], ["num_samples=5"])
    jobs.train_and_evaluate([job])
    jobs.train_and_evaluate([job])
    assert calls == ["train autoencoder-s1", "evaluate autoencoder-s1"]
    other = job._replace(evaluate=["num_samples=6"])
    jobs.train_and_evaluate([other])
    (job.folder / "checkpoints" / "best.ckpt").write_bytes(b"other weights")
    jobs.train_and_evaluate([other])
    jobs.train_and_evaluate([other])
    assert calls[2:] == ["evaluate autoencoder-s1"] * 2


def test_a_folder_of_other_settings_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is also rejected if the overrides are equal but conf/ has changed."""
    calls = replace_training_and_evaluation(monkeypatch)
    job = jobs.Job(tmp_path / "run", ["seed=1"])
    jobs.train_and_evaluate([job])
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    recipe = conf / "optimizer" / "adamw.yaml"
    recipe.write_text(recipe.read_text() + "eps: 1e-6\n")
    for other in (job._replace(train=["seed=2"]), job):
        with pytest.raises(ConfigError, match="run: holds a run of other settings"):
            jobs.train_and_evaluate([jobs.Job(tmp_path / "new", ["seed=1"]), other])
        monkeypatch.setattr(jobs, "CONF", conf)
        jobs._settings_text.cache_clear()
    jobs._settings_text.cache_clear()
    assert calls == ["train run"]
    assert not (tmp_path / "new").exists()


def test_a_failed_run_is_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace_training_and_evaluation(monkeypatch, "failed")
    (job, *_) = article.make_jobs(tmp_path, [1], [])
    with pytest.raises(RunFailed, match="autoencoder-s1; repeat the command"):
        jobs.train_and_evaluate([job])
    assert calls == ["train autoencoder-s1"]


def test_a_signal_to_the_command_ends_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal goes to the command only, not to its process group."""
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    text = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    (tmp_path / "src" / "evaluate.py").write_text(f"{text}; time.sleep(60)")
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    start = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        jobs._evaluate(jobs.Job(tmp_path, [], ["bound"]))
    assert stopped.value.code == 143
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.engines
def test_the_article_is_written_and_resumed(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Finished runs are skipped; an interrupted run resumes, also after its folder moved."""
    monkeypatch.setattr(article, "SYSTEMS", ("cvae",))
    monkeypatch.setattr(article, "PLANES", ("cvae",))
    small = [w for w in tiny(data_dir) if "latent_dim" not in w]
    more = ["--train", *small, "logger=csv", "trainer.max_epochs=1", "--seeds", "1"]
    more += ["--evaluate", "num_generated=20", "figures=false"]

    def write(folder: Path) -> list[str]:
        article.main(["--folder", str(folder), "--output", str(tmp_path / "written"), *more])
        return read_trained_names(capsys)

    assert write(tmp_path / "runs") == ["cvae-s1", "cvae-plane"]
    table = (tmp_path / "written.md").read_text(encoding="utf-8")
    assert "| `test/nll_k50` |" in table
    assert "over 1 seed;" in table
    with Image.open(tmp_path / "written.png") as page:
        assert min(page.size) > 500
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    reading.update_summary(moved / "cvae-plane", status="running")  # as after a kill
    assert write(moved) == ["cvae-plane"]
    assert not (tmp_path / "runs").exists()
    assert reading.read_summary(moved / "cvae-plane")["resumed"]
    assert write(moved) == []


# recipes


def test_the_doubly_reparametrized_gradient_matches_autograd() -> None:
    """Compare the mean over 100,000 samples for one image with autograd on the bound."""
    model = make_alternative("ImportanceWeighted")
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2).expand(100_000, 1, 2, 2)
    y = torch.tensor([[1.0, 0.0]]).expand(len(x), 2)
    loss = model.loss(model.terms(x, y, torch.randn(len(x), 2)), 0).mean()
    log_weights = model.log_weights(x, y, torch.randn(len(x), 4, 2))
    bound = (torch.logsumexp(log_weights, dim=1) - math.log(4)).mean()
    parameters = list(model.parameters())
    found, expected = (torch.autograd.grad(value, parameters) for value in (loss, -bound))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.03 * b.norm()


@pytest.mark.parametrize("path", [False, True])
def test_free_bits_drop_the_gradient_below_the_threshold(path: bool) -> None:
    """The KL has no gradient in dimensions below the threshold, and the usual one above."""
    model = make_alternative("FreeBits")
    model.path_gradient = path
    x, y = torch.bernoulli(torch.full((50, 1, 2, 2), 0.5)), torch.eye(2).repeat(25, 1)
    eps = torch.randn(50, 2)
    head = model.network.encoder.head.weight  # rows: two of the mean, two of the std
    mean, log_std = model.posterior(x, y)
    kl_per_dimension = (0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std).mean(0)
    # one dimension is above the threshold, the other below
    model.min_nats = kl_per_dimension.mean().item()
    above, below = int(kl_per_dimension.argmax()), int(kl_per_dimension.argmin())
    kl = model.terms(x, y, eps).kl.mean()
    (gradient,) = torch.autograd.grad(kl, head)
    usual_kl = model.eval().terms(x, y, eps).kl.mean()
    (plain,) = torch.autograd.grad(usual_kl, head)
    torch.testing.assert_close(gradient[above::2], plain[above::2])
    assert gradient[below::2].norm() < 1e-4 * plain[below::2].norm()
    assert usual_kl.item() == pytest.approx(kl_per_dimension.sum().item())
    if not path:  # with path_gradient, the value is a one-sample estimate
        assert kl.item() == pytest.approx(kl_per_dimension.max().item() + model.min_nats)


@pytest.mark.engines
def test_recipes_are_measured_once(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipes = import_benchmark("recipes", tmp_path, monkeypatch)
    small, other = recipes.Recipe(tuple(tiny(data_dir)), 60), recipes.Recipe(("seed=x",), 60)
    monkeypatch.setattr(recipes, "RECIPES", {"small": small, "other": other})
    recipes.main(["small"])
    document = json.loads((tmp_path / "recipes.json").read_text())
    assert list(document["recipes"]) == ["small"]  # the other recipe is not trained
    row = document["recipes"]["small"]
    assert row["n"] == 2
    nll, joint = (row[f"test/{what}nll_k60"]["mean"] for what in ("", "joint_"))
    assert joint == pytest.approx(nll + 2.302585)
    assert row["test/nll_k60"]["sd"] > 0
    table = runpy.run_path(str(ROOT / "docs" / "tables.py"))["render_recipes"](document)
    assert f"| **small** | {nll:.2f} ± " in table
    assert " | 60 | " in table
    capsys.readouterr()
    recipes.main(["small"])
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(recipes, "FOLDER", tmp_path / "of another machine")
    rows = recipes.merge_rows(
        recipes.summarize_recipes(), recipes.OUTPUT, "recipes", {"small": "changed"}
    )
    assert rows == {}  # measured with other settings
    rows = recipes.merge_rows({}, recipes.OUTPUT, "recipes", {"small": row["settings"]})
    assert rows == document["recipes"]
    with pytest.raises(SystemExit, match="unknown: none"):
        recipes.main(["none"])


@pytest.mark.engines
def test_ablations_are_paired_by_seed_and_continue_from_their_file(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ablations = import_benchmark("ablations", tmp_path, monkeypatch)
    monkeypatch.setattr(ablations, "COMMON", (*ablations.COMMON, *tiny(data_dir)))
    plain = "model.network._target_=alternatives.PlainMLP"  # a Python file next to the command
    variants = {"default": (), "plain": (plain, "model.network.latent_skips=false"), "other": ()}
    monkeypatch.setattr(ablations, "VARIANTS", variants)
    validation = importlib.import_module("validation")
    few = partial(validation.Subject, num_generated=20)  # samples of a label
    monkeypatch.setattr(validation, "Subject", few)
    ablations.main(["plain"])
    document = json.loads((tmp_path / "ablations.json").read_text())
    assert list(document["variants"]) == ["default", "plain"]
    default, plain_runs = (document["variants"][name]["runs"] for name in ("default", "plain"))
    assert list(default) == list(plain_runs) == ["1", "2"]
    gains = [default[seed]["nll"] - plain_runs[seed]["nll"] for seed in default]
    table = runpy.run_path(str(ROOT / "docs" / "tables.py"))["render_ablations"](document)
    error = abs(gains[0] - gains[1]) / 2
    assert f"| {sum(gains) / 2:+.2f} ± {error:.2f} |" in table
    assert f"an s.d. of {error * 2**0.5:.2f} nats" in table
    capsys.readouterr()
    validation.main([str(tmp_path / "ablations" / "plain-s1")])
    output = capsys.readouterr().out
    nats = float(output.partition(" nats (validation, K = 100)")[0].rpartition(" ")[2])
    assert nats == pytest.approx(plain_runs["1"]["nll"], abs=0.01)
    assert f"label agreement {plain_runs['1']['label_agreement']:.2%}, " in output
    (interrupted,) = (
        job for job in ablations.make_jobs("plain").values() if "s2" in job.folder.name
    )
    reading.update_summary(interrupted.folder, status="interrupted")
    listed = json.loads((tmp_path / "ablations.json").read_text())
    del listed["variants"]["plain"]["runs"]["2"]
    (tmp_path / "ablations.json").write_text(json.dumps(listed))
    ablations.main(["plain"])
    assert read_trained_names(capsys) == ["plain-s2"]
    assert json.loads((tmp_path / "ablations.json").read_text()) == document
    monkeypatch.setattr(ablations, "FOLDER", tmp_path / "of another machine")
    ablations.main(["plain"])
    assert capsys.readouterr().out == ""


@pytest.mark.engines
def test_the_speedrun_reports_whether_it_reached_the_target(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    speedrun = importlib.import_module("speedrun")
    monkeypatch.setattr(speedrun, "FOLDER", tmp_path)
    monkeypatch.setattr(speedrun, "OVERRIDES", (*speedrun.COMMON, *tiny(data_dir)))
    speedrun.main(["1", "2"])
    *lines, mean = capsys.readouterr().out.splitlines()
    seeds = [line for line in lines if line.startswith("seed ")]
    assert [line.partition(":")[0] for line in seeds] == ["seed 1", "seed 2"]
    nats = [float(line.split()[2]) for line in seeds]
    assert float(mean.split()[3]) == pytest.approx(sum(nats) / 2, abs=0.01)
    assert mean.endswith("84 NOT reached")
    monkeypatch.setattr(speedrun, "GOAL", 1000.0)
    speedrun.main(["1"])
    assert capsys.readouterr().out.endswith("1000 reached\n")
