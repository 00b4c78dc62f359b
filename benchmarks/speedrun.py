"""Time to reach 84 nats: ``python benchmarks/speedrun.py [SEED ...]``.

Trains ``experiment=speedrun`` with one seed after another, on all cores (make speedrun). Prints the
seconds of each run from set-up to last checkpoint, those of its training steps, and its bound on
-log p(x|y) on the validation images. Leave the machine idle meanwhile.
"""

import sys
from datetime import datetime
from pathlib import Path
from statistics import mean

from bench import describe_machine
from jobs import Job, train_and_evaluate
from recipes import COMMON
from validation import NUM_SAMPLES, validation_nll

from harness.command_line.messages import report_errors
from harness.run_folder import reading

FOLDER = Path(__file__).resolve().parents[1] / "logs" / "speedrun"
GOAL = 84.0  # nats
SEEDS = ("1", "2", "3")
OVERRIDES = ("experiment=speedrun", *COMMON)


def main(seeds: list[str]) -> None:
    machine = describe_machine()
    print(
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['versions']['torch']}",
        flush=True,
    )
    folder = FOLDER / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"  # new runs, never skipped
    seconds, nats = [], []
    for seed in seeds or SEEDS:
        job = Job(folder / f"s{seed}", [f"seed={seed}", *OVERRIDES])
        with report_errors():
            train_and_evaluate([job])
        summary = reading.read_summary(job.folder)
        seconds.append(summary["seconds"])
        nats.append(validation_nll(job.folder))
        steps = f"of which {summary['train_seconds']:.0f} s are training steps"
        print(f"seed {seed}: {nats[-1]:.2f} nats in {seconds[-1]:.0f} s, {steps}", flush=True)
    verdict = "reached" if mean(nats) <= GOAL else "NOT reached"
    print(
        f"mean of {len(seconds)}: {mean(nats):.2f} nats (validation, K = {NUM_SAMPLES}) "
        f"in {mean(seconds):.0f} s; {GOAL:.0f} {verdict}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
