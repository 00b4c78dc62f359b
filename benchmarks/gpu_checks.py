"""Section "checks" of the GPU benchmark: steps are correct and a run resumes exactly.

Each check returns whether it passed, and the numbers that it compared.
"""

import csv
import json
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import environment
from gpu_runs import FLOAT32, Skipped, common_overrides, graph_override, new_folder, train

from cvae.evaluation.device import full_float32
from harness.config.paths import ROOT
from harness.contract.errors import TERMINATED
from harness.run_folder.loading import load_checkpoint
from harness.run_folder.reading import LAST, METRICS

STEPS = 20
WATCHED = (20, 35)  # steps, after a warm-up and before a row of metrics is logged
LOSS_TOLERANCE = 1e-4  # relative; the order of float32 sums differs, and AdamW amplifies that
GRAPH_TOLERANCE = 1e-3  # relative; in a graph, AdamW corrects its bias in float32
_EVERY_STEP = ("test=false", "trainer.log_every_n_steps=1", FLOAT32)
# these include the smaller last batch of an epoch and, with _WARM_UP, the end of the KL warm-up
_TWO_EPOCHS = (*_EVERY_STEP, "trainer.max_epochs=2", "trainer.limit_val_batches=1")
_WARM_UP = "model.warmup_steps=10"


def read_losses(folder: Path) -> list[float]:
    """Return the loss of every logged step of a run, in nats per image."""
    with (folder / METRICS).open(newline="", encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def relative_difference(one: list[float], other: list[float]) -> float:
    """Return the largest difference of two lists of losses, relative to the first."""
    return max(abs(b - a) / abs(a) for a, b in zip(one, other, strict=True))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the last weights of a run."""
    weights: dict[str, torch.Tensor] = load_checkpoint(folder / LAST)["state_dict"]
    return weights


def have_equal_weights(one: Path, other: Path) -> bool:
    """Return whether the last weights of two runs are equal to the last bit."""
    weights, others = read_weights(one), read_weights(other)
    return weights.keys() == others.keys() and all(
        torch.equal(value.cpu(), others[name].cpu()) for name, value in weights.items()
    )


def make_verdict(passed: bool, shown: str) -> dict[str, Any]:
    return {"passed": passed, "shown": f"{'passed' if passed else '**failed**'}: {shown}"}


def check_losses(options: Namespace) -> dict[str, Any]:
    """Compare the losses of the first steps with those on the CPU, in float32 without TF32."""
    overrides = [*_EVERY_STEP, f"trainer.max_steps={STEPS}", "trainer.limit_val_batches=1"]
    overrides += graph_override(False)
    with full_float32():
        on_device = train(options, "losses", overrides)
    on_cpu = train(options, "losses-cpu", ["device=cpu", *overrides])
    difference = relative_difference(read_losses(on_cpu), read_losses(on_device))
    return {
        **make_verdict(
            difference <= LOSS_TOLERANCE, f"largest relative difference {difference:.1e}"
        ),
        "steps": STEPS,
        "largest_relative_difference": difference,
        "tolerance": LOSS_TOLERANCE,
    }


def watch_synchronizations(options: Namespace, overrides: list[str]) -> tuple[list[str], str]:
    """Return the code lines that synchronize in the watched steps, and the device of batches."""
    file, (first, last) = new_folder(options, "watch.json"), WATCHED
    file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    arguments = [
        "+callbacks.watch._target_=clock.WatchSynchronizations",
        f"+callbacks.watch.path={file}",
        f"+callbacks.watch.first={first}",
        f"+callbacks.watch.last={last}",
        *("test=false", f"trainer.max_steps={last + 5}", "trainer.limit_val_batches=1", *overrides),
    ]
    with warnings.catch_warnings(record=True) as caught:  # mode "error" would stop at the first
        warnings.simplefilter("always")
        try:
            train(options, "watch", arguments)
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
    places = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message)]
    return places, json.loads(file.read_text(encoding="utf-8"))["batches"]


def check_synchronizations(options: Namespace, is_graph: bool) -> dict[str, Any]:
    """Count synchronizations with the GPU within steps that do not log."""
    places, batch_device = watch_synchronizations(options, graph_override(is_graph))
    if options.cpu:
        raise Skipped(f"needs a GPU; batches were made on {batch_device}")
    first, last = WATCHED
    shown = f"{len(places)} synchronizations, batches on {batch_device}"
    return {
        **make_verdict(not places and batch_device == "cuda", shown),
        "steps": last - first + 1,
        "synchronizations": len(places),
        "places": sorted(set(places)),
        "batches_on": batch_device,
    }


def check_graph(options: Namespace) -> dict[str, Any]:
    """Compare CUDA graphs with eager steps over two epochs and the KL warm-up."""
    overrides = [*_TWO_EPOCHS, _WARM_UP]
    replayed = train(options, "graph", [*overrides, *graph_override(True)])
    eager = train(options, "eager", [*overrides, *graph_override(False)])
    one, other = read_losses(eager), read_losses(replayed)
    difference = relative_difference(one, other)
    equal = have_equal_weights(eager, replayed)
    shown = f"largest relative difference {difference:.1e}, weights{'' if equal else ' not'} equal"
    return {
        **make_verdict(difference <= GRAPH_TOLERANCE, shown),
        "steps": len(one),
        "largest_relative_difference": difference,
        "tolerance": GRAPH_TOLERANCE,
        "equal_weights": equal,
    }


def check_resume(options: Namespace) -> dict[str, Any]:
    """Stop a run by SIGTERM in its second epoch, resume it, and compare with a run never stopped.

    The two parts run in processes of their own, in the precision of the device.
    """
    overrides = ["test=false", "trainer.max_epochs=2", "trainer.limit_val_batches=1"]
    uninterrupted = train(options, "uninterrupted", overrides)
    steps = int(load_checkpoint(uninterrupted / LAST)["global_step"])
    stop = 3 * steps // 4
    folder = new_folder(options, "stopped")
    stopping = ["+callbacks.stop._target_=clock.StopAfterStep", f"+callbacks.stop.step={stop}"]
    first = [*common_overrides(options), *overrides, *stopping, f"hydra.run.dir={folder}"]
    codes = []
    for arguments in (first, [f"resume={folder}", "trust=clock"]):
        completed = subprocess.run(
            [sys.executable, "src/train.py", *arguments],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        codes.append(completed.returncode)
        if completed.returncode not in (0, TERMINATED):
            raise RuntimeError(completed.stdout[-1000:] + completed.stderr[-1000:])
    equal = have_equal_weights(uninterrupted, folder)
    shown = f"stopped after {stop} of {steps} steps, weights{'' if equal else ' not'} equal"
    return {
        **make_verdict(codes == [TERMINATED, 0] and equal, shown),
        "steps": steps,
        "stopped_after": stop,
        "exit_codes": codes,
        "equal_weights": equal,
    }


CHECKS: dict[
    str, Callable[[Namespace], dict[str, Any]]
] = {  # CUDA graphs last: a capture that fails can leave the device unusable
    f"{STEPS} steps have the same losses as on the CPU, float32": check_losses,
    "no eager step synchronizes with the GPU": partial(check_synchronizations, is_graph=False),
    "a run stopped by SIGTERM and resumed ends with the same weights": check_resume,
    "no step with CUDA graphs synchronizes with the GPU": partial(
        check_synchronizations, is_graph=True
    ),
    "CUDA graphs and eager steps have the same losses over two epochs, float32": check_graph,
}
