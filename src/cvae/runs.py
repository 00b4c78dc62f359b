"""The run folder: its config, its result, and what can be loaded from it.

A folder is the whole truth of a run. config.yaml says what it is, summary.json how it went; both
are written atomically, so a reader never sees half a file.
"""

import contextlib
import copy
import csv
import hashlib
import inspect
import io
import json
import logging
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from cvae import changes, files, trust
from cvae.schema import (
    SCHEDULER_SETTINGS,
    ConfigError,
    check_targets,
    has_schema,
    nearest_key,
)

if TYPE_CHECKING:
    from cvae.models import Autoencoder

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]  # the project: defaults are relative to it
CONFIG, SUMMARY, METRICS = "config.yaml", "summary.json", "metrics.csv"
EVALUATION = "evaluation.json"
_LOG = "train.log"
_ARCHIVED = (
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
UNFINISHED = ("pending", "running", "interrupted", "failed")  # states of a run that can go on
_OUTPUTS = ("checkpoints", "figures", "wandb", "tensorboard")
JOURNAL = "study.journal"  # of a search, in the folder of its sweep
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
_FOLLOWED = ("train", "sweeps")  # folders of logs/ whose runs logs/latest follows
_MONITORS = {"cvae.models.Autoencoder": "val/reconstruction"}  # of models that have no elbo
_PACKAGES = ("torch", "lightning", "torchvision", "torchmetrics", "hydra-core", "wandb", "numpy")


class RunFailed(Exception):  # noqa: N818 - a fact, not an error of ours
    """A run ended badly; what happened stands in its log and has been shown."""


class Diverged(RunFailed):
    """A loss or gradient was not finite; it has not reached the weights."""


class Busy(ConfigError):  # noqa: N818
    """Another process trains a run."""


class Stopped(BaseException):  # no library's "except Exception" keeps a run from stopping
    """A run was told to stop; where it trained and keeps checkpoints, it has saved where it was.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class RunPruned(Exception):  # noqa: N818
    """A search ended a run that fell behind the others."""


def register_resolvers() -> None:
    """Register the resolvers of the configuration files.

    They are ``${project_root:}``, ``${unique:}`` and ``${env:NAME,default}``. An empty environment
    variable counts as unset.
    """
    OmegaConf.register_new_resolver("project_root", lambda: str(ROOT), replace=True)
    # cached for a command, so that the jobs of a sweep agree on its folder
    OmegaConf.register_new_resolver(
        "unique", lambda: secrets.token_hex(4), use_cache=True, replace=True
    )
    OmegaConf.register_new_resolver(
        "env", lambda name, default: os.environ.get(name) or default, replace=True
    )


def instantiate(node: DictConfig | Mapping[str, Any], **arguments: Any) -> Any:
    """The object that a config node with a ``_target_`` describes: the only door to Hydra's.

    For configs of one's own; :func:`instantiate_read` is for those that a folder brings.
    """
    import hydra.utils

    return hydra.utils.instantiate(node, _convert_="all", **arguments)  # plain lists and dicts


def instantiate_read(
    cfg: DictConfig, key: str, trusted: trust.Trust = None, **arguments: Any
) -> Any:
    """The object that a node of a config describes which was read from a run folder.

    Args:
        trusted: packages of the reader's choice whose classes it may name beside ours.

    Raises:
        ConfigError: it names other code, or describes nothing that can be made.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_object

    node = {key: OmegaConf.to_container(cfg[key])}
    trust.check_targets(node, trusted, get_object)
    if problems := list(check_targets(node)):
        raise ConfigError(problems[0])
    try:
        return instantiate(cfg[key], **arguments)
    except InstantiationException as error:
        raise ConfigError(explained(error)) from None


_GIVEN_BY_RUNS: dict[str, Sequence[str]] = {"data": ("seed",), "data.augmentation": ("seed",)}
_GIVEN_BY_MODELS: dict[str, Sequence[str]] = {  # of this project; a user's model may give others
    "model.network": ("image_shape", "latent_dim", "num_statistics", "num_classes"),
    "model.prior": ("latent_dim",),
    "model.penalty": ("latent_dim", "num_classes"),
}
_OF_HYDRA = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def check_classes(
    node: Any, key: str = "", added: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Import the classes of a config that have no schema, and check the names of their arguments.

    Args:
        node: of a trusted config, because the classes that it names are imported.
        key: dotted key of the node.
        added: names of the arguments that are added to those of a node, by its key; None for those
            that a run and its model add.

    Raises:
        ConfigError: a class cannot be imported, or does not take the arguments set.
    """
    if added is None:
        model = node.get("model") or {}
        of_model = _GIVEN_BY_MODELS if has_schema(str(model.get("_target_"))) else {}
        added = _GIVEN_BY_RUNS | of_model
    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str) and not has_schema(target):
            _check_arguments(node, key, _imported(key, target), added.get(key, ()))
        for name, child in node.items():
            check_classes(child, f"{key}.{name}".lstrip("."), added)
    elif isinstance(node, list):
        for number, child in enumerate(node):
            check_classes(child, f"{key}[{number}]", added)


def _imported(key: str, target: str) -> Any:
    from hydra._internal.utils import _locate  # hydra.utils.get_object prints errors as well

    here = str(Path.cwd())  # the processes of a sweep import from here as well
    sys.path.append(here)
    try:
        found = _locate(target)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"{key}._target_={target}: {explained(error)}") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"{key}._target_={target}: must be a class or a function")
    return found


def _check_arguments(
    node: Mapping[str, Any], key: str, made: Callable[..., Any], added: Sequence[str]
) -> None:
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):  # written in C
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    own = SCHEDULER_SETTINGS if key == "scheduler" else ()
    target, given = node["_target_"], [name for name in node if name not in (*_OF_HYDRA, *own)]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        if unknown := [name for name in given if name not in parameters]:
            near = nearest_key(unknown[0], list(parameters))
            hint = f"did you mean {key}.{near}? " if near else ""
            leave_out = " ".join(f"~{key}.{name}" for name in unknown)
            named = ", ".join(f"{key}.{name}" for name in unknown)
            raise ConfigError(f"{named}: {target} does not take it; {hint}to drop it: {leave_out}")
        if lacking := [name for name in added if name not in parameters]:
            named = ", ".join(lacking)
            raise ConfigError(f"{key}._target_={target}: must take the argument {named}")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (*positional, inspect.Parameter.KEYWORD_ONLY)
        and name not in (*given, *added)
    ]
    if missing and not node.get("_partial_") and not node.get("_args_"):
        raise ConfigError(f"{key}.{missing[0]}: is not set, and {target} needs it")


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
    with files.replacing(path) as file:
        file.write(text.encode("utf-8"))


def run_name(cfg: DictConfig) -> str:
    """A name that a person can read, such as cvae-mlp-adversary-z32-s1."""
    parts = [_class_name(cfg.model), _class_name(cfg.model.network)]
    nodes = (cfg.model.get("prior"), cfg.model.get("penalty"), cfg.data.get("augmentation"))
    names = (_class_name(node) for node in nodes if node)
    parts += [name for name in names if name != "standardnormal"]
    parts.append(f"z{cfg.model.latent_dim}")
    data = str(cfg.data.get("name", "")).lower()
    return "-".join([*parts, *([data] if data not in ("mnist", "") else []), f"s{cfg.seed}"])


def _class_name(node: DictConfig) -> str:
    return str(node._target_).rpartition(".")[2].lower()


def holds_run(run_dir: Path) -> bool:
    """Whether a folder is a run's already."""
    return any((run_dir / name).exists() for name in (CONFIG, SUMMARY, METRICS))


def archive(
    cfg: DictConfig,
    run_dir: Path,
    sweep: str | None = None,
    overrides: Sequence[str] = (),
    swept: Sequence[str] = (),
) -> None:
    """Write the resolved config and the first summary: from here on the folder is the run.

    A folder whose run waits for its start, or to go on, is left as it is.

    Args:
        cfg: composed and valid, without Hydra's own node.
        sweep: name of the sweep that the run belongs to.
        overrides: what was typed.
        swept: those of them that only this job of the sweep has.
    """
    if read_summary(run_dir).get("status") in UNFINISHED:
        return
    cfg = copy.deepcopy(cfg)
    cfg.run_dir, cfg.sweep = str(run_dir), sweep
    # the agent of a W&B sweep has named the run
    of_agent = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    cfg.run_id = of_agent or f"{int(time.time()):x}{secrets.token_hex(3)}"
    cfg.name = cfg.name or run_name(cfg)
    cfg.monitor = cfg.monitor or _MONITORS.get(cfg.model._target_, "val/elbo")
    cfg.data.data_dir = str(ROOT / Path(cfg.data.data_dir).expanduser())
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    assert isinstance(resolved, DictConfig)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / CONFIG, OmegaConf.to_yaml(resolved))
    update_summary(
        run_dir,
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


def begin(run_dir: Path, step: int | None) -> None:
    """Note that a run starts or goes on; where it starts over, what it had written is removed.

    Args:
        step: of the checkpoint that it goes on from; None to start.
    """
    summary = read_summary(run_dir)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    if step is not None:
        kept = {k: v for k, v in summary.items() if k in (*_ARCHIVED, "started", "resumed")}
        kept["resumed"] = [*kept.get("resumed", []), {"step": step, "at": now}]
    else:
        kept = {k: v for k, v in summary.items() if k in _ARCHIVED}
        kept["started"] = now
        if summary.get("status") != "pending":
            (run_dir / METRICS).unlink(missing_ok=True)
            for name in _OUTPUTS:
                shutil.rmtree(run_dir / name, ignore_errors=True)
    write_json(run_dir / SUMMARY, {**kept, "status": "running"})


def discard_without_data(run_dir: Path) -> None:
    """Remove the folder of a run that failed before its first step because it has no usable data.

    If the folder holds other files, they and the folder stay.
    """
    if not read_summary(run_dir).get("lacks_data") or (run_dir / METRICS).exists():
        return
    shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
    for name in (CONFIG, SUMMARY, _LOG, ".lock"):
        (run_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        run_dir.rmdir()


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Train a run in one process at a time: the lock is gone with the process that holds it.

    Raises:
        Busy: another process trains it.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(f"{run_dir}: another process trains this run") from None
    try:
        yield
    finally:
        lock.release()


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
        found = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def update_summary(run_dir: Path, **entries: Any) -> None:
    """Add entries to summary.json, atomically."""
    write_json(run_dir / SUMMARY, {**read_summary(run_dir), **entries})


def what_next(run_dir: Path) -> str:
    """Where a finished run is, and what to type now."""
    cfg = load_config(run_dir)
    unlabelled = ("cvae.models.Autoencoder", "cvae.models.VAE")
    label = "" if cfg.model._target_ in unlabelled else "label=all "
    own = trust.packages([OmegaConf.to_container(node) for node in (cfg.model, cfg.data)])
    trusted = shlex.quote(f"trust={own[0] if len(own) == 1 else own}") + " " if own else ""
    ends = {"generate": f"{trusted}{label}num_samples=10", "evaluate": trusted}
    run = shlex.quote(shown(run_dir))
    commands = (f"  {python_command(k)} run={run} {end}".rstrip() for k, end in ends.items())
    folder = f"\nrun folder: {shown(run_dir)}\n"
    if any((run_dir / "figures").glob("*.png")):
        folder += f"pictures: {shown(run_dir / 'figures')}\n"
    return folder + "next:\n" + "\n".join(commands)


def python_command(entry_point: str) -> str:
    """How to start an entry point from here, for a person to paste."""
    python = "python" if shutil.which("python") == sys.executable else shown(Path(sys.executable))
    return shlex.join((python, shown(ROOT / "src" / f"{entry_point}.py")))


def shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def point_latest(run_dir: Path) -> None:
    """Point logs/latest at a run in logs/train or logs/sweeps.

    Runs elsewhere, such as those of benchmarks and make article, do not change it.
    """
    logs = ROOT / "logs"
    if not any(run_dir.is_relative_to(logs / folder) for folder in _FOLLOWED):
        return
    temporary = logs / f".latest-{secrets.token_hex(4)}"
    try:
        temporary.symlink_to(run_dir.relative_to(logs), target_is_directory=True)
        os.replace(temporary, logs / "latest")
    except OSError:  # no links here (Windows without the right): a file that holds the path
        temporary.unlink(missing_ok=True)
        write_text(logs / "latest.txt", str(run_dir) + "\n")


def load_config(run_dir: Path) -> DictConfig:
    """The archived config of a run: plain data, which nothing has been made of yet.

    Raises:
        ConfigError: the folder is not a run's.
    """
    text = trust.read_text(run_dir, CONFIG)
    try:
        cfg = OmegaConf.load(io.StringIO(text))
    except Exception as error:  # whatever a stranger's YAML sets off
        raise ConfigError(
            f"run={run_dir}: no readable {CONFIG} in it ({type(error).__name__})"
        ) from None
    return _plain_config(cfg, f"run={run_dir}: {CONFIG}")


def run_to_resume(path: str) -> Path:
    """The folder of a run to go on with; ``latest`` is the newest that has not finished.

    ``latest`` skips runs that failed before their first checkpoint, as with a wrong argument.

    Raises:
        ConfigError: there is none.
    """
    if path != "latest":
        run_dir = expanded(path)
        if not run_dir.is_dir():
            raise ConfigError(f"resume={path}: no such folder")
        load_config(run_dir)
        return run_dir.resolve()
    summaries = {p.parent: read_summary(p.parent) for p in (ROOT / "logs").rglob(SUMMARY)}
    left = {
        run_dir: summary
        for run_dir, summary in summaries.items()
        if summary.get("status") in UNFINISHED and "started" in summary
        if summary["status"] != "failed" or any((run_dir / LAST).parent.glob("last*.ckpt"))
    }
    if not left:
        raise ConfigError(
            f"resume=latest: every run in {ROOT / 'logs'} has finished, or failed before its first "
            "checkpoint"
        )
    return max(left, key=lambda run_dir: str(left[run_dir]["started"]))


def prepare_resume(run_dir: Path, composed: DictConfig, typed: Sequence[str]) -> bool:
    """Make an archived run ready to go on, here and with what may be changed; whether it can.

    Args:
        composed: what the command line alone would give.
        typed: its overrides.

    Raises:
        ConfigError: something typed would change its steps, or it names code that is not trusted.
    """
    cfg = load_foreign_config(run_dir, composed.trust)
    cfg.run_dir = str(run_dir)
    changed = changes.apply(cfg, composed, typed)
    limit, trained = cfg.trainer.max_epochs, _epochs_on_record(run_dir)
    if limit is not None and 0 <= limit < trained:
        raise ConfigError(f"trainer.max_epochs={cfg.trainer.max_epochs}: {trained} are trained")
    has_ended = read_summary(run_dir).get("status") not in UNFINISHED
    if has_ended and not changes.changes_the_schedule(changed):
        print(f"{shown(run_dir)}: this run has finished; nothing to do")
        return False
    for line in changed:
        print(f"changed: {line}")
    if changes.changes_the_schedule(changed) and cfg.get("scheduler"):
        print("the learning rate may depend on the number of epochs: it takes another course")
    archive_again(run_dir, cfg)
    return True


def archive_again(run_dir: Path, cfg: DictConfig) -> None:
    """Write the config of an archived run anew, where it is another by now."""
    text = OmegaConf.to_yaml(cfg)
    if text != (run_dir / CONFIG).read_text(encoding="utf-8"):
        write_text(run_dir / CONFIG, text)


def _epochs_on_record(run_dir: Path) -> int:
    """Epochs that ended with a validation."""
    try:
        with (run_dir / METRICS).open(newline="", encoding="utf-8") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if any(v for k, v in row.items() if k.startswith("val/"))
            ]
        return max((int(row["epoch"]) + 1 for row in rows), default=0)
    except (OSError, ValueError, KeyError, AttributeError, csv.Error):
        return 0


def trust_needed(run_dir: Path) -> str:
    """What a reader of a run must type for the code of its own that it names: '' or trust=..."""
    own = trust.packages(OmegaConf.to_container(load_config(run_dir)))
    return shlex.quote(f"trust={own[0] if len(own) == 1 else own}") if own else ""


def load_foreign_config(run_dir: Path, trusted: trust.Trust = None) -> DictConfig:
    """The archived config of a run, such that training on it runs no code but known code.

    Its paths are moved into the folder where it lies now.

    Args:
        trusted: packages of the reader's choice whose classes it may name beside ours.

    Raises:
        ConfigError: the folder is not a run's, names other code, or would write elsewhere.
    """
    from hydra.utils import get_object

    plain = OmegaConf.to_container(load_config(run_dir))
    assert isinstance(plain, dict)
    trust.check_targets(plain, trusted, get_object)
    cfg = OmegaConf.create(trust.confined({str(k): v for k, v in plain.items()}, run_dir))
    cfg.data.data_dir = _data_dir(cfg)
    return cfg


_OF_A_RUN = ("model", "data", "trainer", "optimizer")


def _plain_config(content: Any, where: str, parts: Sequence[str] = _OF_A_RUN) -> DictConfig:
    try:
        cfg = content if isinstance(content, DictConfig) else OmegaConf.create(content)
        plain = OmegaConf.to_container(cfg, resolve=False)
        trust.check_plain(plain)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{where}: not a config ({type(error).__name__})") from None
    if not isinstance(plain, dict) or not all(isinstance(plain.get(k), dict) for k in parts):
        raise ConfigError(f"{where} is not that of a run")
    return cfg


def _data_dir(cfg: DictConfig) -> str:
    """Where the run had its data, if it is there; no folder is made where a config says so."""
    given, name = Path(str(cfg.data.get("data_dir"))), str(cfg.data.get("name"))
    if (given / name / "raw").is_dir() or (given / f"{name}.npz").is_file():
        return str(given)
    log.warning("data.data_dir=%s has no %s; looked for in %s", given, name, ROOT / "data")
    return str(ROOT / "data")


def load_data(cfg: DictConfig, trusted: trust.Trust = None) -> Any:
    """The data module of a run that was read from its folder.

    Raises:
        ConfigError: it names code that is neither ours nor trusted.
    """
    cfg = copy.deepcopy(cfg)
    if cfg.data._target_ in trust.KNOWN_TARGETS:
        cfg.data.update(data_dir=_data_dir(cfg), num_workers=0)
    return instantiate_read(cfg, "data", trusted, seed=cfg.seed)


def expanded(path: str | Path) -> Path:
    """A path with ~ spelt out; where there is no such home it stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; no for a name that is too long for any."""
    try:
        return path.exists()
    except OSError:
        return False


def name_in(run_dir: Path, path: Path) -> str:
    """Return a path relative to its run folder, with forward slashes.

    Raises:
        ConfigError: the path lies outside the run folder.
    """
    return trust.inside(run_dir, path).relative_to(run_dir.resolve()).as_posix()


def _checkpoint_of(run_dir: Path, typed: str | Path) -> Path | None:
    """Return the best checkpoint of a run, by the name that the run recorded, or the last.

    A finished run records the name in its summary, an unfinished one in its last checkpoint.
    """
    recorded = read_summary(run_dir).get("checkpoint")
    if isinstance(recorded, str):
        checkpoint = trust.inside(run_dir, recorded)
        if not checkpoint.is_file():
            hint = f"; to use the last: run={typed}/{LAST}" if recorded != LAST else ""
            raise ConfigError(f"run={typed}: {recorded} is gone{hint}")
        return checkpoint
    last, candidates = trust.inside(run_dir, LAST), [BEST, LAST]
    if last.is_file():
        with contextlib.suppress(ConfigError):  # a damaged one is reported if it has to be read
            if isinstance(best := load_checkpoint(last).get("best"), str):
                candidates = [str(last.parent / best), LAST]
    there = (trust.inside(run_dir, name) for name in candidates)
    return next((path for path in there if path.is_file()), None)


def find_run(path: str | Path) -> tuple[Path, Path]:
    """The folder and the checkpoint that a path names: a run folder, or a checkpoint in one.

    A relative path is looked up where the person stands, and then in the project.

    Raises:
        ConfigError: there is no such run, or no checkpoint in it.
    """
    given = expanded(path)
    given = given if exists(given) else ROOT / given
    if not exists(given):
        hint = "; train first, or name a folder under logs/" if given.name == "latest" else ""
        raise ConfigError(f"run={path}: no such folder or checkpoint{hint}")
    given = given.resolve()
    if given.is_dir():
        checkpoint = _checkpoint_of(given, path)
        if checkpoint is None:
            status = read_summary(given).get("status")
            known = f" (its status: {status})" if status else ""
            raise ConfigError(f"run={path}: no checkpoint in {given / 'checkpoints'}{known}")
        return given, checkpoint
    if not given.is_file():
        raise ConfigError(f"run={path}: neither a folder nor a file")
    in_its_place = given.parent.name == Path(BEST).parent.name
    return given.parent.parent if in_its_place else given.parent, given


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, checked in full; only plain data and tensors are ever read.

    Raises:
        ConfigError: the file is damaged, or not a checkpoint of this project.
    """
    from cvae import checkpoints

    try:
        return checkpoints.load(path)
    except ConfigError as error:
        raise ConfigError(f"run={error}") from None


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


def load_run(path: str | Path, trusted: trust.Trust = None) -> "Autoencoder":
    """The trained model of a run folder or a checkpoint, ready to use.

    Args:
        trusted: packages beside ours whose classes the run may name, such as "my_network".

    Raises:
        ConfigError: nothing there that can be loaded.
    """
    return load_model(find_run(path)[1], trusted)[0]


def load_model(
    checkpoint_path: Path, trusted: trust.Trust = None
) -> tuple["Autoencoder", DictConfig]:
    """The model in a checkpoint, and the config of its run.

    Raises:
        ConfigError: the file cannot be loaded, its weights do not go with its config, or that
            names code which is neither ours nor trusted.
    """
    where = f"run={checkpoint_path}"
    checkpoint = load_checkpoint(checkpoint_path)
    cfg = _plain_config(checkpoint["config"], f"{where}: its config")
    return model_with_weights(cfg, model_weights(checkpoint), where, trusted)


def model_with_weights(
    config: Any, weights: Mapping[str, Any], where: str, trusted: trust.Trust = None
) -> tuple["Autoencoder", DictConfig]:
    """The model that a config from somewhere describes, with the weights that lay beside it.

    Raises:
        ConfigError: they do not go together, or the config names code that is not trusted.
    """
    cfg = _plain_config(config, f"{where}: its config", parts=("model",))
    try:
        model: Autoencoder = instantiate_read(cfg, "model", trusted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{where}: weights of another model ({reason})") from None
    return model.eval(), cfg


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as dicts and lists, interpolations resolved."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


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
    except (OSError, ValueError, RecursionError):
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
