"""Section "rates" of the GPU benchmark: images per second, milliseconds per step, peak memory."""

import gc
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench import images_per_second, parse_times
from clock import Timer
from contenders import CONTENDERS
from gpu_runs import Skipped, common_overrides, graph_override, new_folder, train
from jobs import compose_config

from harness.config.paths import ROOT

SLOW_STEPS = 120  # of the conventional contender, which prepares images one by one


def rate_overrides(options: Namespace, precision: str, batch_size: int) -> list[str]:
    steps = [f"trainer.max_steps={options.steps}", "trainer.max_epochs=-1"]
    scores = ["trainer.limit_val_batches=0", "test=false"]
    sizes = [] if options.cpu else [f"data.batch_size={batch_size}"]
    return [*steps, *scores, f"trainer.precision={precision}", *sizes]


def time_ours(options: Namespace, setting: str, overrides: list[str]) -> dict[int, float]:
    """Return the times of steps of train.py's loop: eager, CUDA graph or compiled."""
    extra = graph_override(setting == "cuda_graph")
    if setting == "compile":
        if options.cpu:
            raise Skipped("compiling takes too long on a CPU")
        extra.append("compile=reduce-overhead")
    file = new_folder(options, "clock.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    clock = [
        "+callbacks.clock._target_=clock.Clock",
        f"+callbacks.clock.path={file}",
        f"+callbacks.clock.start={options.steps // 2}",
    ]
    train(options, "rate", [*overrides, *extra, *clock])
    return parse_times(file.read_text(encoding="utf-8"))


def time_contender(options: Namespace, name: str, overrides: list[str]) -> dict[int, float]:
    """Return the times of steps of a loop of contenders.py."""
    cfg = compose_config([*common_overrides(options), *overrides])
    cfg.data.data_dir = str(ROOT / cfg.data.data_dir)
    steps = min(SLOW_STEPS, options.steps) if name == "conventional" else options.steps
    timer = Timer(steps, steps // 2)
    CONTENDERS[name](cfg, timer)
    return timer.times


def measure_rate(
    options: Namespace,
    time_steps: Callable[[Namespace, str, list[str]], dict[int, float]],
    name: str,
    precision: str,
    batch_size: int,
) -> dict[str, Any]:
    """Return the speed of one contender, timed over the second half of its steps."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    overrides = rate_overrides(options, precision, batch_size)
    times = time_steps(options, name, overrides)
    cfg = compose_config([*common_overrides(options), *overrides])
    speed = images_per_second(times, cfg.data.batch_size)
    result: dict[str, Any] = {
        "shown": f"{speed:,.0f} images/s",
        "precision": precision,
        "batch_size": cfg.data.batch_size,
        "images_per_second": round(speed),
        "milliseconds_per_step": round(1000 * cfg.data.batch_size / speed, 3),
    }
    if torch.cuda.is_available():
        result["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return result


LOOPS: dict[str, tuple[Callable[[Namespace, str, list[str]], dict[int, float]], str]] = {
    "ours, CUDA graphs": (time_ours, "cuda_graph"),
    "bare loop, CUDA graphs": (time_contender, "bare_graph"),
    "ours, eager": (time_ours, "eager"),
    "bare loop, eager": (time_contender, "bare"),
    "conventional": (time_contender, "conventional"),
    "ours, compile=reduce-overhead": (time_ours, "compile"),
}
_FAST = list(LOOPS)[:4]
_ORDER = (  # what matters most first, in case the time runs out
    *((name, "bf16-mixed", 128) for name in _FAST),
    *((name, "32-true", 128) for name in _FAST),
    *((name, "bf16-mixed", 512) for name in _FAST),
    ("conventional", "32-true", 128),
    ("ours, compile=reduce-overhead", "bf16-mixed", 128),
    ("ours, compile=reduce-overhead", "32-true", 128),
)


def select_rates(is_cpu: bool) -> dict[str, Callable[[Namespace], dict[str, Any]]]:
    """Return the measurements by name: all, or on a CPU each loop once."""
    rows = tuple((name, "32-true", 128) for name in LOOPS) if is_cpu else _ORDER
    return {
        f"{name}, {precision}, batch {size}": partial(
            measure_rate,
            time_steps=LOOPS[name][0],
            name=LOOPS[name][1],
            precision=precision,
            batch_size=size,
        )
        for name, precision, size in rows
    }
