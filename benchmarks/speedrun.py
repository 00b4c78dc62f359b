"""The shortest training that ends at 84 nats: ``python benchmarks/speedrun.py [OVERRIDE ...]``.

Trains experiment=speedrun with three seeds, one after another and each on all cores (make
speedrun), scores the bound on the validation images, and prints the history of docs/speedrun.json
with the new line below. ``--record TEXT`` adds that line to the history. The clock counts what
train/images_per_second counts: all steps of the schedule, their batches, and what is compiled or
saved among them, but neither the start nor validation.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from bench import machine
from validation import NUM_SAMPLES, validation_nll

from cvae import runs
from cvae.schema import num_cpus

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "logs" / "speedrun"
HISTORY = ROOT / "docs" / "speedrun.json"
SEEDS = (1, 2, 3)
GOAL = 84.0


def timed(seed: int, overrides: list[str]) -> tuple[float, float]:
    """Seconds of training, and nats."""
    folder = FOLDER / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-s{seed}"
    words = ["experiment=speedrun", f"seed={seed}", f"hydra.run.dir={folder}", *overrides]
    command = [sys.executable, str(ROOT / "src" / "train.py"), *words]
    if code := subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"seed {seed}: train.py ended with code {code}")
    return float(runs.read_summary(folder)["train_seconds"]), validation_nll(folder)


def line(entry: dict[str, Any]) -> str:
    seconds, nats = entry["seconds"], entry["nll"]
    spread = f"{mean(nats):.2f} ± {stdev(nats):.2f} validation nats"
    missed = "" if mean(nats) <= GOAL else f", not {GOAL:g}"
    return f"{mean(seconds):5.0f} s  {spread}{missed}  {entry['what']} ({entry['machine']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="of train.py")
    parser.add_argument("--record", metavar="TEXT", help="what is new: adds a line to the history")
    given = parser.parse_args()
    history = json.loads(HISTORY.read_text()) if HISTORY.exists() else []
    found = []
    for seed in SEEDS:
        found.append(timed(seed, given.overrides))
        print(f"seed {seed}: {found[-1][0]:.0f} s, {found[-1][1]:.2f} nats", flush=True)
    entry = {
        "what": given.record or " ".join(["now", *given.overrides]),
        "seconds": [round(seconds, 1) for seconds, _ in found],
        "nll": [round(nll, 3) for _, nll in found],
        "num_samples": NUM_SAMPLES,
        "machine": f"{num_cpus()} cores of {machine()['cpu']}, torch {torch.__version__}",
    }
    if given.record:
        runs.write_text(HISTORY, json.dumps([*history, entry], indent=2) + "\n")
    print("\n".join(map(line, [*history, entry])))


if __name__ == "__main__":
    main()
