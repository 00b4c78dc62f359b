"""Compare the models of the article: autoencoder, VAE, CVAE, and CVAE without an adversary.

``python benchmarks/article.py`` (make article) trains and evaluates each with several seeds, and
trains a VAE and a CVAE with a two-dimensional latent. It writes docs/measured/article_results.md
and article_results.png. Finished runs are skipped: repeat the command to resume after an
interruption.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from jobs import Job, train_and_evaluate

from cvae.evaluation.settings import Claim
from harness.command_line.messages import report_errors
from harness.command_line.overrides import quote_paths, rewrite_for_hydra
from harness.config.checks import validate
from harness.config.composition import compose_config
from harness.config.machine import num_cpus
from harness.config.paths import CONF, ROOT
from harness.contract import files
from harness.contract.errors import ConfigError
from harness.reports import comparison, run_results
from harness.run_folder import loading, reading

if TYPE_CHECKING:
    from PIL import Image as PILImage

FIGURE_SYSTEMS = ("autoencoder", "vae", "cvae")  # shown in the figure
SYSTEMS = (*FIGURE_SYSTEMS, "cvae_plain")  # in the table
PLANES = ("vae", "cvae")  # also trained with two latent dimensions, for the latent plane
_KEYS_OF_JOBS = {  # keys that differ between the jobs and cannot be set for all
    "train": ("model", "seed", "resume", "rerun", "sweep"),
    "evaluate": ("run", "claims"),
}
_TABLE = (  # metrics in the table, in this order
    "test/elbo",
    "test/reconstruction",
    "test/nll_k50",
    "test/joint_nll_k50",
    "test/marginal_nll_k50",
    "test/generative_accuracy_k50",
    "test/generative_accuracy_k500",
    "samples/label_agreement",
    "samples/label_agreement_drawn",
    "samples/label_agreement_worst",
    "samples/rows_right",
    "samples/cas",
    "samples/cas_drawn",
    "latent/label_accuracy_logistic",
    "latent/label_accuracy_mlp",
    "style/r2_thickness",
    "style/r2_slant",
    "style/rho_thickness",
    "style/rho_slant",
    "style/correlation_thickness",
    "style/correlation_slant",
    "latent/mmd_ratio",
    "latent/mmd_ratio_train",
    "latent/normal_accuracy",
    "latent/active_units",
    "samples/recall",
    "samples/coverage",
    "samples/sd_thickness_ratio",
    "samples/sd_slant_ratio",
    "samples/nearest_train_distance",
    "samples/frechet_distance",
    "samples/frechet_distance_drawn",
    "samples/frechet_distance_gaussian",
    "samples/frechet_distance_mixture",
)


def make_jobs(
    folder: Path, seeds: Sequence[int], train: Sequence[str], evaluate: Sequence[str] = ()
) -> list[Job]:
    """Return the jobs: every system with every seed, and the latent planes with the first seed.

    Args:
        folder: folder of the run folders.
        seeds: the seeds.
        train: further overrides of train.py.
        evaluate: further overrides of evaluate.py.

    Raises:
        ConfigError: an override has a key that differs between the jobs.
    """
    for script, overrides in (("train", train), ("evaluate", evaluate)):
        for override in overrides:
            key = override.lstrip("+~").partition("=")[0].partition("@")[0]
            if key in _KEYS_OF_JOBS[script] or key.startswith("hydra"):
                raise ConfigError(f"--{script} {override}: {key} cannot be set for all runs")
    jobs = []
    for seed in seeds:
        for system in SYSTEMS:
            overrides = [f"model={system}", f"seed={seed}", *train]
            jobs.append(Job(folder / f"{system}-s{seed}", overrides, get_args(Claim), evaluate))
    for system in PLANES:
        overrides = [f"model={system}", f"seed={seeds[0]}", *train, "model.latent_dim=2"]
        jobs.append(Job(folder / f"{system}-plane", overrides))
    return jobs


def make_table(all_jobs: Sequence[Job]) -> str:
    """Return the comparison as Markdown, with targets, values of real data, and a caption."""
    results_by_system = {
        system: [
            run_results.read_run(j.folder)
            for j in all_jobs
            if j.claims and j.train[0] == f"model={system}"
        ]
        for system in SYSTEMS
    }
    groups = [
        comparison.make_group(system, [r for r in results if isinstance(r, run_results.Run)])
        for system, results in results_by_system.items()
    ]
    broken = [
        r
        for results in results_by_system.values()
        for r in results
        if isinstance(r, run_results.Excluded)
    ]
    known = comparison.metric_names(groups)
    targets, floors = _targets_and_floors(all_jobs)
    extra_columns = {"target, CVAE": targets, "real data": floors}
    text = comparison.to_markdown(groups, [m for m in _TABLE if m in known], broken, extra_columns)
    summaries = [s for job in all_jobs if (s := reading.read_summary(job.folder))]
    minutes = sum(s.get("seconds", 0.0) for s in summaries) / 60
    measured = [reading.read_evaluation(j.folder).get("seconds", {}) for j in all_jobs]
    minutes_evaluating = sum(sum(seconds.values()) for seconds in measured) / 60
    devices = ", ".join(sorted({str(s.get("device")) for s in summaries}))
    digests = ", ".join(sorted({str(s.get("test_digest")) for s in summaries}))
    seeds = sum(1 for j in all_jobs if j.claims) // len(SYSTEMS)
    plural = "" if seeds == 1 else "s"
    return (
        f"Mean ± s.d. over {seeds} seed{plural}; {devices}; {minutes:.0f} minutes of training and "
        f"{minutes_evaluating:.0f} of evaluation in total; test set {digests}. The latent of a "
        f"plain autoencoder is its code.\n\n{text}"
    )


def _targets_and_floors(all_jobs: Sequence[Job]) -> tuple[dict[str, str], dict[str, str]]:
    """Return target and real-data value of every metric as text, preferably from the CVAE."""
    targets: dict[str, str] = {}
    floors: dict[str, str] = {}
    for system in (*SYSTEMS, "cvae"):
        by_name: dict[str, list[dict[str, Any]]] = {}
        for job in (j for j in all_jobs if j.claims and j.train[0] == f"model={system}"):
            for name, metric in reading.read_evaluation(job.folder).get("metrics", {}).items():
                by_name.setdefault(name, []).append(metric)
        for name, metrics in by_name.items():
            averages = dict(metrics[0])
            for key in ("floor", "at_least", "at_most"):
                if known := [m[key] for m in metrics if key in m]:
                    averages[key] = sum(known) / len(known)
            targets[name] = comparison.format_target(averages)
            floors[name] = comparison.format_floor(averages)
    return targets, floors


def draw_figure(all_jobs: Sequence[Job]) -> "PILImage.Image":
    """Draw the pictures of the article, from the first seed of each system."""
    from article_figure import draw_systems  # imported here because it imports torch

    folders = {job.folder.name: job.folder for job in all_jobs}
    first = {j.train[0].removeprefix("model="): j.folder for j in reversed(all_jobs) if j.claims}
    models = {
        system: loading.load_run(first[system]) for system in FIGURE_SYSTEMS if system in first
    }
    planes = {system: loading.load_run(folders[f"{system}-plane"]) for system in PLANES}
    data = loading.load_data(reading.load_config(first["cvae"]))
    data.prepare_data()
    data.setup()
    test_batch = next(iter(data.test_dataloader()))
    return draw_systems(models, planes, data.examples(), test_batch)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate the runs that are not done yet, then write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / "logs" / "article", help="folder of the run folders")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    help_train = "overrides of every training; logger=csv by default"
    add("--train", nargs="*", default=["logger=csv"], metavar="KEY=VALUE", help=help_train)
    help_evaluate = "overrides of every evaluation"
    add("--evaluate", nargs="*", default=[], metavar="KEY=VALUE", help=help_evaluate)
    cores = range(1, num_cpus() + 1)
    add("--num-jobs", type=int, default=1, choices=cores, metavar="N", help="runs at a time")
    help_output = "path of table and figure, without suffix"
    add("--output", type=Path, default=ROOT / "docs/measured/article_results", help=help_output)
    options = parser.parse_args(arguments)
    with report_errors("train", options.train):
        train, evaluate = (
            quote_paths(rewrite_for_hydra(typed), Path.cwd())
            for typed in (options.train, options.evaluate)
        )
        jobs = make_jobs(options.folder.resolve(), options.seeds, train, evaluate)
        with report_errors("evaluate", options.evaluate):
            if problems := validate(compose_config(CONF, "evaluate", evaluate), "evaluate"):
                raise ConfigError("\n".join(f"--evaluate {problem}" for problem in problems))
        train_and_evaluate(jobs, options.num_jobs)
        output = options.output
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(output.with_name(f"{output.name}.md"), make_table(jobs))
        with files.atomic_write(output.with_name(f"{output.name}.png")) as file:
            draw_figure(jobs).save(file, format="PNG", optimize=True)
        print(f"{output}.md .png")


if __name__ == "__main__":
    main()
