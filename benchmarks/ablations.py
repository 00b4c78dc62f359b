"""What each part of the default recipe is worth: ``python benchmarks/ablations.py [OVERRIDE ...]``.

Trains every variant with every seed, two at a time on a core each (make ablations), scores them on
the validation images and writes docs/ablations.json. What has been trained is not trained again:
repeat it to go on after an interruption. Words after the command choose variants.
"""

import json
import math
import os
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from validation import NUM_SAMPLES, validation_nll

from cvae import runs
from cvae.article import Job, carry_out_all

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "ablations"
OUTPUT = ROOT / "docs" / "ablations.json"
SEEDS = (1, 2, 3)
DEFAULT = "default"
COMMON = ("logger=csv", "callbacks.figures=null", "test=false")
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "path_gradient_off": ("model.path_gradient=false",),
    "latent_skips_off": ("model.network.latent_skips=false",),
    "blocks_3_3": ("model.network.encoder_blocks=3",),
    "blocks_2_4": ("model.network.decoder_blocks=4",),
    "warmup_0": ("model.warmup_steps=0",),
    "warmup_2000": ("model.warmup_steps=2000",),
    "ema_off": ("callbacks.ema=null",),
    "beta_0.9": ("model.beta=0.9",),
    "batch_256": ("data.batch_size=256", "optimizer.lr=2e-3", "model.warmup_steps=250"),
    "flow": ("model/prior=flow",),
    "adversary_off": ("model/penalty=none",),
    "plain": ("model=cvae_plain",),
    "conv": ("model/network=conv", "trainer.max_epochs=3"),  # what the time is enough for
}


def found(jobs: dict[tuple[str, int], Job]) -> dict[str, Any]:
    """Nats and seconds of every variant, beside the default of the same seeds."""
    nlls = {key: validation_nll(job.folder) for key, job in jobs.items()}
    seconds = {key: runs.read_summary(job.folder)["train_seconds"] for key, job in jobs.items()}
    variants = {}
    for name in {name: None for name, _ in jobs}:
        gained = [nlls[DEFAULT, seed] - nlls[name, seed] for seed in SEEDS]
        variants[name] = {
            "overrides": list(VARIANTS[name]),
            "nll": [round(nlls[name, seed], 3) for seed in SEEDS],
            "gain": round(mean(gained), 3),
            "standard_error": round(stdev(gained) / math.sqrt(len(SEEDS)), 3),
            "time": round(mean(seconds[name, s] / seconds[DEFAULT, s] for s in SEEDS), 2),
        }
    return {"num_samples": NUM_SAMPLES, "seeds": len(SEEDS), "variants": variants}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(VARIANTS):
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    chosen = [DEFAULT, *(name for name in names or VARIANTS if name != DEFAULT)]
    jobs = {
        (name, seed): Job(
            FOLDER / f"{name}-s{seed}", [f"seed={seed}", *COMMON, *VARIANTS[name]], False
        )
        for seed in SEEDS
        for name in chosen
    }
    count = min(2, os.cpu_count() or 1)
    carry_out_all(list(jobs.values()), [], count, lambda _, doing: print(doing, flush=True))
    document = found(jobs)
    OUTPUT.write_text(json.dumps(document, indent=2) + "\n")
    for name, row in document["variants"].items():
        print(f"{name:20} {row['gain']:+.2f} ± {row['standard_error']:.2f}  time {row['time']:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
