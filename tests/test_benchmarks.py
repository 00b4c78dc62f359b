"""The commands that recipes are measured by, on runs of a second."""

import importlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, tiny


def script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of benchmarks/ that writes elsewhere."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "FOLDER", tmp_path / name)
    monkeypatch.setattr(module, "OUTPUT", tmp_path / f"{name}.json")
    monkeypatch.setattr(module, "SEEDS", (1, 2))
    return module


@pytest.mark.engines
def test_recipes_are_measured_and_not_again(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipes = script("recipes", tmp_path, monkeypatch)
    monkeypatch.setattr(recipes, "RECIPES", {"small": tuple(tiny(data_dir)), "other": ("seed=x",)})
    recipes.main(["small"])
    document = json.loads((tmp_path / "recipes.json").read_text())
    assert list(document["recipes"]) == ["small"]  # the other has not been trained
    row = document["recipes"]["small"]
    assert row["n"] == 2
    nll, joint = (row[f"test/{what}nll_k100"]["mean"] for what in ("", "joint_"))
    assert joint == pytest.approx(nll + 2.302585)
    assert row["test/nll_k100"]["sd"] > 0
    table = runpy.run_path(str(ROOT / "docs" / "tables.py"))["recipes"](document)
    assert f"| **small** (n=2) | {nll:.2f} ± " in table
    capsys.readouterr()
    recipes.main(["small"])
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="unknown: none"):
        recipes.main(["none"])


@pytest.mark.engines
def test_ablations_are_paired_by_seed(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablations = script("ablations", tmp_path, monkeypatch)
    common = (*ablations.COMMON, *tiny(data_dir))
    monkeypatch.setattr(ablations, "COMMON", common)
    variants = {"default": (), "wide": ("model.network.hidden_dim=32",)}
    monkeypatch.setattr(ablations, "VARIANTS", variants)
    ablations.main(["wide"])
    found = json.loads((tmp_path / "ablations.json").read_text())["variants"]
    gains = [a - b for a, b in zip(found["default"]["nll"], found["wide"]["nll"], strict=True)]
    assert found["wide"]["gain"] == pytest.approx(sum(gains) / 2, abs=2e-3)
