"""Check and measure training and evaluation on one GPU, within 8 minutes.

``python benchmarks/gpu.py`` (make gpu) writes docs/measured/gpu.json, after every measurement. Each
section runs in a process of its own with a share of the time; a measurement that fails is recorded
with its error, and the others continue. ``--cpu`` checks this script itself on a machine without a
GPU, with a few steps of each run, and writes logs/gpu/cpu/measured.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench import ROOT, describe_machine, environment
from gpu_runs import STEPS, Skipped

from harness.contract import files
from harness.training.processes import exit_on_sigterm

BUDGETS = {"checks": 85, "rates": 185, "nats": 105, "evaluation": 85}  # seconds
MARGIN = 5.0  # seconds that a section keeps to write its last measurement


def select_measurements(section: str, is_cpu: bool) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the measurements of a section by name, in order."""
    # imported here: a process runs one section, and importing the evaluation takes seconds
    if section == "checks":
        from gpu_checks import CHECKS

        return {**CHECKS}
    if section == "rates":
        from gpu_rates import select_rates

        return {**select_rates(is_cpu)}
    from gpu_nats import EVALUATION, select_nats

    return {**(select_nats(is_cpu) if section == "nats" else EVALUATION)}


def describe_gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def measure(function: Callable[..., dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Run a measurement; return its results, a text to show, and its seconds.

    If the measurement fails or is skipped, the text states the reason.
    """
    start = time.perf_counter()
    try:
        result = function(options)
    except Skipped as reason:
        result = {"skipped": str(reason), "shown": f"skipped: {reason}"}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result = describe_failure(f"{type(error).__name__}: {error}")
    return {**result, "wall_seconds": round(time.perf_counter() - start, 1)}


def describe_failure(reason: str) -> dict[str, Any]:
    """Return the entry of a measurement that failed."""
    last = reason.strip().splitlines()[-1].replace("|", "/")  # a cell of a table in Markdown
    return {"error": reason[-1000:], "shown": f"**no result**: {last}"}


def read_document(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def run_section(section: str, options: argparse.Namespace) -> None:
    """Run the measurements of a section in this process, and write each to the file."""
    for name, function in select_measurements(section, options.cpu).items():
        result = measure(function, options)
        document = read_document(options.output)
        document[section][name] = result
        files.write_json(options.output, document)
        print(f"{section}: {name}: {result['shown']} [{result['wall_seconds']} s]", flush=True)


def run_section_in_process(
    section: str, arguments: Sequence[str], seconds: float, is_cpu: bool
) -> str | None:
    """Run a section in a new process group; return the reason if it does not finish."""
    child = ["--run-section", section, "--seconds", str(seconds)]
    command = [sys.executable, __file__, *arguments, *child]
    one_thread = {"OMP_NUM_THREADS": "1"} if is_cpu else {}  # faster for small networks
    process = subprocess.Popen(command, cwd=ROOT, env=environment(**one_thread), process_group=0)
    try:
        code = process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        return f"stopped at the end of its time, after {seconds:.0f} s"
    finally:  # end its whole process group, also on Ctrl-C
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"ended with exit code {code}" if code else None


def list_failures(document: dict[str, Any]) -> list[str]:
    """Return a line for every check that did not pass and every measurement that failed."""
    return [
        f"{section}: {name}: {result['shown']}"
        for section in BUDGETS
        for name, result in document.get(section, {}).items()
        if "error" in result or result.get("passed") is False
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sections", nargs="+", choices=BUDGETS, help="measure these, keep the results of others"
    )
    parser.add_argument("--cpu", action="store_true", help="check this script without a GPU")
    parser.add_argument("--steps", type=int, help=f"steps per run; {STEPS}, or 8 with --cpu")
    parser.add_argument(
        "--train", nargs="+", default=[], help="overrides of all runs, such as data"
    )
    parser.add_argument("--folder", type=Path, help="parent of runs; logs/gpu/gpu or logs/gpu/cpu")
    parser.add_argument("--output", type=Path, help="file to write")
    parser.add_argument("--run-section", choices=BUDGETS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.steps = options.steps or (8 if options.cpu else STEPS)
    folder = ROOT / "logs" / "gpu" / ("cpu" if options.cpu else "gpu")
    options.folder = (options.folder or folder).resolve()
    output = options.folder / "measured.json" if options.cpu else ROOT / "docs/measured/gpu.json"
    options.output = (options.output or output).resolve()
    options.deadline = time.monotonic() + options.seconds - MARGIN
    if not options.cpu and describe_gpu() is None:
        parser.error("no CUDA GPU found: --cpu checks this script without one")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the sections; return 1 if a check or a measurement failed, else 0."""
    options = parse(arguments)
    if options.run_section:
        run_section(options.run_section, options)
        return 0
    # on a CPU, allow 20 times the budget, because its timings are not reported
    start, limit, time_factor = time.perf_counter(), 0.0, 20 if options.cpu else 1
    device = {"gpu": describe_gpu(), "cuda": torch.version.cuda, "machine": describe_machine()}
    document: dict[str, Any] = {**device, "seconds": {}}
    if options.sections and options.output.exists():
        document = read_document(options.output)
        if any(document[key] != value for key, value in device.items()):
            raise SystemExit(
                f"{options.output} is from another machine or other versions: "
                "delete it, or run without --sections"
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for section in options.sections or BUDGETS:
        limit += time_factor * BUDGETS[section]  # unused time goes to the next sections
        section_start = time.perf_counter()
        files.write_json(options.output, {**document, section: {}})
        with exit_on_sigterm():
            reason = run_section_in_process(
                section, arguments, limit - (section_start - start), options.cpu
            )
        document = read_document(options.output)
        if reason is not None:
            document[section][f"rest of {section}"] = describe_failure(reason)
        document["seconds"][section] = round(time.perf_counter() - section_start, 1)
        files.write_json(options.output, document)
    print(f"{options.output}: {time.perf_counter() - start:.0f} s in all")
    for line in (failed := list_failures(document)):
        print(f"FAILED {line}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
