"""Weights & Biases, as an optional copy of the metrics: a failure of W&B never ends a run."""

import atexit
import contextlib
import io
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field

from harness.contract.errors import ConfigError
from harness.contract.settings import Name, Title

log = logging.getLogger(__name__)

_WANDB_TIMEOUT = 8  # seconds to wait for the server before the run is tracked offline
_WANDB_FINISH_TIMEOUT = 60  # seconds to wait for uploads at the end
# WANDB_ variables that conf/ reads, so that overrides can replace their values
_CONFIG_VARIABLES = ("PROJECT", "ENTITY", "NAME", "RUN_GROUP", "JOB_TYPE", "TAGS", "NOTES")

Mode = Literal["auto", "online", "offline", "disabled"]
Project = Annotated[
    str,
    Field(
        pattern=r"^[^/\\#?%:]{1,128}$", description="of 1 to 128 characters without / \\ # ? % :"
    ),
]
Tag = Annotated[str, Field(pattern=r"^.{1,64}$", description="of 1 to 64 characters")]
TagList = Annotated[
    str,
    Field(
        pattern=r"^\s*[^,\s][^,]{0,63}(,\s*[^,\s][^,]{0,63})*$",
        description="of such tags, separated by commas",
    ),
]
WANDB_LOGGER = f"{__name__}.wandb_logger"  # the target of the config


def has_wandb_account() -> bool:
    """Return whether W&B has credentials for its server and is not set to offline or disabled.

    W&B itself looks them up, without a prompt, a connection or output: WANDB_API_KEY,
    WANDB_IDENTITY_TOKEN_FILE, netrc and settings files. If that fails, there is no account.
    """
    wandb = _import_wandb()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return bool(wandb.login(prompt=False, verify=False))
    except Exception as error:  # a malformed key, an invalid address, a home that does not exist
        log.warning("W&B account not found: %s", _one_line(error))
        return False


def _import_wandb() -> Any:
    """Import W&B, after setting variables that it reads on import and passes to its process."""
    for name in [n for n, value in os.environ.items() if n.startswith("WANDB_") and not value]:
        del os.environ[name]  # an empty variable counts as unset
    os.environ["WANDB_SILENT"] = "true"
    # error reports to W&B: if the server hangs, they delay the exit by half a minute
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def import_for_runs() -> None:
    """Import W&B, and what it imports when a run starts, for the forks of this process."""
    with contextlib.suppress(Exception):  # the runs report it
        _import_wandb()
        import wandb.sdk.launch  # noqa: F401


def make_temporary_folders() -> None:
    """Make new temporary folders for W&B in this fork: the parent removes its own at exit."""
    if "wandb" not in sys.modules:
        return
    from wandb.sdk.artifacts.artifact import Artifact
    from wandb.sdk.data_types._private import MEDIA_TMP

    for folder in (MEDIA_TMP, Artifact._TMP_DIR):
        atexit.unregister(folder.cleanup)  # the fork would remove the folder of all others
        folder.__init__("wandb")  # type: ignore[misc] # other modules hold the object


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _load_wandb_settings(run_dir: Path, mode: Mode) -> str:
    """Load W&B's settings, from its files and the environment, and return the mode they give.

    Args:
        run_dir: folder for W&B's cache if no other is writable.
        mode: overrides the mode of the settings; auto leaves it.

    Raises:
        ConfigError: a variable of the environment has a value that W&B rejects.
    """
    wandb = _import_wandb()
    _make_cache_writable(run_dir)
    _unset_config_variables()
    if wandb.run is None:
        wandb.teardown()  # else it keeps the settings of an earlier run in this process
    limits = {"init_timeout": _WANDB_TIMEOUT, "finish_timeout": _WANDB_FINISH_TIMEOUT}
    changes: dict[str, Any] = {
        k: v for k, v in limits.items() if f"WANDB_{k.upper()}" not in os.environ
    }
    if mode != "auto":
        changes["mode"] = mode
    try:
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            # not wandb.setup(), which hangs if its process does not start
            settings = wandb.sdk.wandb_setup.singleton().settings
    except wandb.errors.UsageError as error:
        raise ConfigError(f"WANDB_ variables: {_one_line(error)}") from None
    except ValueError as error:
        raise ConfigError(_explain_rejected_variable(error)) from None
    settings.update_from_dict({"silent": True, "console": "off", **changes})
    if problem := re.sub(r"\s*wandb: (WARNING|ERROR)?\s*", " ", stderr.getvalue()).strip():
        log.warning("W&B settings: %s", problem[:200])
    return {"dryrun": "offline", "run": "online"}.get(
        settings.mode, settings.mode
    )  # former names of the modes


