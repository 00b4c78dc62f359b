"""How fast, beside what else: all contenders in turn, several rounds, on one machine in one go.

``python benchmarks/bench.py`` (make bench) writes logs/bench/latest.json, docs/bench.json and
docs/bench.png; only ratios of one such file mean anything. Do nothing else meanwhile.
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
MODEL = "model=cvae_plain"  # which a peer's trainer can train too
TRAIN = [MODEL, "device=cpu", "trainer.max_epochs=-1", "trainer.limit_val_batches=0", "test=false"]
OURS = {  # beside the default: the settings that make it faster
    "ours": [],
    "ours, compiled": ["compile=default"],
    "ours, precision=auto": ["trainer.precision=auto"],
    "ours, precision=bf16-mixed": ["trainer.precision=bf16-mixed"],
    "ours, batch 512": ["data.batch_size=512"],
    "ours, batch 512, compiled": ["data.batch_size=512", "compile=default"],
}
OTHERS = ("bare", "conventional", "pythae")


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(HERE), str(ROOT / "src")))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "WANDB_MODE": "offline", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    return done


def train(overrides: list[str], steps: int, start: int, **environment: str) -> dict[int, float]:
    """Train by train.py with all its callbacks, the CSV and offline W&B; the times of the steps."""
    name = f"{time.time_ns():x}"
    clock = LOGS / f"{name}.json"
    timed = [
        f"hydra.run.dir={LOGS / 'runs' / name}",
        "+callbacks.clock._target_=clock.Clock",
        f"+callbacks.clock.path={clock}",
        f"+callbacks.clock.start={start}",
        f"trainer.max_steps={steps}",
    ]
    run([sys.executable, "src/train.py", *TRAIN, *timed, *overrides], **environment)
    return times_in(clock.read_text(encoding="utf-8"))


def times_in(text: str) -> dict[int, float]:
    return {int(step): seconds for step, seconds in json.loads(text)["times"].items()}


def rate(times: dict[int, float], batch_size: int) -> float:
    """Images per second between the last two steps noted."""
    (first, start), (last, end) = sorted(times.items())[-2:]
    return batch_size * (last - first) / (end - start)


def one(name: str, steps: int) -> float:
    """Images per second of a contender."""
    start = steps // 3  # of 400: the smaller batch that ends an epoch of 512 is compiled by then
    if name in OURS:
        batch = 512 if "batch 512" in name else DEFAULT_BATCH
        return rate(train(OURS[name], steps, start), batch)
    script = str(HERE / "contenders.py")
    told = run([sys.executable, script, name, str(steps), str(start), MODEL])
    return rate(times_in(told.stdout.splitlines()[-1]), DEFAULT_BATCH)


def summary(found: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(found),
        "all": [round(value, 4) for value in found],
    }


def training(rounds: int, steps: int) -> dict[str, Any]:
    """Images per second of every contender, A B C A B C."""
    names = [*OTHERS, *OURS]
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            found[name].append(one(name, steps))
            print(f"round {number + 1}  {name:28s} {found[name][-1]:8,.0f} images/s", flush=True)
    return {name: summary(values) for name, values in found.items()}


def curves(rounds: int, steps: int) -> dict[str, Any]:
    """Images per second against batch size, width, processes and threads."""
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
    found: dict[str, dict[str, list[float]]] = {curve: {} for curve in points}
    for _ in range(rounds):
        for curve, at in points.items():
            for label, (overrides, batch, environment) in at.items():
                measured = rate(train(overrides, steps, steps // 4, **environment), batch)
                found[curve].setdefault(label, []).append(measured)
                print(f"{curve} {label}: {measured:,.0f} images/s", flush=True)
    return {
        curve: {label: summary(values) for label, values in at.items()}
        for curve, at in found.items()
    }


def pausing() -> dict[str, Any]:
    """Seconds of a whole default run, and those of its checkpoints and pictures."""
    name = f"{time.time_ns():x}"
    clock, folder = LOGS / f"{name}.json", LOGS / "runs" / name
    clocked = ["+callbacks.clock._target_=clock.Pauses", f"+callbacks.clock.path={clock}"]
    run([sys.executable, "src/train.py", "device=cpu", f"hydra.run.dir={folder}", *clocked])
    found = json.loads(clock.read_text(encoding="utf-8"))
    paused = found["checkpoints"] + found["pictures"]
    share = paused / found["fit and test"]
    print(f"checkpoints and pictures: {share:.1%} of a default run", flush=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {
        "seconds": {name: round(value, 2) for name, value in found.items()},
        "share": round(share, 4),
        "metrics": summary["metrics"],
    }


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - start


def starting(rounds: int) -> dict[str, Any]:
    """Seconds to an answer, to the libraries imported, and to the first optimizer step."""
    script = [sys.executable, "src/train.py"]
    commands = {
        "--help": [*script, "--help"],
        "--cfg job": [*script, "--cfg", "job"],
        "a misspelt word": [*script, "model.latent=3"],
        "import torch, lightning": [sys.executable, "-c", "import torch, lightning"],
    }
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            found.setdefault(name, []).append(seconds(command))
        start = time.time()
        first = train([], 2, 1)[1]
        found.setdefault("to the first step", []).append(first - start)
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):.2f} s", flush=True)
    return {name: summary(values) for name, values in found.items()}


def sweeping(rounds: int) -> dict[str, Any]:
    """Seconds that one job of a sweep costs beside its training."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for devices in (1, 2):
            folder = LOGS / "sweeps" / f"{time.time_ns():x}"
            words = ["-m", "seed=1,2,3", f"hydra.sweep.dir={folder}", f"trainer.devices={devices}"]
            few = ["trainer.max_steps=20", "callbacks.figures=null", *TRAIN]
            start = time.perf_counter()
            run([sys.executable, "src/train.py", *words, *few])
            whole = time.perf_counter() - start
            texts = [p.read_text(encoding="utf-8") for p in folder.glob("*/summary.json")]
            summaries = [json.loads(text) for text in texts]
            spent = sum(s["train_seconds"] for s in summaries)
            found.setdefault(f"{devices} device(s)", []).append((whole - spent) / len(summaries))
    for name, values in found.items():
        print(f"a job of a sweep, {name}: {statistics.median(values):.2f} s", flush=True)
    return {name: summary(values) for name, values in found.items()}


