"""Ablations of the default recipe: ``python benchmarks/ablations.py [VARIANT ...]``.

Trains the default and all variants, or the default and those named, with three seeds: two runs at
a time, on one core each (make ablations). Scores them on the validation images and on their
samples, and saves the scores of every run in docs/measured/ablations.json. Runs in that file are
skipped: repeat the command to resume after an interruption, also on another machine.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from bench import describe_machine
from jobs import Job
from recipes import COMMON, NUM_PARALLEL, run_in_parallel, select_names, settings_digest
from validation import ALTERNATIVES, NUM_SAMPLES, validation_scores

from harness.contract import files

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "ablations"
OUTPUT = ROOT / "docs/measured/ablations.json"
SEEDS = (1, 2, 3)
DEFAULT = "default"
CONV = (  # trains in about the time of the default
    "model/network=conv",
    "model/penalty=labelwise_adversary",
    "model.network.channels=[16,32]",
    "optimizer.lr=2.5e-3",
    "trainer.max_epochs=12",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "adversary_off": ("model/penalty=none",),
    "adversary_labelwise": ("model/penalty=labelwise_adversary",),
    "prior_flow": ("model/prior=flow",),
    "conv": CONV,
    "conv_flow": (*CONV, "model/prior=flow"),
    "latent_skips_off": ("model.network.latent_skips=false",),
    "path_gradient_off": ("model.path_gradient=false",),
    "ema_off": ("callbacks.ema=null",),
    "warmup_500": ("model.warmup_steps=500",),
    "latent_24": ("model.latent_dim=24",),
    "rate_constant": ("scheduler=constant",),
    "batch_256": ("data.batch_size=256", "optimizer.lr=2e-3", "callbacks.ema.decay=0.996"),
    "warp": ("data/augmentation=warp",),
    "mlp_plain": ("model.network._target_=alternatives.PlainMLP", "model/penalty=none"),
    "mlp_shallow": (  # three hidden layers per side
        "model.network._target_=alternatives.PlainMLP",
        "model.network.encoder_blocks=1",
        "model.network.decoder_blocks=1",
        "model/penalty=none",
        "trainer.max_epochs=52",
    ),
    "mlp_gated": ("model.network._target_=alternatives.GatedMLP", "model/penalty=none"),
    "label_at_input": ("model.network._target_=alternatives.LabelAtInput",),
    "free_bits": ("model._target_=alternatives.FreeBits",),
    "free_bits_path_off": (  # compare with path_gradient_off
        "model._target_=alternatives.FreeBits",
        "model.path_gradient=false",
    ),
    "free_bits_labelwise": (  # compare with adversary_labelwise
        "model._target_=alternatives.FreeBits",
        "model/penalty=labelwise_adversary",
    ),
    "importance_weighted": (  # compare with adversary_off; its steps take twice as long
        "model._target_=alternatives.ImportanceWeighted",
        "model/penalty=none",
        "trainer.max_epochs=14",
    ),
}


def make_jobs(name: str) -> dict[int, Job]:
    overrides = [*VARIANTS[name], *COMMON]
    return {n: Job(FOLDER / f"{name}-s{n}", [f"seed={n}", *overrides]) for n in SEEDS}


def saved_rows(settings: dict[str, str]) -> dict[str, Any]:
    """Return a row for each variant: the saved one, or an empty one if it is new or has changed."""
    saved = json.loads(OUTPUT.read_text(encoding="utf-8"))["variants"] if OUTPUT.exists() else {}
    return {
        name: saved[name]
        if name in saved and saved[name]["settings"] == settings[name]
        else {"overrides": list(VARIANTS[name]), "settings": settings[name], "runs": {}}
        for name in VARIANTS
    }


def main(names: list[str]) -> None:
    selected = list(dict.fromkeys([DEFAULT, *select_names(names, VARIANTS)]))
    default = settings_digest(VARIANTS[DEFAULT])
    rows = saved_rows({name: f"{settings_digest(VARIANTS[name])} {default}" for name in VARIANTS})
    jobs = [
        (name, seed, job)
        for name in selected
        for seed, job in make_jobs(name).items()
        if str(seed) not in rows[name]["runs"]
    ]
    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # runs import alternatives.py
    for start in range(0, len(jobs), NUM_PARALLEL):
        batch = jobs[start : start + NUM_PARALLEL]
        run_in_parallel([job for *_, job in batch])
        for name, seed, job in batch:
            scores = validation_scores(job.folder, ALTERNATIVES)
            run = {
                "nll": round(scores.nll, 3),
                "label_agreement": round(scores.label_agreement, 4),
                "cpu": describe_machine()["cpu"],
            }
            rows[name]["runs"] = dict(sorted({**rows[name]["runs"], str(seed): run}.items()))
            measured = {name: row for name, row in rows.items() if row["runs"]}
            files.write_json(OUTPUT, {"num_samples": NUM_SAMPLES, "variants": measured})


if __name__ == "__main__":
    main(sys.argv[1:])
