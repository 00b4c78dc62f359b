"""Run folders: archive a config, lock and update the folder of a run, suggest next commands.

config.yaml holds the settings of a run and summary.json its status and results. Both are written
atomically, so a reader never sees half a file.
"""

import contextlib
import copy
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from harness.config import science
from harness.config.paths import ROOT, display_path, python_command
from harness.contract.errors import Busy, ConfigError
from harness.contract.files import write_json, write_text
from harness.run_folder import reading
from harness.run_folder.reading import CONFIG, LAST, METRICS, SUMMARY, UNFINISHED

LOG = "train.log"
_KEPT_ENTRIES = (
    "status",
    "name",
    "run_id",
    "seed",
    "sweep",
    "overrides",
    "swept",
    "command",
    "git_commit",
    "versions",
)
_OUTPUTS = ("checkpoints", "figures", "wandb", "tensorboard")
_LATEST_FOLDERS = ("train", "sweeps")  # folders in logs/ whose newest finished run is logs/latest
_PACKAGES = ("torch", "lightning", "torchvision", "torchmetrics", "hydra-core", "wandb", "numpy")


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder, which holds an archived config; :meth:`archive` makes one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock")

    @classmethod
    def archive(
        cls,
        cfg: DictConfig,
        path: Path,
        sweep: str | None = None,
        overrides: Sequence[str] = (),
        swept: Sequence[str] = (),
    ) -> "RunFolder":
        """Write the resolved config and the first summary into the folder of a new run.

        A folder with an unfinished run stays as it is.

        Args:
            cfg: the composed and valid config, without Hydra's own node.
            path: the folder of the run.
            sweep: name of the sweep that the run belongs to.
            overrides: the overrides on the command line.
            swept: the overrides that differ between the jobs of the sweep.

        Raises:
            ConfigError: no metric is set that selects the best checkpoint.
        """
        folder = cls(path)
        if folder.summary.get("status") in UNFINISHED:
            return folder
        resolved = _resolve(cfg, path, sweep)
        path.mkdir(parents=True, exist_ok=True)
        folder.write_config(resolved)
        folder.update(
            status="pending",
            name=resolved.name,
            run_id=resolved.run_id,
            seed=resolved.seed,
            sweep=sweep,
            overrides=list(overrides),
            swept=list(swept),
            command=shlex.join(sys.argv),
            git_commit=git_commit(),
            versions=_versions(),
        )
        return folder

    @cached_property
    def config(self) -> DictConfig:
        """The archived config, as plain data: no class that it names is imported.

        Raises:
            ConfigError: the folder holds no run.
        """
        return reading.load_config(self.path)

    def write_config(self, cfg: DictConfig) -> None:
        """Archive a config, unless config.yaml has the same content already."""
        text, path = OmegaConf.to_yaml(cfg), self.path / CONFIG
        if not path.is_file() or text != path.read_text(encoding="utf-8"):
            write_text(path, text)
        self.config = cfg

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json when this process last read or wrote it."""
        return reading.read_summary(self.path)

    def reread(self) -> dict[str, Any]:
        """Read summary.json again, because other processes write it too, and return it."""
        self.summary = reading.read_summary(self.path)
        return self.summary

    def update(self, **entries: Any) -> None:
        """Add entries to the current summary.json, which all processes of the run share."""
        self.summary = reading.update_summary(self.path, **entries)

    def record_start(self, step: int | None) -> None:
        """Record that the run starts or resumes; a run that starts over loses its old outputs.

        Args:
            step: step of the checkpoint to resume from; None to start.
        """
        summary = self.summary
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        if step is not None:
            kept = {k: v for k, v in summary.items() if k in (*_KEPT_ENTRIES, "started", "resumed")}
            kept["resumed"] = [*kept.get("resumed", []), {"step": step, "at": now}]
        else:
            kept = {k: v for k, v in summary.items() if k in _KEPT_ENTRIES}
            kept["started"] = now
            if summary.get("status") != "pending":
                (self.path / METRICS).unlink(missing_ok=True)
                for name in _OUTPUTS:
                    shutil.rmtree(self.path / name, ignore_errors=True)
        self.summary = {**kept, "status": "running"}
        write_json(self.path / SUMMARY, self.summary)

    @cached_property
    def checkpoint(self) -> "tuple[Path, dict[str, Any]] | None":
        """The newest undamaged checkpoint to resume from and its content, or None to start.

        Raises:
            ConfigError: there are checkpoints, but all are damaged.
        """
        if self.summary.get("status") == "pending":
            return None
        from harness.run_folder import checkpoints  # late: it needs torch

        folder = (self.path / LAST).parent
        newest = checkpoints.find_newest(folder, "last*.ckpt", checkpoints.RESUME_KEYS)
        if newest.path is None and newest.skipped:
            raise ConfigError(f"{self.path}: no checkpoint can be read; {newest.skipped[0]}")
        return None if newest.path is None else (newest.path, newest.content)

    def forget_checkpoint(self) -> None:
        """Free the content of :attr:`checkpoint`, to save memory during the run."""
        self.__dict__.pop("checkpoint", None)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run, so that one process at a time trains it.

        The lock is released when the process ends. The process that holds it may lock again.

        Raises:
            Busy: another process trains this run.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Busy(f"{self.path}: another process trains this run; wait for it") from None
        try:
            yield
        finally:
            self._lock.release()

    def discard_if_no_data(self) -> None:
        """Remove the folder of a run that failed before its first step because of its data.

        If the folder holds other files, they and the folder stay.
        """
        if not self.reread().get("lacks_data") or (self.path / METRICS).exists():
            return
        shutil.rmtree(self.path / ".hydra", ignore_errors=True)
        for name in (CONFIG, SUMMARY, LOG, ".lock"):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            self.path.rmdir()

    def next_steps(self) -> str:
        """Return the text after a finished run: its folder, its pictures, commands to try next."""
        plain = reading.to_plain(self.config)
        trusted = reading.trust_override(OmegaConf.masked_copy(self.config, ["model", "data"]))
        run = f"run={shlex.quote(display_path(self.path))}"
        commands = [
            "  " + " ".join(filter(None, (python_command(script), run, trusted, settings)))
            for script, settings in science.of_config(plain).next_commands(plain).items()
            if (ROOT / "src" / f"{script}.py").is_file()
        ]
        lines = ["", f"run folder: {display_path(self.path)}"]
        if names := sorted(path.stem for path in (self.path / "figures").glob("*.png")):
            lines.append(f"pictures: {display_path(self.path / 'figures')}")
            wrapped = textwrap.fill(", ".join(names), 78, break_long_words=False)
            lines.append(textwrap.indent(wrapped, "  "))
        return "\n".join([*lines, *(["next:", *commands] if commands else [])])


def _resolve(cfg: DictConfig, path: Path, sweep: str | None) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    cfg.run_dir, cfg.sweep = str(path), sweep
    # the agent of a W&B sweep has chosen the run's id
    agent_run_id = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    cfg.run_id = agent_run_id or f"{int(time.time()):x}{secrets.token_hex(3)}"
    plain = reading.to_plain(cfg)
    run_science = science.of_config(plain)
    cfg.name = cfg.name or run_science.run_name(plain)
    cfg.monitor = cfg.monitor or run_science.monitor(plain)
    if cfg.monitor is None:
        raise ConfigError(
            "monitor=null: set it to the validation metric that selects the best checkpoint"
        )
    if cfg.data.get("data_dir"):
        cfg.data.data_dir = str(ROOT / Path(cfg.data.data_dir).expanduser())
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    assert isinstance(resolved, DictConfig)
    return resolved


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def git_commit() -> str | None:
    """Return the commit of the checkout, with -dirty if files changed; None outside a checkout."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None


def update_latest_link(run_dir: Path) -> None:
    """Point logs/latest at a run in logs/train or logs/sweeps; ignore runs in other folders."""
    logs = ROOT / "logs"
    if not any(run_dir.is_relative_to(logs / folder) for folder in _LATEST_FOLDERS):
        return
    temporary = logs / f".latest-{secrets.token_hex(4)}"
    try:
        temporary.symlink_to(run_dir.relative_to(logs), target_is_directory=True)
        os.replace(temporary, logs / "latest")
    except OSError:  # no permission for links, on Windows: write a file that holds the path
        temporary.unlink(missing_ok=True)
        write_text(logs / "latest.txt", str(run_dir) + "\n")