def _explain_rejected_variable(error: ValueError) -> str:
    """Return the message for a pydantic error about a setting from the environment."""
    try:
        first = error.errors()[0]  # type: ignore[attr-defined]
        name = str(first["loc"][0]).removeprefix("x").upper()
        return f"WANDB_{name}={first['input']}: {first['msg']}"
    except (AttributeError, LookupError):
        return f"WANDB_ variables: {_one_line(error)}"


def _unset_config_variables() -> None:
    """Remove the variables whose values are in the config.

    W&B would use them where the config has null. The project and entity of a sweep or launch agent
    remain.
    """
    has_agent = os.environ.get("WANDB_SWEEP_ID") or os.environ.get("WANDB_LAUNCH")
    for name in _CONFIG_VARIABLES:
        if not (has_agent and name in ("PROJECT", "ENTITY")):
            os.environ.pop(f"WANDB_{name}", None)


def _make_cache_writable(run_dir: Path) -> None:
    """Move W&B's cache to the run folder if no other place is writable.

    Without a cache folder, W&B's process logs to the terminal.
    """
    wandb = _import_wandb()
    local_cache = run_dir.resolve() / "wandb" / "cache"
    try:
        Path.home()
    except RuntimeError:  # a user without a passwd entry: W&B fails without a home
        os.environ["HOME"] = str(local_cache)
    # without these, W&B's process finds no folder, even where Python does
    if any(os.environ.get(k) for k in ("WANDB_CACHE_DIR", "XDG_CACHE_HOME", "HOME")):
        with contextlib.suppress(OSError, RuntimeError):
            folder = Path(wandb.env.get_cache_dir())
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return
    os.environ["WANDB_CACHE_DIR"] = str(local_cache)


def wandb_logger(
    save_dir: Name | Path,
    run_id: str,
    *,
    name: Title | None,
    project: Project,
    entity: Name | None = None,
    mode: Mode = "auto",
    group: Title | None = None,
    job_type: Title | None = None,
    tags: list[Tag] | TagList | None = None,
    notes: str | None = None,
    log_model: bool = False,
    axes: Annotated[Sequence[Name], MinLen(1)] = (),
    summarized: Mapping[str, Literal["max", "min"]] | None = None,
    resume: Literal["allow"] | None = None,
    config: Mapping[str, Any] | None = None,
) -> WandbLogger:
    """Return the logger of a W&B run; never prompts and never waits long for the server.

    The run is online if an account is configured and the server answers, else offline.

    Args:
        save_dir: the run folder; W&B writes to its subfolder wandb/.
        run_id: id of the run on the server.
        mode: auto, online, offline or disabled; auto follows WANDB_MODE and W&B's settings files.
        tags: a list, or comma-separated text.
        log_model: whether to upload the best checkpoint as an artifact.
        axes: metrics that charts can use as the x-axis, in addition to the step.
        summarized: metrics whose max or min is in the summary, in addition to the last value.
        resume: "allow" to add to the run of this id.
        config: settings of the run; ``wandb leet`` shows only those given at the start.

    Raises:
        ConfigError: a variable of the environment has a value that W&B rejects.
    """
    if isinstance(tags, str):
        tags = [tag.strip() for tag in tags.split(",")]
    arguments: dict[str, Any] = {
        "dir": str(save_dir),
        "id": run_id,
        "name": name,
        "project": project,
        "entity": entity,
        "group": group,
        "job_type": job_type,
        "tags": tags,
        "notes": notes,
        "resume": resume,
        "config": config,
    }
    run = _start_run(mode, arguments)
    if run.settings.mode == "offline":
        log.info(
            "W&B is offline; to upload this run: wandb sync %s",
            shlex.quote(str(Path(run.dir).parent)),
        )
    for axis in axes:
        run.define_metric(axis)
    for split in ("train", "val", "test"):
        run.define_metric(f"{split}/*", step_metric="trainer/global_step")
    for metric, extreme in (summarized or {}).items():
        run.define_metric(metric, step_metric="trainer/global_step", summary=f"{extreme},last")
    return WandbMirror(experiment=run, log_model=log_model)


