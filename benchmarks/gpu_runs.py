"""Runs of the GPU benchmark: its options, and training in this process or in a new one."""

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import run_command
from jobs import compose_config

from harness.config.composition import register_resolvers
from harness.config.paths import CONF
from harness.contract.errors import RunFailed
from harness.run_folder import reading
from harness.run_folder.folder import RunFolder
from harness.training.launch import launch

# of a timed run; half are a warm-up, which includes the smaller last batch of an epoch
STEPS = 900
COMMON = ("logger=csv", "callbacks.figures=null")
FLOAT32, BFLOAT16 = "trainer.precision=32-true", "trainer.precision=bf16-mixed"
SMALL_RUN = (  # --cpu: a small network, a short epoch, and few images to score
    "model.network.hidden_dim=32",
    "data.validation_size=58000",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
)

register_resolvers()


class Skipped(Exception):  # noqa: N818
    """A measurement does not apply; the message says why."""


def has_setting(config: str, key: str) -> bool:
    """Return whether a config of conf/ has this top-level key."""
    text = (CONF / f"{config}.yaml").read_text(encoding="utf-8")
    return any(line.startswith(f"{key}:") for line in text.splitlines())


def graph_override(is_on: bool) -> list[str]:
    """Return the override that turns CUDA graphs on or off.

    Raises:
        Skipped: CUDA graphs are to be on, but conf/train.yaml has no such setting.
    """
    if has_setting("train", "cuda_graph"):
        return [f"cuda_graph={str(is_on).lower()}"]
    if is_on:
        raise Skipped("conf/train.yaml has no cuda_graph")
    return []


def common_overrides(options: Namespace) -> list[str]:
    """Return the overrides of every run, with those of a small run for --cpu."""
    if options.cpu:
        return [*COMMON, "device=cpu", *SMALL_RUN, *options.train]
    return [*COMMON, "device=gpu", *options.train]


def new_folder(options: Namespace, name: str) -> Path:
    """Return the folder of a new run, after deleting the last run of this name."""
    folder: Path = options.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def train(options: Namespace, name: str, overrides: Sequence[str]) -> Path:
    """Train a run in this process, without another import of torch, and return its folder.

    Raises:
        RunFailed: the run failed.
        ConfigError: an override is invalid.
    """
    folder, all_overrides = new_folder(options, name), [*common_overrides(options), *overrides]
    launch(RunFolder.archive(compose_config(all_overrides), folder, overrides=all_overrides))
    if (status := reading.read_summary(folder).get("status")) != "finished":
        raise RunFailed(f"{folder}: {status}")
    return folder


def evaluate(folder: Path, overrides: Sequence[str], timeout: float) -> dict[str, Any]:
    """Run evaluate.py on a run in a new process, and return its evaluation.json.

    Raises:
        Skipped: it takes longer than the timeout, in seconds.
    """
    command = [sys.executable, "src/evaluate.py", f"run={folder}", "figures=false", *overrides]
    try:
        run_command(command, timeout)
    except subprocess.TimeoutExpired:
        raise Skipped(f"takes more than the {timeout:.0f} s that are left") from None
    return reading.read_evaluation(folder)
