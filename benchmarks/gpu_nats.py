"""Sections "nats" and "evaluation" of the GPU benchmark: nats after training, time of scoring."""

import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_runs import BFLOAT16, FLOAT32, Skipped, evaluate, has_setting, train
from precision import METRIC, negative_elbo
from validation import NUM_SAMPLES

from cvae.bounds import importance_weighted_nll
from cvae.models import VAE
from harness.contract.errors import RunFailed
from harness.run_folder import loading, reading

SEEDS = (1, 2, 3)
GOAL = 84.0  # nats per validation image, as in speedrun.py
_CHUNK_SIZE = 1000  # images at a time
_MAX_ROWS = 200_000  # evaluations of the decoder in memory at a time
_SCORES = ("val/elbo", "test/nll_k100")  # nats per image
_SPEED = ("seconds", "train_seconds", "images_per_second", "steps", "precision", "device")


def limit_steps(options: Namespace) -> list[str]:
    return [f"trainer.max_steps={options.steps}", "test_num_samples=10"] if options.cpu else []


def describe_run(folder: Path) -> dict[str, Any]:
    """Return the speed of a finished run, and its scores in nats per image."""
    summary = reading.read_summary(folder)
    metrics = summary["metrics"]
    speed = (
        f"{summary['train_seconds']:.0f} s of steps at {summary['images_per_second']:,.0f} images/s"
    )
    nats = [f"{name} {metrics[name]:.2f}" for name in _SCORES if name in metrics]
    shown = ", ".join([f"{summary['seconds']:.0f} s in all, {speed}", *nats])
    return {"shown": shown, **{key: summary[key] for key in _SPEED}, "metrics": metrics}


def train_default(options: Namespace) -> dict[str, Any]:
    """Train the default once, as ``python src/train.py device=gpu`` does."""
    return describe_run(train(options, "default", limit_steps(options)))


def load_default(options: Namespace) -> Path:
    folder: Path = options.folder / "default"
    if reading.read_summary(folder).get("status") != "finished":
        raise RunFailed("there is no finished default run: measure the section nats first")
    return folder


def load_on_device(folder: Path, options: Namespace) -> tuple[VAE, Any]:
    """Return the model of a run on the device, and its data."""
    model, cfg = loading.load_model(loading.find_run(folder)[1], model_class=VAE)
    data = loading.load_data(cfg)
    data.prepare_data()
    data.setup()
    return model.to("cpu" if options.cpu else "cuda"), data


def score_same_weights(options: Namespace) -> dict[str, Any]:
    """Score the default's weights in both precisions: -ELBO in nats per test image."""
    model, data = load_on_device(load_default(options), options)
    float32, bfloat16 = (negative_elbo(model, data, is_bfloat16) for is_bfloat16 in (False, True))
    return compare_precisions(float32, bfloat16)


def compare_precisions(float32: float, bfloat16: float) -> dict[str, Any]:
    shown = f"{float32:.3f} nats in float32, {bfloat16 - float32:+.4f} in bf16-mixed"
    return {"shown": shown, "float32": float32, "bf16-mixed": bfloat16}


def train_quick(options: Namespace, seed: int) -> dict[str, Any]:
    """Train experiment=quick in both precisions: nats per test image."""
    nats = []
    for precision in (FLOAT32, BFLOAT16):
        overrides = ["experiment=quick", f"seed={seed}", precision, *limit_steps(options)]
        folder = train(options, "quick", overrides)
        nats.append(reading.read_summary(folder)["metrics"][METRIC])
    return compare_precisions(*nats)


@torch.no_grad()
def validation_nll(folder: Path, options: Namespace, num_samples: int) -> float:
    """Return the importance-weighted bound in nats per validation image, on the device."""
    model, data = load_on_device(folder, options)
    split, total = data.splits()["validation"], 0.0
    if options.cpu:
        split = split.select(slice(100))
    device = model.output_bias.device
    for index in torch.arange(len(split.labels)).split(_CHUNK_SIZE):
        x, y = split.inputs[index].to(device).float() / 255.0, split.labels[index].to(device)
        nll = importance_weighted_nll(model, x, y, index.to(device), num_samples, _MAX_ROWS)
        total += float(nll.double().sum())
    return total / len(split.labels)