def _start_run(mode: Mode, arguments: Mapping[str, Any]) -> Any:
    """Start a W&B run as settings and account allow: online, else offline, else disabled."""
    wandb, run_dir = _import_wandb(), Path(arguments["dir"])
    is_requested = mode != "auto" or "WANDB_MODE" in os.environ
    actual_mode = _load_wandb_settings(run_dir, mode)
    is_online = actual_mode not in ("offline", "disabled")
    if is_online and not has_wandb_account():
        if is_requested:
            log.warning("W&B has no account; this run is tracked offline (to log in: wandb login)")
        actual_mode, is_online = "offline", False
    try:
        return wandb.init(mode=actual_mode, **arguments)
    except (wandb.errors.Error, OSError) as error:
        if actual_mode == "disabled":
            raise
        if is_online:
            log.warning("W&B does not answer (%s); this run is tracked offline", _one_line(error))
        else:  # its process does not start, for example
            log.warning("W&B does not start (%s); this run is not tracked", _one_line(error))
        wandb.teardown()  # else W&B counts the id as in use
        return _start_run("offline" if is_online else "disabled", arguments)


class WandbMirror(WandbLogger):
    """WandbLogger whose failures are logged and do not end the run; metrics.csv has all metrics."""

    def _call_safely(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # W&B can raise anything
            log.warning("W&B: %s; training continues", _one_line(error))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._call_safely(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_image(self, *args: Any, **kwargs: Any) -> None:
        self._call_safely(super().log_image, *args, **kwargs)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._call_safely(super().finalize, status)


def close_wandb(exit_code: int) -> None:
    """Finish the W&B run, if there is one. Files that are not uploaded stay in the run folder."""
    wandb = sys.modules.get("wandb")  # not imported means that no logger has started a run
    if wandb is None or wandb.run is None:
        return
    wandb_dir = Path(wandb.run.dir).parent
    start = time.monotonic()
    try:
        wandb.finish(exit_code=exit_code)
    except Exception as error:
        log.warning("W&B: %s", _one_line(error))
    if time.monotonic() - start >= _WANDB_FINISH_TIMEOUT:
        log.warning("W&B took too long; to upload the rest: wandb sync %s", wandb_dir)


def wandb_mode(run_dir: Path) -> Literal["auto", "offline"] | None:
    """Return the mode for additions to a folder's W&B run; None if it has none or W&B is off."""
    has_files = {name: any(run_dir.glob(f"wandb/{name}-*")) for name in ("run", "offline-run")}
    if not any(has_files.values()):
        return None
    with contextlib.suppress(ConfigError):  # log_evaluation will report it
        if _load_wandb_settings(run_dir, "auto") == "disabled":
            return None
    return "auto" if has_files["run"] else "offline"


def log_evaluation(
    make_logger: Callable[[], WandbLogger],
    metrics: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Any],
    columns: Sequence[str],
) -> None:
    """Add an evaluation to a W&B run: summary keys, a table and pictures; then close the run.

    If W&B fails, log one line: evaluation.json holds all results.

    Args:
        make_logger: makes the logger of the run.
        metrics: metrics by name, as in evaluation.json.
        pictures: pictures by name.
        columns: entries of a metric to show as columns of the table, after its name.
    """
    rows = [[name, *(metric.get(c) for c in columns)] for name, metric in metrics.items()]
    try:
        run = make_logger().experiment
        import wandb

        values = {f"evaluation/{k}": m["value"] for k, m in metrics.items() if "value" in m}
        run.summary.update(values)
        table = wandb.Table(columns=["metric", *columns], data=rows)
        media = {f"evaluation/{k}": wandb.Image(picture) for k, picture in pictures.items()}
        run.log({"evaluation/table": table, **media})
    except Exception as error:
        log.warning("W&B: %s; evaluation.json holds all results", _one_line(error))
    close_wandb(0)
