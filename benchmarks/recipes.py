"""What each recipe reaches: ``python benchmarks/recipes.py [RECIPE ...]`` (make recipes).

Trains the recipes, or those named, with every seed, two at a time on a core each, measures them on
the test images and puts their rows into docs/recipes.json. What has been done is not done again:
repeat it to go on after an interruption. The default is measured by make article.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench import machine

from cvae import changes, runs
from cvae.article import Job, carry_out_all, is_evaluated, is_trained
from cvae.schema import ConfigError, num_cpus

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "recipes"
OUTPUT = ROOT / "docs" / "recipes.json"
SEEDS = (1, 2, 3)
NUM_SAMPLES = 50
COMMON = ("device=cpu", "logger=csv", "callbacks.figures=null", "test=false")
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
    words = [*RECIPES[name], *COMMON]
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
            "settings": settings_of(words),
            "machine": machine(),
            "n": len(jobs),
            "minutes": round(mean(minutes), 1),
        }
        for metric in METRICS:
            each = [runs.read_evaluation(job.folder)["metrics"][metric]["value"] for job in jobs]
            recipes[name][metric] = {"mean": mean(each), "sd": stdev(each)}
    return recipes


def settings_of(words: Sequence[str]) -> str:
    """Digest of what a command means, as the configuration files are now."""
    return changes.fingerprint(runs.ROOT / "conf", words)


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


def carry_out(
    jobs: Sequence[Job], *evaluate: str, done: Callable[[Job], None] = lambda job: None
) -> None:
    """Do what is not done yet, two jobs at a time on a core each, and tell of it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    at_a_time = min(2, num_cpus())
    try:
        carry_out_all(jobs, evaluate, at_a_time, lambda _, doing: print(doing, flush=True), done)
    except ConfigError as error:
        raise SystemExit(f"{error}, or delete it") from None
    except runs.RunFailed as error:
        raise SystemExit(f"{error}; what is done is kept: repeat the command to go on") from None


def main(names: list[str]) -> None:
    each = zip(*map(jobs_of, known(names, RECIPES)), strict=True)
    jobs = [job for of_a_seed in each for job in of_a_seed]
    carry_out(jobs, f"num_samples={NUM_SAMPLES}", "figures=false")
    settings = {name: settings_of(words) for name, words in RECIPES.items()}
    rows = beside_earlier(found(), OUTPUT, "recipes", settings)
    runs.write_json(OUTPUT, {"num_samples": NUM_SAMPLES, "recipes": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
