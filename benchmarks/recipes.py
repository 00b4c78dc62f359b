"""What each recipe reaches: ``python benchmarks/recipes.py [RECIPE ...]`` (make recipes).

Trains the recipes, or those named, with every seed, two at a time on a core each, measures them on
the test images and puts their rows into docs/recipes.json. What has been done is not done again:
repeat it to go on after an interruption.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from bench import machine
from jobs import Job, carry_out_all, is_evaluated, is_trained

from harness.command_line.messages import reported
from harness.config.changes import fingerprint
from harness.config.machine import num_cpus
from harness.config.paths import CONF
from harness.contract import files
from harness.run_folder import reading

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "recipes"
OUTPUT = ROOT / "docs" / "recipes.json"
SEEDS = (1, 2, 3)
AT_A_TIME = min(2, num_cpus())  # runs
COMMON = ("device=cpu", "logger=csv", "callbacks.figures=null", "test=false")
CLAIMS = ("bound", "label_control", "latent_independence")
METRICS = (
    "test/elbo",
    "test/nll_k50",
    "samples/label_agreement",
    "samples/label_agreement_drawn",
    "samples/label_agreement_worst",
    "latent/label_accuracy_logistic",
    "latent/label_accuracy_mlp",
)


class Recipe(NamedTuple):
    """What it is trained and measured with."""

    words: tuple[str, ...]  # overrides of train.py
    num_samples: int  # K of the bound

    def settings(self) -> str:
        """What a row stands for: with other settings, it is measured anew."""
        return f"{settings_of(self.words)} k{self.num_samples}"

    def metrics(self) -> list[str]:
        bounds = [f"test/{what}nll_k{self.num_samples}" for what in ("", "joint_", "marginal_")]
        return list(dict.fromkeys([*bounds, *METRICS]))


RECIPES = {
    "quick": Recipe(("experiment=quick",), 50),
    "default": Recipe((), 1000),
    "flow": Recipe(("experiment=flow",), 50),
    "reference": Recipe(("experiment=reference",), 50),
}


def jobs_of(name: str) -> list[Job]:
    words, num_samples = RECIPES[name]
    train, evaluate = [*words, *COMMON], [f"num_samples={num_samples}", "figures=false"]
    return [Job(FOLDER / f"{name}-s{n}", [f"seed={n}", *train], CLAIMS, evaluate) for n in SEEDS]


def found() -> dict[str, Any]:
    """Mean and standard deviation of every metric, and minutes of training on a core."""
    recipes: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        jobs = jobs_of(name)
        if not all(is_trained(job) and is_evaluated(job) for job in jobs):
            continue
        minutes = [reading.read_summary(job.folder)["train_seconds"] / 60 for job in jobs]
        recipes[name] = {
            "overrides": list(recipe.words),
            "settings": recipe.settings(),
            "machine": machine(),
            "n": len(jobs),
            "minutes": round(mean(minutes), 1),
            "num_samples": recipe.num_samples,
        }
        for metric in recipe.metrics():
            each = [reading.read_evaluation(job.folder)["metrics"][metric]["value"] for job in jobs]
            recipes[name][metric] = {"mean": mean(each), "sd": stdev(each)}
    return recipes


def settings_of(words: Sequence[str]) -> str:
    """Digest of what a command means, as the configuration files are now."""
    return fingerprint(CONF, words)


def beside_earlier(
    rows: dict[str, Any], output: Path, key: str, settings: Mapping[str, str]
) -> dict[str, Any]:
    """The rows, and those of the file that are of the same settings, in the order of these."""
    earlier = json.loads(output.read_text(encoding="utf-8"))[key] if output.exists() else {}
    rows = {**{n: r for n, r in earlier.items() if r["settings"] == settings.get(n)}, **rows}
    return {name: rows[name] for name in settings if name in rows}


def known(names: list[str], there_are: Mapping[str, Any]) -> list[str]:
    """The names that were typed, or all."""
    if unknown := set(names) - set(there_are):
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(there_are)}")
    return list(dict.fromkeys(names)) or list(there_are)


def carry_out(jobs: Sequence[Job]) -> None:
    """Do what is not done yet, two runs at a time on a core each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with reported():
        carry_out_all(jobs, AT_A_TIME)


def main(names: list[str]) -> None:
    each = zip(*map(jobs_of, known(names, RECIPES)), strict=True)
    jobs = [job for of_a_seed in each for job in of_a_seed]
    carry_out(jobs)
    settings = {name: recipe.settings() for name, recipe in RECIPES.items()}
    rows = beside_earlier(found(), OUTPUT, "recipes", settings)
    files.write_json(OUTPUT, {"recipes": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
