"""What each part of the default recipe is worth: ``python benchmarks/ablations.py [VARIANT ...]``.

Trains the variants, or those named, with every seed, two at a time on a core each (make ablations),
scores them on the validation images and puts their rows into docs/ablations.json. What has been
trained is not trained again: repeat it to go on after an interruption.
"""

import math
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench import machine
from recipes import COMMON, beside_earlier, carry_out, settings_of
from scipy import stats
from validation import NUM_SAMPLES, validation_nll

from cvae import runs
from cvae.article import Job, is_trained

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "ablations"
OUTPUT = ROOT / "docs" / "ablations.json"
SEEDS = (1, 2, 3)
DEFAULT = "default"
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "path_gradient_off": ("model.path_gradient=false",),
    "latent_skips_off": ("model.network.latent_skips=false",),
    "blocks_3_3": ("model.network.encoder_blocks=3",),
    "blocks_2_4": ("model.network.decoder_blocks=4",),
    "latent_24": ("model.latent_dim=24",),
    "warmup_500": ("model.warmup_steps=500",),
    "ema_off": ("callbacks.ema=null",),
    "beta_0.9": ("model.beta=0.9",),
    "batch_256": ("data.batch_size=256", "optimizer.lr=2e-3", "callbacks.ema.decay=0.996"),
    "prior_flow": ("model/prior=flow",),
    "adversary_off": ("model/penalty=none",),
    "cvae_plain": ("model=cvae_plain",),
    "conv": ("model/network=conv", "trainer.max_epochs=5"),  # in a default run's time
    "warp": ("data/augmentation=warp",),
}


def jobs_of(name: str) -> list[Job]:
    words = [*VARIANTS[name], *COMMON]
    return [Job(FOLDER / f"{name}-s{n}", [f"seed={n}", *words]) for n in SEEDS]


def settings_beside_default(name: str) -> str:
    """Digest of a variant and of the default, which its gain is over."""
    return f"{settings_of(VARIANTS[name])} {settings_of(VARIANTS[DEFAULT])}"


def found() -> dict[str, Any]:
    """Nats of every variant, beside the default of the same seeds, and its share of the time."""
    variants: dict[str, Any] = {}
    there = {name: jobs_of(name) for name in VARIANTS}
    there = {name: jobs for name, jobs in there.items() if all(map(is_trained, jobs))}
    nlls = {name: [validation_nll(job.folder) for job in jobs] for name, jobs in there.items()}
    seconds = {
        name: [runs.read_summary(job.folder)["train_seconds"] for job in jobs]
        for name, jobs in there.items()
    }
    for name in there:
        gains = [was - now for was, now in zip(nlls[DEFAULT], nlls[name], strict=True)]
        half = float(stats.t.ppf(0.975, len(SEEDS) - 1)) * stdev(gains) / math.sqrt(len(SEEDS))
        variants[name] = {
            "overrides": list(VARIANTS[name]),
            "settings": settings_beside_default(name),
            "machine": machine(),
            "nll": [round(nll, 3) for nll in nlls[name]],
            "gain": round(mean(gains), 3),
            "half_of_95_percent": round(half, 3),
            "time": round(mean(seconds[name]) / mean(seconds[DEFAULT]), 2),
        }
    return variants


def main(names: list[str]) -> None:
    carry_out(list(dict.fromkeys([DEFAULT, *(names or VARIANTS)])), VARIANTS, jobs_of)
    settings = {name: settings_beside_default(name) for name in VARIANTS}
    rows = beside_earlier(found(), OUTPUT, "variants", settings)
    runs.write_json(OUTPUT, {"num_samples": NUM_SAMPLES, "variants": rows})
    print("gain in nats over the default, ± half of a 95 % interval")
    for name, row in rows.items():
        spread = f"{row['gain']:+.2f} ± {row['half_of_95_percent']:.2f}"
        print(f"{name:20} {spread}  {row['time']:.2f} of the time")


if __name__ == "__main__":
    main(sys.argv[1:])
