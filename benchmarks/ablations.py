"""What each part of the default recipe is worth: ``python benchmarks/ablations.py [VARIANT ...]``.

Trains the variants, or those named, and the default with three seeds, two runs at a time on a core
each (make ablations), and scores them on the validation images and on their samples. Every run
leaves its scores in docs/ablations.json as it ends, and what stands there is not done again: repeat
it to go on after an interruption, on another machine too.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from bench import machine
from jobs import Job
from recipes import AT_A_TIME, COMMON, carry_out, known, settings_of
from validation import ALTERNATIVES, NUM_SAMPLES, validation_scores

from harness.contract import files

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "ablations"
OUTPUT = ROOT / "docs" / "ablations.json"
SEEDS = (1, 2, 3)
DEFAULT = "default"
CONV = (  # in about the time of a default run
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
    "mlp_shallow": (  # three layers a side
        "model.network._target_=alternatives.PlainMLP",
        "model.network.encoder_blocks=1",
        "model.network.decoder_blocks=1",
        "model/penalty=none",
        "trainer.max_epochs=52",
    ),
    "mlp_gated": ("model.network._target_=alternatives.GatedMLP", "model/penalty=none"),
    "label_at_input": ("model.network._target_=alternatives.LabelAtInput",),
    "free_bits": ("model._target_=alternatives.FreeBits",),
    "free_bits_path_off": (  # beside path_gradient_off
        "model._target_=alternatives.FreeBits",
        "model.path_gradient=false",
    ),
    "free_bits_labelwise": (  # beside adversary_labelwise
        "model._target_=alternatives.FreeBits",
        "model/penalty=labelwise_adversary",
    ),
    "importance_weighted": (  # beside adversary_off; its steps take twice as long
        "model._target_=alternatives.ImportanceWeighted",
        "model/penalty=none",
        "trainer.max_epochs=14",
    ),
}


def jobs_of(name: str) -> dict[int, Job]:
    words = [*VARIANTS[name], *COMMON]
    return {n: Job(FOLDER / f"{name}-s{n}", [f"seed={n}", *words]) for n in SEEDS}


def earlier(settings: dict[str, str]) -> dict[str, Any]:
    """What the file holds of variants as they and the default are now."""
    there = json.loads(OUTPUT.read_text(encoding="utf-8"))["variants"] if OUTPUT.exists() else {}
    return {
        name: there[name]
        if name in there and there[name]["settings"] == settings[name]
        else {"overrides": list(VARIANTS[name]), "settings": settings[name], "runs": {}}
        for name in VARIANTS
    }


def main(names: list[str]) -> None:
    chosen = list(dict.fromkeys([DEFAULT, *known(names, VARIANTS)]))
    default = settings_of(VARIANTS[DEFAULT])
    rows = earlier({name: f"{settings_of(VARIANTS[name])} {default}" for name in VARIANTS})
    jobs = [
        (name, seed, job)
        for name in chosen
        for seed, job in jobs_of(name).items()
        if str(seed) not in rows[name]["runs"]
    ]
    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for what the variants name there
    for start in range(0, len(jobs), AT_A_TIME):
        together = jobs[start : start + AT_A_TIME]
        carry_out([job for *_, job in together])
        for name, seed, job in together:
            scores = validation_scores(job.folder, ALTERNATIVES)
            run = {
                "nll": round(scores.nll, 3),
                "label_agreement": round(scores.label_agreement, 4),
                "cpu": machine()["cpu"],
            }
            rows[name]["runs"] = dict(sorted({**rows[name]["runs"], str(seed): run}.items()))
            found = {name: row for name, row in rows.items() if row["runs"]}
            files.write_json(OUTPUT, {"num_samples": NUM_SAMPLES, "variants": found})


if __name__ == "__main__":
    main(sys.argv[1:])
