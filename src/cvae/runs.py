"""The run folder: its config, its result, and what can be loaded from it.

A folder is the whole truth of a run. config.yaml says what it is, summary.json how it went; both
are written atomically, so a reader never sees half a file.
"""

import contextlib
import copy
import hashlib
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from cvae.schema import ConfigError

if TYPE_CHECKING:
    from cvae.models import Autoencoder

ROOT = Path(__file__).resolve().parents[2]  # the project: defaults are relative to it
CONFIG, SUMMARY, METRICS = "config.yaml", "summary.json", "metrics.csv"
EVALUATION = "evaluation.json"
_SCRIPTS = ("generate", "evaluate")
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
_MONITORS = {"cvae.models.Autoencoder": "val/reconstruction"}  # of models that have no elbo
_PACKAGES = ("torch", "lightning", "torchvision", "torchmetrics", "hydra-core", "wandb", "numpy")


class RunFailed(Exception):  # noqa: N818 - a fact, not an error of ours
    """A run ended badly; what happened stands in its log and has been shown."""


def register_resolvers() -> None:
    """``${project_root:}`` and ``${unique:}`` for the configuration files."""
    OmegaConf.register_new_resolver("project_root", lambda: str(ROOT), replace=True)
    # cached for a command, so that the jobs of a sweep agree on its folder
    OmegaConf.register_new_resolver(
        "unique", lambda: secrets.token_hex(4), use_cache=True, replace=True
    )


def instantiate(node: DictConfig | Mapping[str, Any], **arguments: Any) -> Any:
    """The object that a config node with a ``_target_`` describes: the only door to Hydra's."""
    import hydra.utils

    return hydra.utils.instantiate(node, _convert_="all", **arguments)  # plain lists and dicts


def explained(error: Exception) -> str:
    """A line for an error of Hydra's: the key it is about, and the cause behind its wrapping."""
    key = re.search(r"full_key: (\S+)", str(error))
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line = " ".join(str(cause).split("full_key:")[0].split()) or type(cause).__name__
    return f"{key[1]}: {line[:300]}" if key else line[:300]


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def run_name(cfg: DictConfig) -> str:
    """A name that a person can read, such as cvae-mlp-z24-s1."""
    parts = [_class_name(cfg.model), _class_name(cfg.model.network), f"z{cfg.model.latent_dim}"]
    data = str(cfg.data.get("name", "")).lower()
    return "-".join([*parts, *([data] if data not in ("mnist", "") else []), f"s{cfg.seed}"])


def _class_name(node: DictConfig) -> str:
    return str(node._target_).rpartition(".")[2].lower()


def holds_run(run_dir: Path) -> bool:
    """Whether a folder is a run's already."""
    return any((run_dir / name).exists() for name in (CONFIG, SUMMARY, METRICS))


