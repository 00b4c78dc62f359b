"""Training speed, compared with other implementations in alternating rounds on one machine.

``python benchmarks/bench.py`` (make bench) writes logs/bench/latest.json, and bench.json and
bench.png in docs/measured. Compare only numbers of the same file, and leave the machine idle
meanwhile.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
LOGS = ROOT / "logs" / "bench"
DEFAULT_BATCH = 128
MODEL = "model=cvae_plain"  # without an adversary, so that pythae can train it too
TRAIN = [MODEL, "device=cpu", "trainer.max_epochs=-1", "trainer.limit_val_batches=0", "test=false"]
OURS = {  # the default, and settings that make it faster
    "ours": [],
    "ours, compiled": ["compile=default"],
    "ours, precision=auto": ["trainer.precision=auto"],
    "ours, precision=bf16-mixed": ["trainer.precision=bf16-mixed"],
    "ours, batch 512": ["data.batch_size=512"],
    "ours, batch 512, compiled": ["data.batch_size=512", "compile=default"],
}
OTHERS = ("bare", "conventional", "pythae")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment for commands, with this folder and src/ on PYTHONPATH."""
    paths = [str(HERE), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    path = os.pathsep.join(paths)
    return {**os.environ, "PYTHONPATH": path, "WANDB_MODE": "offline", **variables}


def run_command(
    command: list[str], timeout: float | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    completed = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if completed.returncode:
        raise SystemExit(f"{command}\n{completed.stdout}{completed.stderr}")
    return completed


def train(overrides: list[str], steps: int, start: int, **variables: str) -> dict[int, float]:
    """Run train.py with its callbacks, metrics.csv and offline W&B; return the times of steps."""
    name = f"{time.time_ns():x}"
    clock = LOGS / f"{name}.json"
    clock_overrides = [
        f"hydra.run.dir={LOGS / 'runs' / name}",
        "+callbacks.clock._target_=clock.Clock",
        f"+callbacks.clock.path={clock}",
        f"+callbacks.clock.start={start}",
        f"trainer.max_steps={steps}",
    ]
    run_command(
        [sys.executable, "src/train.py", *TRAIN, *clock_overrides, *overrides], None, **variables
    )
    return parse_times(clock.read_text(encoding="utf-8"))


def parse_times(text: str) -> dict[int, float]:
    return {int(step): seconds for step, seconds in json.loads(text)["times"].items()}


def images_per_second(times: dict[int, float], batch_size: int) -> float:
    """Return images per second between the last two recorded steps."""
    (first, start), (last, end) = sorted(times.items())[-2:]
    return batch_size * (last - first) / (end - start)


def measure_contender(name: str, steps: int) -> float:
    """Return images per second of a contender."""
    start = steps // 3  # with 400 steps of 512 images, after the smaller last batch of an epoch
    if name in OURS:
        batch = 512 if "batch 512" in name else DEFAULT_BATCH
        return images_per_second(train(OURS[name], steps, start), batch)
    script = str(HERE / "contenders.py")
    completed = run_command(
        [sys.executable, script, name, str(steps), str(start), MODEL, "device=cpu"]
    )
    return images_per_second(parse_times(completed.stdout.splitlines()[-1]), DEFAULT_BATCH)


def summarize(values: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "all": [round(value, 4) for value in values],
    }


def measure_training(rounds: int, steps: int) -> dict[str, Any]:
    """Measure images per second of every contender, in the order A B C A B C."""
    names = [*OTHERS, *OURS]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            rates[name].append(measure_contender(name, steps))
            print(f"round {number + 1}  {name:28s} {rates[name][-1]:8,.0f} images/s", flush=True)
    return {name: summarize(values) for name, values in rates.items()}


def measure_curves(rounds: int, steps: int) -> dict[str, Any]:
    """Measure images per second by batch size, width, processes and threads."""
    points: dict[str, dict[str, tuple[list[str], int, dict[str, str]]]] = {
        "batch size": {
            str(n): ([f"data.batch_size={n}"], n, {}) for n in (32, 64, 128, 256, 512, 1024)
        },
        "hidden_dim": {
            str(n): ([f"model.network.hidden_dim={n}"], DEFAULT_BATCH, {})
            for n in (128, 256, 384, 512, 768)
        },
        "processes x threads": {
            "1 x 1": ([], DEFAULT_BATCH, {"OMP_NUM_THREADS": "1"}),
            "1 x 2": ([], DEFAULT_BATCH, {"OMP_NUM_THREADS": "2"}),
            "2 x 1": (["trainer.devices=2"], DEFAULT_BATCH, {}),
        },
    }
    rates: dict[str, dict[str, list[float]]] = {curve: {} for curve in points}
    for _ in range(rounds):
        for curve, curve_points in points.items():
            for label, (overrides, batch, variables) in curve_points.items():
                measured = images_per_second(
                    train(overrides, steps, steps // 4, **variables), batch
                )
                rates[curve].setdefault(label, []).append(measured)
                print(f"{curve} {label}: {measured:,.0f} images/s", flush=True)
    return {
        curve: {label: summarize(values) for label, values in curve_points.items()}
        for curve, curve_points in rates.items()
    }


def measure_pauses() -> dict[str, Any]:
    """Measure the seconds of a default run, and of its checkpoints and pictures."""
    name = f"{time.time_ns():x}"
    clock, folder = LOGS / f"{name}.json", LOGS / "runs" / name
    clock_overrides = ["+callbacks.clock._target_=clock.Pauses", f"+callbacks.clock.path={clock}"]
    run_command(
        [sys.executable, "src/train.py", "device=cpu", f"hydra.run.dir={folder}", *clock_overrides]
    )
    pauses = json.loads(clock.read_text(encoding="utf-8"))
    paused = pauses["checkpoints"] + pauses["pictures"]
    share = paused / pauses["fit and test"]
    print(f"checkpoints and pictures: {share:.1%} of a default run", flush=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {
        "seconds": {name: round(value, 2) for name, value in pauses.items()},
        "share": round(share, 4),
        "metrics": summary["metrics"],
    }


def time_command(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - start


def measure_start_up(rounds: int) -> dict[str, Any]:
    """Measure the seconds of short commands, of the imports, and to the first optimizer step."""
    script = [sys.executable, "src/train.py"]
    commands = {
        "--help": [*script, "--help"],
        "--cfg job": [*script, "--cfg", "job"],
        "a misspelt override": [*script, "model.latent=3"],
        "import torch, lightning": [sys.executable, "-c", "import torch, lightning"],
    }
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            times.setdefault(name, []).append(time_command(command))
        start = time.time()
        first = train([], 2, 1)[1]
        times.setdefault("to the first step", []).append(first - start)
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.2f} s", flush=True)
    return {name: summarize(values) for name, values in times.items()}


def measure_sweeps(rounds: int) -> dict[str, Any]:
    """Measure the overhead of a sweep: seconds per job in addition to its training."""
    overheads: dict[str, list[float]] = {}
    for _ in range(rounds):
        for devices in (1, 2):
            folder = LOGS / "sweeps" / f"{time.time_ns():x}"
            sweep = ["-m", "seed=1,2,3", f"hydra.sweep.dir={folder}", f"trainer.devices={devices}"]
            short = ["trainer.max_steps=20", "callbacks.figures=null", *TRAIN]
            start = time.perf_counter()
            run_command([sys.executable, "src/train.py", *sweep, *short])
            total_seconds = time.perf_counter() - start
            texts = [p.read_text(encoding="utf-8") for p in folder.glob("*/summary.json")]
            summaries = [json.loads(text) for text in texts]
            training_seconds = sum(s["train_seconds"] for s in summaries)
            overheads.setdefault(f"{devices} device{'s' * (devices > 1)}", []).append(
                (total_seconds - training_seconds) / len(summaries)
            )
    for name, values in overheads.items():
        print(f"a job of a sweep, {name}: {statistics.median(values):.2f} s", flush=True)
    return {name: summarize(values) for name, values in overheads.items()}


def describe_machine() -> dict[str, Any]:
    names = ("torch", "lightning", "hydra-core", "wandb", "pythae")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    cpu_model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return {
        "cpu": cpu_model,
        "cores": len(os.sched_getaffinity(0)),
        "bfloat16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in cpu_info],
        "python": platform.python_version(),
        "versions": versions,
    }


def run_script(script: str) -> Any:
    """Run another script of this folder and return the JSON of its last line."""
    return json.loads(run_command([sys.executable, str(HERE / script)]).stdout.splitlines()[-1])


def add_ratios(document: dict[str, Any]) -> None:
    """Add the ratios to the bare loop, and the milliseconds of a step."""
    rates = {name: result["median"] for name, result in document["training"].items()}
    equal_batch = [name for name in OURS if "batch 512" not in name]
    document["ours_over_bare"] = rates["ours"] / rates["bare"]
    document["best_over_bare"] = max(rates[name] for name in OURS) / rates["bare"]
    document["best_at_equal_batch_over_bare"] = max(rates[n] for n in equal_batch) / rates["bare"]
    document["step_milliseconds"] = round(1000 * DEFAULT_BATCH / rates["ours"], 3)


def main() -> None:
    sections: dict[str, Callable[[argparse.Namespace], Any]] = {
        "evaluation": lambda o: run_script("evaluation.py"),
        "parts": lambda o: run_script("parts.py"),
        "pauses": lambda o: measure_pauses(),
        "training": lambda o: measure_training(o.rounds, o.steps),
        "curves": lambda o: measure_curves(o.rounds, o.steps // 2),
        "starting": lambda o: measure_start_up(o.rounds),
        "sweeping": lambda o: measure_sweeps(o.rounds),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=400, help="steps of a training run; a third are warm-up"
    )
    parser.add_argument(
        "--sections", nargs="+", choices=sections, help="measure these, keep the results of others"
    )
    options = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {}
    if options.sections:
        document = json.loads((ROOT / "docs/measured/bench.json").read_text(encoding="utf-8"))
        if document["machine"] != describe_machine():
            raise SystemExit(
                "docs/measured/bench.json is from another machine or other versions: "
                "run without --sections"
            )
    document |= {"machine": describe_machine(), "rounds": document.get("rounds", options.rounds)}
    for name in options.sections or sections:
        document[name] = sections[name](options)
    add_ratios(document)
    text = json.dumps(document, indent=1) + "\n"
    for path in (LOGS / "latest.json", ROOT / "docs/measured/bench.json"):
        path.write_text(text, encoding="utf-8")
    run_command([sys.executable, str(HERE / "picture.py")])
    print(f"ours_over_bare {document['ours_over_bare']:.3f}")
    print(f"best_over_bare {document['best_over_bare']:.3f}")


if __name__ == "__main__":
    main()
