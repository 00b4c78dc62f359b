"""What each recipe reaches: ``python benchmarks/recipes.py [RECIPE ...]`` (make recipes).

Trains the recipes, or those named, with every seed, two at a time on a core each, measures them on
the test images and puts their rows into docs/recipes.json. What has been done is not done again:
repeat it to go on after an interruption. The default is measured by make article.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench import machine

from cvae import runs
from cvae.article import Job, carry_out_all, is_evaluated, is_trained
from cvae.schema import ConfigError, num_cpus

JobsOf = Callable[[str], list[Job]]
ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "recipes"
OUTPUT = ROOT / "docs" / "recipes.json"
SEEDS = (1, 2, 3)
NUM_SAMPLES = 50
RECIPES: dict[str, tuple[str, ...]] = {
    "quick": ("experiment=quick",),
    "reference": ("experiment=reference",),
}
METRICS = (
    f"test/nll_k{NUM_SAMPLES}",
    f"test/joint_nll_k{NUM_SAMPLES}",
    f"test/marginal_nll_k{NUM_SAMPLES}",
    "test/elbo",
    "samples/label_agreement",
    "samples/label_agreement_drawn",
    "latent/label_accuracy_mlp",
)


def jobs_of(name: str) -> list[Job]:
    claims = ("bound", "label_control", "latent_independence")
    words = [*RECIPES[name], "logger=csv", "callbacks.figures=null", "test=false"]
    return [Job(FOLDER / f"{name}-s{n}", [f"seed={n}", *words], claims) for n in SEEDS]


def found() -> dict[str, Any]:
    """Mean and standard deviation of every metric, and minutes of training on a core."""
    recipes: dict[str, Any] = {}
    for name, words in RECIPES.items():
        jobs = jobs_of(name)
        if not all(is_trained(job) and is_evaluated(job) for job in jobs):
            continue
        minutes = [runs.read_summary(job.folder)["train_seconds"] / 60 for job in jobs]
        recipes[name] = {
            "overrides": list(words),
            "machine": machine(),
            "n": len(jobs),
            "minutes": round(mean(minutes), 1),
        }
        for metric in METRICS:
            each = [runs.read_evaluation(job.folder)["metrics"][metric]["value"] for job in jobs]
            recipes[name][metric] = {"mean": mean(each), "sd": stdev(each)}
    return recipes


def beside_earlier(
    rows: dict[str, Any], output: Path, key: str, order: Iterable[str]
) -> dict[str, Any]:
    """The rows, and those that the file holds of what is not in logs/ here, in this order."""
    earlier = json.loads(output.read_text(encoding="utf-8"))[key] if output.exists() else {}
    rows = {**earlier, **rows}
    return {name: rows[name] for name in order if name in rows}


def carry_out(names: list[str], known: Mapping[str, Any], jobs_of: JobsOf, *evaluate: str) -> None:
    """Do what is not done yet, seed by seed, two jobs at a time, and say what is begun."""
    if unknown := set(names) - set(known):
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    each = zip(*map(jobs_of, dict.fromkeys(names)), strict=True)
    jobs = [job for several in each for job in several]
    try:
        carry_out_all(jobs, evaluate, min(2, num_cpus()), lambda _, doing: print(doing, flush=True))
    except (ConfigError, runs.RunFailed) as error:
        raise SystemExit(f"{error}; what is in {jobs[0].folder.parent} may be deleted") from None


def main(names: list[str]) -> None:
    samples = f"num_samples={NUM_SAMPLES}"
    try:
        carry_out(names or list(RECIPES), RECIPES, jobs_of, samples, "figures=false")
    finally:
        rows = beside_earlier(found(), OUTPUT, "recipes", RECIPES)
        runs.write_json(OUTPUT, {"num_samples": NUM_SAMPLES, "recipes": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