def archive(cfg: DictConfig, run_dir: Path, sweep: str | None = None) -> DictConfig:
    """Write the resolved config and the first summary: from here on the folder is the run.

    Args:
        cfg: composed and valid, without Hydra's own node.
        sweep: name of the sweep that the run belongs to.
    """
    cfg = copy.deepcopy(cfg)
    cfg.run_dir, cfg.sweep = str(run_dir), sweep
    cfg.run_id = f"{int(time.time()):x}{secrets.token_hex(3)}"
    cfg.name = cfg.name or run_name(cfg)
    cfg.monitor = cfg.monitor or _MONITORS.get(cfg.model._target_, "val/elbo")
    cfg.data.data_dir = str(ROOT / Path(cfg.data.data_dir).expanduser())
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    assert isinstance(resolved, DictConfig)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / CONFIG, OmegaConf.to_yaml(resolved))
    update_summary(
        run_dir,
        status="running",
        name=resolved.name,
        run_id=resolved.run_id,
        seed=resolved.seed,
        sweep=sweep,
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=" ".join(sys.argv),
        git_commit=git_commit(),
        versions=_versions(),
    )
    return resolved


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_commit() -> str | None:
    """The project's commit, marked where files were changed since; None outside a checkout."""
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def read_summary(run_dir: Path) -> dict[str, Any]:
    """What summary.json says, or nothing where there is none."""
    try:
        return dict(json.loads((run_dir / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def update_summary(run_dir: Path, **entries: Any) -> None:
    """Add entries to summary.json, atomically."""
    write_json(run_dir / SUMMARY, {**read_summary(run_dir), **entries})


def what_next(run_dir: Path) -> str:
    """Where a finished run is, and what to type now."""
    python = "python" if shutil.which("python") == sys.executable else _shown(Path(sys.executable))
    target = load_config(run_dir).model._target_
    label = "" if target in ("cvae.models.Autoencoder", "cvae.models.VAE") else "label=all "
    run = shlex.quote(_shown(run_dir))
    scripts = {name: shlex.quote(_shown(ROOT / "src" / f"{name}.py")) for name in _SCRIPTS}
    return (
        f"\nrun folder: {_shown(run_dir)}\nnext:\n"
        f"  {shlex.quote(python)} {scripts['generate']} run={run} {label}num_samples=10\n"
        f"  {shlex.quote(python)} {scripts['evaluate']} run={run}"
    )


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def point_latest(run_dir: Path) -> None:
    """Let logs/latest name the run; runs outside the project's logs/ leave it alone."""
    logs = ROOT / "logs"
    if not run_dir.is_relative_to(logs):
        return
    temporary = logs / f".latest-{secrets.token_hex(4)}"
    try:
        temporary.symlink_to(run_dir.relative_to(logs), target_is_directory=True)
        os.replace(temporary, logs / "latest")
    except OSError:  # no links here (Windows without the right): a file that holds the path
        temporary.unlink(missing_ok=True)
        write_text(logs / "latest.txt", str(run_dir) + "\n")


def load_config(run_dir: Path) -> DictConfig:
    """The archived config of a run.

    Raises:
        ConfigError: the folder is not a run's.
    """
    path = run_dir / CONFIG
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"run={run_dir}: no readable {CONFIG} in it ({type(error).__name__})"
        ) from None
    if not isinstance(cfg, DictConfig) or "model" not in cfg:
        raise ConfigError(f"run={run_dir}: {CONFIG} is not that of a run")
    return cfg


def find_run(path: str | Path) -> tuple[Path, Path]:
    """The folder and the checkpoint that a path names: a run folder, or a checkpoint in one.

    A relative path is looked up where the person stands, and then in the project.

    Raises:
        ConfigError: there is no such run, or no checkpoint in it.
    """
    given = Path(path).expanduser()
    given = given if given.exists() else ROOT / given
    if not given.exists():
        hint = "; train first, or name a folder under logs/" if given.name == "latest" else ""
        raise ConfigError(f"run={path}: no such folder or checkpoint{hint}")
    given = given.resolve()
    if given.is_dir():
        checkpoint = next((given / c for c in (BEST, LAST) if (given / c).is_file()), None)
        if checkpoint is None:
            status = read_summary(given).get("status")
            known = f" (its status: {status})" if status else ""
            raise ConfigError(f"run={path}: no checkpoint in {given / 'checkpoints'}{known}")
        return given, checkpoint
    in_its_place = given.parent.name == Path(BEST).parent.name
    return given.parent.parent if in_its_place else given.parent, given


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, of which only plain data is ever read.

    Raises:
        ConfigError: the file is not a checkpoint of this project.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        keys = set(checkpoint)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ConfigError(f"run={path}: not a readable checkpoint ({reason})") from None
    if not {"state_dict", "config"} <= keys:
        raise ConfigError(f"run={path}: not a checkpoint of this project (keys {sorted(keys)[:5]})")
    return checkpoint


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The weights to use: the averaged ones where the run averaged."""
    return {
        name.removeprefix("model."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }


def build_model(cfg: DictConfig) -> "Autoencoder":
    """The model that a config describes, with fresh weights."""
    model: Autoencoder = instantiate(cfg.model)
    return model


def load_run(path: str | Path) -> "Autoencoder":
    """The trained model of a run folder or a checkpoint, ready to use.

    Raises:
        ConfigError: nothing there that can be loaded.
    """
    return load_model(find_run(path)[1])[0]


def load_model(checkpoint_path: Path) -> tuple["Autoencoder", DictConfig]:
    """The model in a checkpoint, and the config of its run.

    Raises:
        ConfigError: the file cannot be loaded, or its weights do not go with its config.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    cfg = OmegaConf.create(checkpoint["config"])
    model = build_model(cfg)
    try:
        model.load_state_dict(model_weights(checkpoint))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"run={checkpoint_path}: weights of another model ({reason})") from None
    return model.eval(), cfg


def short_keys(cfg: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """A config as one flat level, each key as short as it can be without a clash."""
    flat: dict[tuple[str, ...], Any] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                walk(value, (*path, str(key)))
        else:
            flat[path] = node

    plain = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
    walk(plain, ())
    counts: dict[str, int] = {}
    for path in flat:
        counts[path[-1]] = counts.get(path[-1], 0) + 1
    return {p[-1] if counts[p[-1]] == 1 else ".".join(p): value for p, value in flat.items()}


def file_digest(path: Path) -> str:
    """Fingerprint of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_evaluation(run_dir: Path) -> dict[str, Any]:
    """What evaluation.json says, or nothing where there is none that can be read."""
    try:
        found = json.loads((run_dir / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("metrics"), dict) else {}


def update_evaluation(
    run_dir: Path, measured_on: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Add what was measured to evaluation.json, atomically.

    What was measured on other weights or other images is dropped.

    Args:
        measured_on: what all metrics of the file have in common.
        found: metrics, claims left out and seconds, each by name.
    """
    before = read_evaluation(run_dir)
    same = all(before.get(key) == value for key, value in measured_on.items())
    parts = {k: {**(before.get(k, {}) if same else {}), **v} for k, v in found.items()}
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(run_dir / EVALUATION, {**measured_on, "evaluated": now, **parts})
    return run_dir / EVALUATION
