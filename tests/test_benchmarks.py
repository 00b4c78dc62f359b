"""The commands that recipes are measured by, on runs of a second."""

import importlib
import json
import math
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cvae.networks import MLP
from tests.conftest import ROOT, tiny


def script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of benchmarks/ that writes elsewhere."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "FOLDER", tmp_path / name)
    monkeypatch.setattr(module, "OUTPUT", tmp_path / f"{name}.json")
    monkeypatch.setattr(module, "SEEDS", (1, 2))
    return module


def alternative(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small model of benchmarks/alternatives.py with weights at random, on images of 4 pixels."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    network = partial(MLP, hidden_dim=8, encoder_blocks=1, decoder_blocks=1)
    torch.manual_seed(0)
    model = getattr(importlib.import_module("alternatives"), name)(
        network, latent_dim=2, image_shape=(1, 2, 2), num_classes=2
    )
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return model


def test_the_doubly_reparametrized_gradient_is_that_of_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On average: of 100,000 draws for one image, beside the bound differentiated as it stands."""
    model = alternative("ImportanceWeighted", monkeypatch)
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
def test_free_bits_leave_alone_what_costs_less(path: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dimensions below the threshold have no gradient of the KL, those above it all of it."""
    model = alternative("FreeBits", monkeypatch)
    model.path_gradient = path
    x, y = torch.bernoulli(torch.full((50, 1, 2, 2), 0.5)), torch.eye(2).repeat(25, 1)
    eps = torch.randn(50, 2)
    head = model.network.encoder.head.weight  # rows: two means, two of the standard deviation
    mean, log_std = model.posterior(x, y)
    spent = (0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std).mean(0)
    model.free = spent.mean().item()  # one dimension costs more, the other less
    above, below = int(spent.argmax()), int(spent.argmin())
    kl = model.terms(x, y, eps).kl.mean()
    (found,) = torch.autograd.grad(kl, head)
    as_always = model.eval().terms(x, y, eps).kl.mean()
    (plain,) = torch.autograd.grad(as_always, head)
    torch.testing.assert_close(found[above::2], plain[above::2])
    assert found[below::2].norm() < 1e-4 * plain[below::2].norm()
    assert as_always.item() == pytest.approx(spent.sum().item())
    if not path:  # where it is, the value is that of one sample
        assert kl.item() == pytest.approx(spent.max().item() + model.free)


@pytest.mark.engines
def test_recipes_are_measured_and_not_again(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipes = script("recipes", tmp_path, monkeypatch)
    small, other = recipes.Recipe(tuple(tiny(data_dir)), 60), recipes.Recipe(("seed=x",), 60)
    monkeypatch.setattr(recipes, "RECIPES", {"small": small, "other": other})
    recipes.main(["small"])
    document = json.loads((tmp_path / "recipes.json").read_text())
    assert list(document["recipes"]) == ["small"]  # the other has not been trained
    row = document["recipes"]["small"]
    assert row["n"] == 2
    nll, joint = (row[f"test/{what}nll_k60"]["mean"] for what in ("", "joint_"))
    assert joint == pytest.approx(nll + 2.302585)
    assert row["test/nll_k60"]["sd"] > 0
    table = runpy.run_path(str(ROOT / "docs" / "tables.py"))["recipes"](document)
    assert f"| **small** | {nll:.2f} ± " in table
    assert " | 60 | " in table
    capsys.readouterr()
    recipes.main(["small"])
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(recipes, "FOLDER", tmp_path / "of another machine")
    rows = recipes.beside_earlier(recipes.found(), recipes.OUTPUT, "recipes", {"small": "changed"})
    assert rows == {}  # measured with other settings
    rows = recipes.beside_earlier({}, recipes.OUTPUT, "recipes", {"small": row["settings"]})
    assert rows == document["recipes"]
    with pytest.raises(SystemExit, match="unknown: none"):
        recipes.main(["none"])


@pytest.mark.engines
def test_ablations_are_paired_by_seed_and_go_on_from_their_file(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ablations = script("ablations", tmp_path, monkeypatch)
    monkeypatch.setattr(ablations, "COMMON", (*ablations.COMMON, *tiny(data_dir)))
    plain = "model.network._target_=alternatives.PlainMLP"  # of a file beside the command
    variants = {"default": (), "plain": (plain, "model.network.latent_skips=false"), "other": ()}
    monkeypatch.setattr(ablations, "VARIANTS", variants)
    ablations.main(["plain"])
    document = json.loads((tmp_path / "ablations.json").read_text())
    assert list(document["variants"]) == ["default", "plain"]
    default, found = (document["variants"][name]["runs"] for name in ("default", "plain"))
    assert list(default) == list(found) == ["1", "2"]
    gains = [default[seed]["nll"] - found[seed]["nll"] for seed in default]
    table = runpy.run_path(str(ROOT / "docs" / "tables.py"))["ablations"](document)
    error = abs(gains[0] - gains[1]) / 2
    assert f"| {sum(gains) / 2:+.2f} ± {error:.2f} |" in table
    assert f"an s.d. of {error * 2**0.5:.2f} nats" in table
    capsys.readouterr()
    validation = importlib.import_module("validation")
    validation.main([str(tmp_path / "ablations" / "plain-s1")])
    said = capsys.readouterr().out
    nats = float(said.partition(" nats (validation, K = 100)")[0].rpartition(" ")[2])
    assert nats == pytest.approx(found["1"]["nll"], abs=0.01)
    assert f"right digits {found['1']['label_agreement']:.2%}, " in said
    (interrupted,) = (job for job in ablations.jobs_of("plain").values() if "s2" in job.folder.name)
    ablations.runs.begin(interrupted.folder, step=1)
    listed = json.loads((tmp_path / "ablations.json").read_text())
    del listed["variants"]["plain"]["runs"]["2"]
    (tmp_path / "ablations.json").write_text(json.dumps(listed))
    ablations.main(["plain"])  # which names code of others, to be trusted again
    assert capsys.readouterr().out == "training plain-s2\n"
    assert json.loads((tmp_path / "ablations.json").read_text()) == document
    monkeypatch.setattr(ablations, "FOLDER", tmp_path / "of another machine")
    ablations.main(["plain"])
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(ablations, "SEEDS", (1, 2, 3))
    ablations.main(["default"])
    assert capsys.readouterr().out == "training default-s3\n"


@pytest.mark.engines
def test_the_speedrun_says_whether_it_came_there(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    speedrun = importlib.import_module("speedrun")
    monkeypatch.setattr(speedrun, "FOLDER", tmp_path)
    monkeypatch.setattr(speedrun, "WORDS", (*speedrun.COMMON, *tiny(data_dir)))
    speedrun.main(["1", "2"])
    _, *seeds, mean = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in seeds] == ["seed 1", "seed 2"]
    nats = [float(line.split()[2]) for line in seeds]
    assert float(mean.split()[3]) == pytest.approx(sum(nats) / 2, abs=0.01)
    assert mean.endswith("84 NOT reached")
    monkeypatch.setattr(speedrun, "GOAL", 1000.0)
    speedrun.main(["1"])
    assert capsys.readouterr().out.endswith("1000 reached\n")
