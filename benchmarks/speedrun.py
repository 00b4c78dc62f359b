"""How long it takes to come to 84 nats: ``python benchmarks/speedrun.py [SEED ...]``.

Trains ``experiment=speedrun`` with seed after seed, on all cores (make speedrun), and prints the
seconds of each run from its set-up to its last checkpoint, those of its training steps, and its
bound on -log p(x|y) on the validation images. Close what else runs there.
"""

import sys
from datetime import datetime
from pathlib import Path
from statistics import mean

from bench import machine
from jobs import Job, carry_out_all
from recipes import COMMON
from validation import NUM_SAMPLES, validation_nll

from harness.command_line.messages import reported
from harness.run_folder import reading

FOLDER = Path(__file__).resolve().parents[1] / "logs" / "speedrun"
GOAL = 84.0  # nats
SEEDS = ("1", "2", "3")
WORDS = ("experiment=speedrun", *COMMON)


def main(seeds: list[str]) -> None:
    known = machine()
    print(f"{known['cpu']}, {known['cores']} cores, torch {known['versions']['torch']}", flush=True)
    folder = FOLDER / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"  # every time is taken anew
    taken, reached = [], []
    for seed in seeds or SEEDS:
        job = Job(folder / f"s{seed}", [f"seed={seed}", *WORDS])
        with reported():
            carry_out_all([job])
        summary = reading.read_summary(job.folder)
        taken.append(summary["seconds"])
        reached.append(validation_nll(job.folder))
        steps = f"{summary['train_seconds']:.0f} s of them steps"
        print(f"seed {seed}: {reached[-1]:.2f} nats in {taken[-1]:.0f} s, {steps}", flush=True)
    verdict = "reached" if mean(reached) <= GOAL else "NOT reached"
    print(
        f"mean of {len(taken)}: {mean(reached):.2f} nats (validation, K = {NUM_SAMPLES}) "
        f"in {mean(taken):.0f} s; {GOAL:.0f} {verdict}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
