"""Trains one run from its archived config: start or resume, fit, test, record the result."""

import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch

from harness.contract.data import ExactDataModule
from harness.contract.errors import (
    ConfigError,
)
from harness.contract.module import ExactModule
from harness.run_folder import loading, reading
from harness.run_folder.folder import RunFolder, point_latest
from harness.run_folder.metrics_file import MetricsFile
from harness.run_folder.reading import LAST, METRICS
from harness.training.build import Parts, build, is_smoke
from harness.training.log import logged
from harness.training.outcome import recorded
from harness.training.processes import (
    stops_at_once,
)
from harness.training.resume import best_checkpoint

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def train(
    module: ExactModule,
    datamodule: ExactDataModule,
    trainer: lightning.Trainer,
    checkpoint_dir: Path | None = None,
    test: bool = True,
    resume_from: Path | None = None,
) -> dict[str, float]:
    """Fit, then test the best weights. Knows nothing of configs: call it from a notebook.

    The best weights are those that the trainer's first ModelCheckpoint calls best; without one,
    or where training ended before a validation, the last weights are tested.

    Args:
        checkpoint_dir: where to save last.ckpt if training has saved no checkpoint; None for
            nowhere.
        test: whether to score the test set; a search does not look at it.
        resume_from: the checkpoint to go on from.

    Returns:
        The metrics of validation and test, of the weights that were tested.
    """
    datamodule.prepare_data()
    datamodule.setup()
    module.initialize(datamodule)
    # here, as Lightning converts only after EMA and a checkpoint have set the weights in float32
    trainer.precision_plugin.convert_module(module)
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    if (best := best_checkpoint(trainer)) is not None:
        reader = trainer.strategy.checkpoint_io  # whichever has written it
        checkpoint = reader.load_checkpoint(best, weights_only=True)
        module.model.load_state_dict(loading.model_weights(checkpoint))
        module.validation = checkpoint["validation"]
    elif checkpoint_dir is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        last = checkpoint_dir / Path(LAST).name
        if not last.is_file():
            trainer.save_checkpoint(last)
    module.eval()  # also where nothing is tested
    metrics = dict(module.validation)
    if test:
        trainer.test(module, datamodule=datamodule, verbose=False)
        scored = trainer.callback_metrics.items()
        metrics |= {name: float(value) for name, value in scored if name.startswith("test/")}
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise FloatingPointError(
            f"{', '.join(bad)}: not finite; a smaller optimizer.lr or trainer.gradient_clip_val?"
        )
    return metrics


def run(folder: RunFolder) -> None:
    """Train what the config in a run folder describes, and write how it went."""
    rank = int(os.environ.get("RANK", 0))
    cfg = folder.config
    if not torch.cuda.is_available():
        # Lightning's: AdamW asks for a GPU at each step, and then loads a library to find none
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    with logged(folder.path, rank), recorded(folder, rank), stops_at_once():
        start = time.perf_counter()
        point = folder.checkpoint
        if rank == 0:
            _begin(folder)
        log.info("run %s in %s", cfg.name, folder.path)
        parts = build(folder, rank)
        if point is not None:
            _check_provenance(parts.module.provenance, point[1]["provenance"])
            folder.forget_checkpoint()
            point = point[0], {}  # the trainer holds the content until it has loaded it
        keeps = cfg.trainer.enable_checkpointing
        checkpoint_dir = (folder.path / LAST).parent if keeps else None
        metrics = train(*parts, checkpoint_dir, cfg.test, point and point[0])
        if rank == 0:
            _finish(folder, parts, metrics, time.perf_counter() - start)


def _begin(folder: RunFolder) -> None:
    if folder.checkpoint is None:
        if folder.summary.get("status") != "pending":
            log.info("no checkpoint yet: the run starts over")
        folder.begin(None)
        return
    path, content = folder.checkpoint
    step = int(content["global_step"])
    log.info("going on at step %d, from %s", step, path.name)
    MetricsFile(folder.path / METRICS).rewind(step)
    folder.begin(step)


def _check_provenance(now: dict[str, Any], then: dict[str, Any]) -> None:
    """Hold a run that goes on to what it began with.

    Raises:
        ConfigError: the data are others, or trainer.precision=auto means another here.
    """
    if now["data"] != then["data"]:
        raise ConfigError("the training data are not those that this run began with")
    if now["validation"] != then.get("validation"):  # of other rows, or drawn by other noise
        raise ConfigError("the validation data are not those that this run began with")
    if (began := then.get("precision", now["precision"])) != now["precision"]:
        raise ConfigError(
            f"trainer.precision=auto: was {began} when this run began and is "
            f"{now['precision']} here"
        )
    changed = [f"{k} {then.get(k)}, now {now[k]}" for k in now if now[k] != then.get(k)]
    if changed:
        log.warning("equal up to rounding only: %s", "; ".join(changed))


def _finish(folder: RunFolder, parts: Parts, metrics: dict[str, float], seconds: float) -> None:
    cfg, (module, datamodule, trainer) = folder.config, parts
    callback = trainer.checkpoint_callback  # the first, which selects the run
    score = getattr(callback, "best_model_score", None)
    checkpoint = best_checkpoint(trainer) or folder.path / LAST
    kept = reading.name_in(folder.path, checkpoint) if checkpoint.is_file() else None
    trained = max(1e-9, module.train_seconds)
    assert datamodule.validation is not None
    assert datamodule.test is not None
    counts = {
        f"{module.items}_seen": module.items_seen,
        "seconds": round(seconds, 2),
        "train_seconds": round(module.train_seconds, 2),
        f"{module.items}_per_second": round(module.items_seen / trained, 1),
    }
    folder.update(
        status="smoke" if is_smoke(cfg) else "finished",
        checkpoint=kept,
        objective=None if score is None else float(score),
        monitor=getattr(callback, "monitor", None) or cfg.monitor,
        mode=getattr(callback, "mode", "max"),
        metrics=metrics,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        **counts,
        peak_memory_bytes=_peak_memory(),
        device=_device_name(trainer.strategy.root_device),
        devices=trainer.world_size,
        precision=trainer.precision,
        num_parameters=sum(p.numel() for p in module.model.parameters()),
        validation_digest=datamodule.validation.digest(),
        test_digest=datamodule.test.digest(),
    )
    if best_checkpoint(trainer) is None:
        log.info("no best checkpoint was saved: the last weights stand for this run")
    if is_smoke(cfg):
        log.info("a smoke run: not tracked on W&B, not compared, logs/latest does not change")
    else:
        point_latest(folder.path)
    if scores := "  ".join(f"{k} {v:.2f}" for k, v in metrics.items() if k.startswith("test/")):
        log.info("test set %s: %s", datamodule.test.digest(), scores)


def _peak_memory() -> int | None:
    """Return the peak memory of this process in bytes, or None if it is not known."""
    if resource is None:
        return None
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes there, KiB elsewhere
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'' if threads == 1 else 's'}"