def train_speedrun(options: Namespace) -> dict[str, Any]:
    """Train experiment=speedrun once: seconds, and whether it reaches 84 validation nats."""
    overrides = ["experiment=speedrun", "test=false", *limit_steps(options)]
    folder = train(options, "speedrun", overrides)
    nats = validation_nll(folder, options, 10 if options.cpu else NUM_SAMPLES)
    result = describe_run(folder)
    verdict = "reached" if nats <= GOAL else "not reached"
    shown = f"{nats:.2f} nats, {GOAL:.0f} {verdict}, in {result['shown']}"
    return {**result, "shown": shown, "validation_nll": nats}


def _evaluate_on(
    options: Namespace, accelerator: str, num_samples: int, claims: str
) -> dict[str, Any]:
    """Return seconds and values of claims on the CPU ("cpu") or the GPU ("auto")."""
    overrides = [f"num_samples={num_samples}"]
    if claims != "all":
        overrides.append(f"claims=[{claims}]")
    if has_setting("evaluate", "accelerator"):
        overrides.append(f"accelerator={accelerator}")
    elif not options.cpu and accelerator != "cpu":
        raise Skipped("conf/evaluate.yaml has no accelerator")
    result = evaluate(
        load_default(options), overrides, max(1.0, options.deadline - time.monotonic())
    )
    nats = {name: metric["value"] for name, metric in result["metrics"].items()}
    return {"seconds_by_claim": result["seconds"], "values": nats}


def time_bound(options: Namespace) -> dict[str, Any]:
    """Return the seconds and the value of the default's bound, K = 5,000, on all test images."""
    num_samples = 2 if options.cpu else 5000
    result = _evaluate_on(options, "cpu" if options.cpu else "auto", num_samples, "bound")
    seconds, name = result["seconds_by_claim"]["bound"], f"test/nll_k{num_samples}"
    shown = f"{seconds:.0f} s; {name} {result['values'][name]:.2f}"
    return {"shown": shown, "seconds": seconds, "values": result["values"]}


def compare_cpu_and_gpu(options: Namespace) -> dict[str, Any]:
    """Compare the bound with K = 50 on GPU and CPU: seconds, and the largest difference in nats."""
    if options.cpu:
        raise Skipped("needs a GPU")
    gpu, cpu = (_evaluate_on(options, name, 50, "bound") for name in ("auto", "cpu"))
    names = [name for name in cpu["values"] if "nll_k50" in name or name == "test/elbo"]
    differences = {name: gpu["values"][name] - cpu["values"][name] for name in names}
    seconds = {k: v["seconds_by_claim"]["bound"] for k, v in (("gpu", gpu), ("cpu", cpu))}
    largest = max(map(abs, differences.values()))
    shown = (
        f"{seconds['gpu']:.1f} s and {seconds['cpu']:.1f} s; largest difference {largest:.1e} nats"
    )
    return {"shown": shown, "seconds": seconds, "differences": differences}


def time_all_claims(options: Namespace) -> dict[str, Any]:
    """Return the seconds of every claim of evaluate.py with its default settings."""
    if options.cpu:
        raise Skipped("takes minutes on a CPU")
    seconds = _evaluate_on(options, "auto", 50, "all")["seconds_by_claim"]
    return {"shown": f"{sum(seconds.values()):.0f} s", "seconds": seconds}


def select_nats(is_cpu: bool) -> dict[str, Callable[[Namespace], dict[str, Any]]]:
    """Return the measurements of training by name; on a CPU with one seed."""
    seeds = SEEDS[:1] if is_cpu else SEEDS
    return {
        "default, trained once": train_default,
        "default, -ELBO of the same weights": score_same_weights,
        **{f"`experiment=quick`, seed {n}, {METRIC}": partial(train_quick, seed=n) for n in seeds},
        "`experiment=speedrun`, validation nll": train_speedrun,
    }


EVALUATION = {
    "bound of all test images": time_bound,
    "the same with K = 50, GPU and CPU": compare_cpu_and_gpu,
    "all claims of `evaluate.py`": time_all_claims,
}
