"""Train and evaluate a list of runs, and skip those that are done."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from harness.command_line.hooks import TrainChecks
from harness.config.composition import register_resolvers
from harness.config.hydra_versions import INITIALIZE_OPTIONS
from harness.config.paths import CONF, ROOT
from harness.config.resume_overrides import fingerprint
from harness.contract import files
from harness.contract.errors import ConfigError, RunFailed
from harness.run_folder import reading, trust
from harness.run_folder.folder import RunFolder
from harness.sweeps.jobs import run_jobs
from harness.training.processes import exit_on_sigterm

# files in a run folder that hold the overrides of its training and of its evaluation
_TRAINED, _EVALUATED = "article.txt", "evaluated.txt"
register_resolvers()


class Job(NamedTuple):
    """Run to train and evaluate."""

    folder: Path
    train: Sequence[str]  # overrides of train.py
    claims: Sequence[str] = ()  # claims to measure
    evaluate: Sequence[str] = ()  # further overrides of evaluate.py


def is_trained(job: Job) -> bool:
    """Return whether the run finished and its overrides still compose the same settings."""
    return reading.read_summary(job.folder).get("status") == "finished" and _matches_settings(job)


def is_evaluated(job: Job) -> bool:
    """Return whether all claims are measured on the current checkpoint."""
    if not job.claims:
        return True
    if _read_text(job.folder / _EVALUATED) != shlex.join(job.evaluate):
        return False
    evaluation = reading.read_evaluation(job.folder)
    checkpoint = job.folder / "checkpoints" / str(evaluation.get("checkpoint"))
    if not checkpoint.is_file() or files.file_digest(checkpoint) != evaluation["checkpoint_digest"]:
        return False
    return set(job.claims) <= {*evaluation.get("seconds", {}), *evaluation.get("left_out", {})}


def train_and_evaluate(jobs: Sequence[Job], num_parallel: int = 1) -> None:
    """Train the runs that are not trained yet, like a sweep, then evaluate one after another.

    An unfinished run resumes. All settings are checked before the first run starts.

    Args:
        jobs: the runs.
        num_parallel: number of runs to train at a time.

    Raises:
        ConfigError: settings are invalid, or a folder holds a run of other settings.
        RunFailed: a run or an evaluation failed.
    """
    untrained = [job for job in jobs if not is_trained(job)]
    configs = [_compose_config(job) for job in untrained]
    for job, cfg in zip(untrained, configs, strict=True):
        _archive(job, cfg)
    run_jobs([job.folder for job in untrained], num_parallel)
    if failed := [str(job.folder) for job in untrained if not is_trained(job)]:
        raise RunFailed(f"not finished: {', '.join(failed)}; repeat the command to resume")
    for job in jobs:
        if not is_evaluated(job):
            _evaluate(job)


def _compose_config(job: Job) -> DictConfig:
    """Return the checked config of a run; raise if its folder holds a run of other settings."""
    if reading.holds_run(job.folder) and not _matches_settings(job):
        raise ConfigError(
            f"{job.folder}: holds a run of other settings; delete it, or use another folder"
        )
    return compose_config(job.train)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Return the checked config that overrides of train.py compose."""
    with initialize_config_dir(str(CONF), **INITIALIZE_OPTIONS):
        cfg = compose("train", list(overrides))
    TrainChecks().check_run(cfg)
    return cfg


def _archive(job: Job, cfg: DictConfig) -> None:
    is_existing = reading.holds_run(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    files.write_text(job.folder / _TRAINED, _settings_text(*job.train))
    folder = RunFolder.archive(cfg, job.folder, overrides=job.train)
    if is_existing:
        # trusted, because the overrides name them
        packages = trust.packages_to_trust(reading.to_plain(cfg))
        with folder.lock():  # the folder may have moved, so its paths are updated
            folder.write_config(reading.load_untrusted_config(job.folder, packages))


def _evaluate(job: Job) -> None:
    print(f"evaluating {job.folder.name}", flush=True)
    script = str(ROOT / "src" / "evaluate.py")
    claims = f"claims=[{','.join(job.claims)}]"
    command = [sys.executable, script, f"run={job.folder}", claims, *job.evaluate]
    with exit_on_sigterm():  # on an exception, subprocess.run ends its process
        code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    if code:
        raise RunFailed(f"{shlex.join(command)} ended with exit code {code}")
    files.write_text(job.folder / _EVALUATED, shlex.join(job.evaluate))


def _matches_settings(job: Job) -> bool:
    """Return whether the folder holds a run of the job's current settings."""
    return _read_text(job.folder / _TRAINED) == _settings_text(*job.train)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


@lru_cache
def _settings_text(*overrides: str) -> str:
    """Return the overrides and a digest of the settings that they compose."""
    return f"{shlex.join(overrides)}\n{fingerprint(CONF, overrides)}\n"
