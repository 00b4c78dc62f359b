"""Checks of settings that depend on each other, such as batch size and number of devices."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config.keys import format_value
from harness.config.machine import device_count, has_no_gpu, num_cpus
from harness.config.science import Science

WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def check_consistency(cfg: Mapping[str, Any], science: Science) -> Iterator[str]:
    """Yield one line for each contradiction between settings with valid types and ranges."""
    trainer, data = cfg["trainer"], cfg["data"]
    devices, count = trainer["devices"], device_count(trainer["devices"])
    if devices == 0 or devices == "0":
        yield "trainer.devices=0: must be at least 1, or auto"
    accelerator = trainer["accelerator"]
    if accelerator in ("gpu", "cuda") and has_no_gpu():
        yield f"trainer.accelerator={accelerator}: this machine has no GPU; use auto or cpu"
        return
    if accelerator == "mps" and sys.platform != "darwin":
        yield "trainer.accelerator=mps: this machine is not a Mac; use auto"
        return
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and has_no_gpu())
    is_list = isinstance(devices, Sequence) and not isinstance(devices, str)
    if on_cpu and (is_list or count is None) and devices not in ("auto", 0, "0"):
        value = format_value(devices)
        yield f"trainer.devices={value}: must be a number of processes or auto on a CPU"
        return
    if on_cpu and trainer["num_nodes"] == 1 and (count or 0) > num_cpus():
        cores = num_cpus()
        yield f"trainer.devices={devices}: must be at most {cores}, this machine has {cores} cores"
        return
    total = (count or 1) * trainer["num_nodes"]
    if data.get("batch_size", total) % total:
        on_nodes = " times trainer.num_nodes" if trainer["num_nodes"] > 1 else ""
        yield (
            f"data.batch_size={data['batch_size']}: must be a multiple of {total}, the number of "
            f"devices{on_nodes}"
        )
    if on_cpu and str(trainer["precision"]) in ("16", "16-mixed"):
        yield f"trainer.precision={trainer['precision']}: must be bf16-mixed or 32-true on a CPU"
    if trainer["barebones"]:
        yield "trainer.barebones=true: must be false, it turns off checkpoints and logging"
    tracked = ((cfg.get("logger") or {}).get("wandb") or {}).get("mode") == "auto"
    wandb_mode = os.environ.get("WANDB_MODE")
    if tracked and wandb_mode and wandb_mode not in WANDB_MODES:
        yield f"WANDB_MODE={format_value(wandb_mode)}: must be one of {', '.join(WANDB_MODES[:3])}"
    optimizer = cfg["optimizer"]
    if optimizer.get("fused") and optimizer.get("foreach"):
        yield "optimizer.foreach=true: must be false if optimizer.fused=true"
    yield from _check_monitor(cfg, science.validation_metrics(cfg))
    scheduler, mode = cfg.get("scheduler") or {}, cfg.get("mode", "max")
    is_plateau = str(scheduler.get("_target_")).endswith(".ReduceLROnPlateau")
    is_run_monitor = scheduler.get("monitor", cfg["monitor"]) == cfg["monitor"]
    if is_plateau and is_run_monitor and (scheduler_mode := scheduler.get("mode", "min")) != mode:
        yield f"scheduler.mode={scheduler_mode}: must be {mode}, because the run has mode={mode}"
    yield from _check_checkpoints(cfg)
    if trainer["use_distributed_sampler"]:
        yield "trainer.use_distributed_sampler=true: must be false, the data module has a sampler"
    science_problems = list(science.problems(cfg))
    yield from science_problems
    has_no_end = trainer["max_epochs"] in (None, -1) and trainer["max_steps"] == -1
    if has_no_end and not trainer["max_time"] and not science_problems:
        value = format_value(trainer["max_epochs"])
        yield f"trainer.max_epochs={value}: the run has no end; set it or trainer.max_steps"


def _check_monitor(cfg: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[str]:
    """Check the metrics that select the best checkpoint and control the scheduler."""
    schedule = cfg.get("scheduler") or {}
    metric_by_key = {"monitor": cfg["monitor"]}
    if schedule.get("monitor") != cfg["monitor"]:
        metric_by_key["scheduler.monitor"] = schedule.get("monitor")
    for key, name in metric_by_key.items():
        if name is None:
            continue
        if not name.startswith("val/"):
            yield f"{key}={format_value(name)}: must be a validation metric, val/NAME, or null"
        elif metrics and name not in metrics:
            known = ", ".join(metrics)
            value = format_value(name)
            yield f"{key}={value}: must be one of {known}, or logged by your own callback"


def _check_checkpoints(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Check the ModelCheckpoint callbacks of a run.

    The first one selects the best weights, so it may save only validated ones. No two may write the
    same file.
    """
    callbacks = {key: node for key, node in (cfg.get("callbacks") or {}).items() if node}
    run_folder = f"{cfg.get('run_dir')}/"  # null before the run starts
    writers: dict[tuple[str, str], str] = {}
    for key, node in callbacks.items():
        if str(node["_target_"]) == "harness.training.resume.LastCheckpoint":
            for name in ("last", "last-previous"):
                writers[str(node.get("dirpath")), name] = f"callbacks.{key}"
    is_first = True
    for name, node in callbacks.items():
        if not str(node["_target_"]).endswith(".ModelCheckpoint"):
            continue
        key, folder = f"callbacks.{name}", str(node.get("dirpath") or f"{run_folder}checkpoints")
        if is_first:
            yield from _check_best(cfg, key, node, folder, run_folder)
        is_first = False
        filename = node.get("filename") or "{epoch}-{step}"
        files = [filename] + ["last"] * bool(node.get("save_last"))
        for file in dict.fromkeys(files):
            other = writers.setdefault((folder, file), key)
            if other != key:
                setting = "save_last" if file == "last" != filename else "filename"
                value = format_value(node.get(setting))
                yield (
                    f"{key}.{setting}={value}: {other} writes {file}.ckpt in the same folder; "
                    "choose another name or leave it out"
                )
        several_per_epoch = cfg["trainer"]["val_check_interval"] not in (None, 1.0)
        is_distinct = "{step" in filename or ("{epoch" in filename and not several_per_epoch)
        overwrites = node.get("enable_version_counter", True) is False and not is_distinct
        if node.get("save_top_k", 1) not in (0, 1) and overwrites:
            yield (
                f"{key}.save_top_k={node['save_top_k']}: filename={format_value(filename)} gives "
                "several checkpoints the same name; add {step} to it, or set "
                "enable_version_counter=true"
            )


