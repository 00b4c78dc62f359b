"""Results of the experiments with other data and conditions: ``python benchmarks/experiments.py``.

Trains the experiments, or those named, with every seed: two runs at a time, on one core each (make
experiments). Measures them on the test images and saves their rows in
docs/measured/experiments.json. Finished runs are skipped: repeat the command to resume after an
interruption.
"""

import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from bench import describe_machine
from jobs import Job, is_evaluated, is_trained
from recipes import merge_rows, run_in_parallel, select_names, settings_digest

from cvae import noise
from cvae.models import VAE
from harness.contract import files
from harness.run_folder import loading, reading

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "experiments"
OUTPUT = ROOT / "docs/measured/experiments.json"
SEEDS = (1, 2, 3)
COMMON = ("device=cpu", "logger=csv")
NUM_GENERATED = 500  # samples per label
GREY_ELBO = "grey/negative_elbo"


class Experiment(NamedTuple):
    """Claims of evaluate.py to measure, and names of metrics in the order of the table."""

    claims: tuple[str, ...]
    metrics: tuple[str, ...]


HUES = tuple(f"{part}_hue_{axis}" for part in ("digit", "background") for axis in ("cos", "sin"))
EXPERIMENTS = {
    "quadrants_1": Experiment((), ("test/nll_k100", GREY_ELBO)),
    "quadrants_2": Experiment((), ("test/nll_k100", GREY_ELBO)),
    "quadrants_3": Experiment((), ("test/nll_k100", GREY_ELBO)),
    "rotated": Experiment(
        ("attribute_control", "latent_independence"),
        (
            "test/nll_k100",
            "samples/angle_error",
            "samples/label_agreement",
            "latent/angle_r2_mlp",
            "latent/label_accuracy_mlp",
        ),
    ),
    "fashion": Experiment(
        ("label_control", "latent_independence"),
        ("test/bits_per_dim_k100", "samples/label_agreement", "latent/label_accuracy_mlp"),
    ),
    "coloured": Experiment(
        ("label_control", "latent_independence", "latent_content"),
        (
            "samples/label_agreement",
            "latent/label_accuracy_mlp",
            *(f"latent/{hue}_r2_mlp" for hue in HUES),
        ),
    ),
}


def make_jobs(name: str) -> list[Job]:
    """Return the runs of an experiment, one per seed."""
    train, claims = (f"experiment={name}", *COMMON), EXPERIMENTS[name].claims
    evaluate = [f"num_generated={NUM_GENERATED}"]
    return [Job(FOLDER / f"{name}-s{n}", [f"seed={n}", *train], claims, evaluate) for n in SEEDS]


def summarize_experiments() -> dict[str, Any]:
    """Return the mean and s.d. of every metric over seeds, and the minutes of training."""
    rows: dict[str, Any] = {}
    for name, experiment in EXPERIMENTS.items():
        jobs = make_jobs(name)
        if not all(is_trained(job) and is_evaluated(job) for job in jobs):
            continue
        minutes = [reading.read_summary(job.folder)["train_seconds"] / 60 for job in jobs]
        rows[name] = {
            "settings": settings_digest(jobs[0].train[1:]),
            "machine": describe_machine(),
            "n": len(jobs),
            "minutes": round(mean(minutes), 1),
            "metrics": {
                metric: _summarize([read_metric(job.folder, metric) for job in jobs])
                for metric in experiment.metrics
            },
        }
    return rows


def read_metric(folder: Path, metric: str) -> tuple[float, float | None]:
    """Return a metric of a run, and its floor: the value on real images, or at chance."""
    if metric == GREY_ELBO:
        return grey_negative_elbo(folder), None
    if metric in (known := reading.read_summary(folder)["metrics"]):
        return known[metric], None
    entry = reading.read_evaluation(folder)["metrics"][metric]
    return entry["value"], entry.get("floor")


def _summarize(pairs: list[tuple[float, float | None]]) -> dict[str, float]:
    values, floors = (
        [value for value, _ in pairs],
        [floor for _, floor in pairs if floor is not None],
    )
    summary = {"mean": mean(values), "sd": stdev(values)}
    return {**summary, "floor": mean(floors)} if floors else summary


@torch.no_grad()
def grey_negative_elbo(folder: Path) -> float:
    """Return the negative ELBO of grey test images, in nats, for the pixels that are not given.

    This is the loss of Pyro's CVAE tutorial, where target pixels and given pixels are grey. The
    model is trained on binarized images.
    """
    model, cfg = loading.load_model(loading.find_run(folder)[1], None, VAE)
    data = loading.load_data(cfg, None)
    data.setup()
    pixels, losses = data.splits()["test"].grey, []
    for index in torch.arange(len(pixels)).split(500):
        x = pixels[index].float() / 255
        eps = noise.standard_normal(
            index, (model.latent_dim,), seed=0, stream=noise.Stream.POSTERIOR
        )
        losses.append(-model.terms(x, model.condition.from_images(x), eps).elbo)
    return float(torch.cat(losses).mean())


def main(names: list[str]) -> None:
    jobs_by_seed = zip(*map(make_jobs, select_names(names, EXPERIMENTS)), strict=True)
    run_in_parallel([job for seed_jobs in jobs_by_seed for job in seed_jobs])
    settings = {name: settings_digest(make_jobs(name)[0].train[1:]) for name in EXPERIMENTS}
    rows = merge_rows(summarize_experiments(), OUTPUT, "experiments", settings)
    files.write_json(OUTPUT, {"experiments": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
