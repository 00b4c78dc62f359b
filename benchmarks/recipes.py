"""Results of the recipes: ``python benchmarks/recipes.py [RECIPE ...]`` (make recipes).

Trains the recipes, or those named, with every seed: two runs at a time, on one core each. Measures
them on the test images and saves their rows in docs/measured/recipes.json. Finished runs are
skipped: repeat the command to resume after an interruption.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from bench import describe_machine
from jobs import Job, is_evaluated, is_trained, train_and_evaluate

from harness.command_line.messages import report_errors
from harness.config.machine import num_cpus
from harness.config.paths import CONF
from harness.config.resume_overrides import fingerprint
from harness.contract import files
from harness.run_folder import reading

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "recipes"
OUTPUT = ROOT / "docs/measured/recipes.json"
SEEDS = (1, 2, 3)
NUM_PARALLEL = min(2, num_cpus())  # runs
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
    """Settings of training and evaluation."""

    overrides: tuple[str, ...]  # overrides of train.py
    num_samples: int  # K of the bound

    def digest(self) -> str:
        """Return a digest of the settings; a row with another digest is outdated."""
        return f"{settings_digest(self.overrides)} k{self.num_samples}"

    def metrics(self) -> list[str]:
        bounds = [f"test/{prefix}nll_k{self.num_samples}" for prefix in ("", "joint_", "marginal_")]
        return list(dict.fromkeys([*bounds, *METRICS]))


RECIPES = {
    "quick": Recipe(("experiment=quick",), 50),
    "default": Recipe((), 1000),
    "flow": Recipe(("experiment=flow",), 50),
    "reference": Recipe(("experiment=reference",), 50),
}


def make_jobs(name: str) -> list[Job]:
    overrides, num_samples = RECIPES[name]
    train, evaluate = [*overrides, *COMMON], [f"num_samples={num_samples}", "figures=false"]
    return [Job(FOLDER / f"{name}-s{n}", [f"seed={n}", *train], CLAIMS, evaluate) for n in SEEDS]


def summarize_recipes() -> dict[str, Any]:
    """Return the mean and s.d. of every metric over seeds, and the minutes of training."""
    recipes: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        jobs = make_jobs(name)
        if not all(is_trained(job) and is_evaluated(job) for job in jobs):
            continue
        minutes = [reading.read_summary(job.folder)["train_seconds"] / 60 for job in jobs]
        recipes[name] = {
            "overrides": list(recipe.overrides),
            "settings": recipe.digest(),
            "machine": describe_machine(),
            "n": len(jobs),
            "minutes": round(mean(minutes), 1),
            "num_samples": recipe.num_samples,
        }
        for metric in recipe.metrics():
            values = [
                reading.read_evaluation(job.folder)["metrics"][metric]["value"] for job in jobs
            ]
            recipes[name][metric] = {"mean": mean(values), "sd": stdev(values)}
    return recipes


def settings_digest(overrides: Sequence[str]) -> str:
    """Return a digest of the settings that overrides compose with the current conf/."""
    return fingerprint(CONF, overrides)


def merge_rows(
    rows: dict[str, Any], output: Path, key: str, settings: Mapping[str, str]
) -> dict[str, Any]:
    """Add the file's rows with unchanged settings, and order all rows by ``settings``."""
    earlier = json.loads(output.read_text(encoding="utf-8"))[key] if output.exists() else {}
    rows = {**{n: r for n, r in earlier.items() if r["settings"] == settings.get(n)}, **rows}
    return {name: rows[name] for name in settings if name in rows}


def select_names(names: list[str], available: Mapping[str, Any]) -> list[str]:
    """Return the given names without duplicates, or all names if none are given."""
    if unknown := set(names) - set(available):
        raise SystemExit(f"unknown: {', '.join(unknown)}; choose from {', '.join(available)}")
    return list(dict.fromkeys(names)) or list(available)


def run_in_parallel(jobs: Sequence[Job]) -> None:
    """Train and evaluate the jobs that are not done, two at a time on one core each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with report_errors():
        train_and_evaluate(jobs, NUM_PARALLEL)


def main(names: list[str]) -> None:
    jobs_by_seed = zip(*map(make_jobs, select_names(names, RECIPES)), strict=True)
    jobs = [job for seed_jobs in jobs_by_seed for job in seed_jobs]
    run_in_parallel(jobs)
    settings = {name: recipe.digest() for name, recipe in RECIPES.items()}
    rows = merge_rows(summarize_recipes(), OUTPUT, "recipes", settings)
    files.write_json(OUTPUT, {"recipes": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