def machine() -> dict[str, Any]:
    names = ("torch", "lightning", "hydra-core", "wandb", "pythae")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "bfloat16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "python": platform.python_version(),
        "versions": versions,
    }


def printed(script: str) -> Any:
    """The JSON that a script beside this one prints last."""
    return json.loads(run([sys.executable, str(HERE / script)]).stdout.splitlines()[-1])


def derive(document: dict[str, Any]) -> None:
    """Add the ratios that were asked for."""
    rates = {name: found["median"] for name, found in document["training"].items()}
    alike = [name for name in OURS if "batch 512" not in name]
    document["ours_over_bare"] = rates["ours"] / rates["bare"]
    document["best_over_bare"] = max(rates[name] for name in OURS) / rates["bare"]
    document["best_at_equal_batch_over_bare"] = max(rates[n] for n in alike) / rates["bare"]
    document["step_milliseconds"] = round(1000 * DEFAULT_BATCH / rates["ours"], 3)


def main() -> None:
    sections: dict[str, Callable[[argparse.Namespace], Any]] = {
        "evaluation": lambda o: printed("evaluation.py"),
        "parts": lambda o: printed("parts.py"),
        "pauses": lambda o: pausing(),
        "training": lambda o: training(o.rounds, o.steps),
        "curves": lambda o: curves(o.rounds, o.steps // 2),
        "starting": lambda o: starting(o.rounds),
        "sweeping": lambda o: sweeping(o.rounds),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of each run; a third warms up")
    parser.add_argument(
        "--again", nargs="+", choices=sections, help="measure these alone, keep the others"
    )
    options = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {}
    if options.again:
        document = json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8"))
        if document["machine"] != machine():
            raise SystemExit("docs/bench.json is of another machine or other versions")
    document |= {"machine": machine(), "rounds": document.get("rounds", options.rounds)}
    for name in options.again or sections:
        document[name] = sections[name](options)
    derive(document)
    text = json.dumps(document, indent=1) + "\n"
    for path in (LOGS / "latest.json", ROOT / "docs" / "bench.json"):
        path.write_text(text, encoding="utf-8")
    run([sys.executable, str(HERE / "picture.py")])
    print(f"ours_over_bare {document['ours_over_bare']:.3f}")
    print(f"best_over_bare {document['best_over_bare']:.3f}")


if __name__ == "__main__":
    main()