def _check_best(
    cfg: Mapping[str, Any], key: str, node: Mapping[str, Any], folder: str, run_folder: str
) -> Iterator[str]:
    for setting, default in (("monitor", None), ("mode", "max")):
        wanted = cfg.get(setting, default)
        if node.get(setting, wanted) != wanted:
            value = format_value(node[setting])
            rule = f"must equal {setting}={format_value(wanted)} of the run"
            yield f"{key}.{setting}={value}: {rule}; set {setting}={value} instead"
    if not f"{folder}/".startswith(run_folder) or ".." in Path(node.get("filename") or "").parts:
        yield f"{key}.dirpath={format_value(folder)}: must lie in the run folder, ${{run_dir}}/..."
    for setting in ("every_n_train_steps", "train_time_interval", "save_on_exception"):
        if node.get(setting):
            yield (
                f"{key}.{setting}={format_value(node[setting])}: saves weights that were not "
                "validated; use trainer.val_check_interval, or another ModelCheckpoint in callbacks"
            )
    if node.get("save_weights_only"):
        yield f"{key}.save_weights_only=true: must be false, it saves raw weights, not averages"
    if node.get("save_on_train_epoch_end") and cfg["trainer"]["check_val_every_n_epoch"] != 1:
        yield f"{key}.save_on_train_epoch_end=true: needs trainer.check_val_every_n_epoch=1"
