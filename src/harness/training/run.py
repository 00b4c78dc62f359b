"""Training of one run from its archived config: start or resume, fit, test, record the result."""

import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from harness.contract.errors import ConfigError
from harness.contract.module import ExactModule
from harness.run_folder import loading, reading
from harness.run_folder.folder import RunFolder, update_latest_link
from harness.run_folder.metrics_file import MetricsFile
from harness.run_folder.reading import LAST, METRICS
from harness.training.build import Parts, build_parts, is_smoke
from harness.training.log import log_to_folder
from harness.training.optimization import LeanOptimization
from harness.training.outcome import record_outcome
from harness.training.processes import raise_on_stop_signal
from harness.training.resume import best_checkpoint
from harness.training.warm_start import read_weights

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def train(
    module: ExactModule,
    datamodule: lightning.LightningDataModule,
    trainer: lightning.Trainer,
    checkpoint_dir: Path | None = None,
    test: bool = True,
    resume_from: Path | None = None,
    weights: Mapping[str, Tensor] | None = None,
    cuda_graph: bool = True,
) -> dict[str, float]:
    """Fit a module and test its best weights. Needs no config, so a notebook can call it.

    The best weights are those of the trainer's first ModelCheckpoint. If it has saved none, the
    last weights are tested.

    Args:
        module: the module to train.
        datamodule: its data.
        trainer: the trainer.
        checkpoint_dir: folder to save last.ckpt in if training saves no best checkpoint; None to
            save none.
        test: whether to compute metrics on the test set; a search does not.
        resume_from: the checkpoint to resume from; None to start.
        weights: weights of the model to start from, by name; others keep their initial values.
        cuda_graph: whether to replay the steps as a CUDA graph on a GPU.

    Returns:
        The validation and test metrics of the best weights, by name.

    Raises:
        FloatingPointError: a metric is not finite.
    """
    datamodule.prepare_data()
    datamodule.setup("fit")
    module.initialize(datamodule)
    if weights is not None:
        module.model.load_state_dict(weights, strict=False)
    module.fit_statistics(datamodule)
    # convert now: Lightning does so only after EMA and checkpoints have set float32 weights
    trainer.precision_plugin.convert_module(module)
    steps = LeanOptimization(trainer, cuda_graph)
    trainer.fit_loop.epoch_loop.automatic_optimization = steps
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    steps.forget_steps()
    if (best := best_checkpoint(trainer)) is not None:
        reader = trainer.strategy.checkpoint_io  # the plugin that wrote the file
        checkpoint = reader.load_checkpoint(best, weights_only=True)
        module.model.load_state_dict(loading.model_weights(checkpoint))
        module.validation = checkpoint["validation"]
    elif checkpoint_dir is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        last = checkpoint_dir / Path(LAST).name
        if not last.is_file():
            trainer.save_checkpoint(last)
    module.eval()  # also without a test
    metrics = dict(module.validation)
    if test:
        trainer.test(module, datamodule=datamodule, verbose=False)
        scored = trainer.callback_metrics.items()
        metrics |= {name: float(value) for name, value in scored if name.startswith("test/")}
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise FloatingPointError(
            f"{', '.join(bad)}: not finite; lower optimizer.lr or trainer.gradient_clip_val"
        )
    return metrics


def train_run(folder: RunFolder) -> None:
    """Train the run of a folder in this process, and write its results to the folder."""
    rank = int(os.environ.get("RANK", 0))
    cfg = folder.config
    if not torch.cuda.is_available():
        # set by Lightning: with it, AdamW loads a library at each step to look for a GPU
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    with log_to_folder(folder.path, rank), record_outcome(folder, rank), raise_on_stop_signal():
        start = time.perf_counter()
        checkpoint_path, content = folder.checkpoint or (None, {})
        if rank == 0:
            _record_start(folder)
        log.info("run %s in %s", cfg.name, folder.path)
        parts = build_parts(folder, rank)
        if checkpoint_path is not None:
            _check_provenance(parts.module.provenance, content["provenance"])
            folder.forget_checkpoint()
            content = {}  # the plugin for checkpoints holds it until the trainer loads it
        weights = None
        if checkpoint_path is None and cfg.get("weights") is not None:
            weights = read_weights(
                parts.module.model, cfg.weights, bool(cfg.get("weights_partial"))
            )
        saves_checkpoints = cfg.trainer.enable_checkpointing
        checkpoint_dir = (folder.path / LAST).parent if saves_checkpoints else None
        cuda_graph = cfg.get("cuda_graph", True)
        metrics = train(*parts, checkpoint_dir, cfg.test, checkpoint_path, weights, cuda_graph)
        if rank == 0:
            _record_result(folder, parts, metrics, time.perf_counter() - start)


def _record_start(folder: RunFolder) -> None:
    if folder.checkpoint is None:
        if folder.summary.get("status") != "pending":
            log.info("no checkpoint yet: the run starts from the beginning")
        folder.record_start(None)
        return
    path, content = folder.checkpoint
    step = int(content["global_step"])
    log.info("resuming at step %d, from %s", step, path.name)
    MetricsFile(folder.path / METRICS).rewind(step)
    folder.record_start(step)


def _check_provenance(current: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raise if the data or precision of a resumed run have changed; warn of other changes.

    Raises:
        ConfigError: the data differ, or trainer.precision=auto gives another precision here.
    """
    if current["data"] != saved["data"]:
        raise ConfigError(
            "the training data are not those that this run started with: restore them, or "
            "start a new run"
        )
    if current["validation"] != saved.get("validation"):  # other rows, or other noise
        raise ConfigError(
            "the validation data are not those that this run started with: restore them, or "
            "start a new run"
        )
    if (precision := saved.get("precision", current["precision"])) != current["precision"]:
        raise ConfigError(
            f"trainer.precision=auto: is {current['precision']} on this machine, but this run "
            f"started with {precision}; resume it on a machine where auto is {precision}"
        )
    changed = [
        f"{k} {saved.get(k)}, now {current[k]}" for k in current if current[k] != saved.get(k)
    ]
    if changed:
        log.warning("the resumed run is exact only up to rounding: %s", "; ".join(changed))


def _record_result(
    folder: RunFolder, parts: Parts, metrics: dict[str, float], seconds: float
) -> None:
    cfg, (module, datamodule, trainer) = folder.config, parts
    callback = trainer.checkpoint_callback  # the first one selects the best weights
    score = getattr(callback, "best_model_score", None)
    checkpoint = best_checkpoint(trainer) or folder.path / LAST
    checkpoint_name = (
        reading.relative_name(folder.path, checkpoint) if checkpoint.is_file() else None
    )
    train_seconds = max(1e-9, module.train_seconds)
    assert datamodule.validation is not None
    assert datamodule.test is not None
    counts = {
        f"{module.items}_seen": module.items_seen,
        "seconds": round(seconds, 2),
        "train_seconds": round(module.train_seconds, 2),
        f"{module.items}_per_second": round(module.items_seen / train_seconds, 1),
    }
    folder.update(
        status="smoke" if is_smoke(cfg) else "finished",
        checkpoint=checkpoint_name,
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
        log.info("no best checkpoint was saved: the results are those of the last weights")
    if is_smoke(cfg):
        log.info("a smoke run: not tracked on W&B, not compared, logs/latest does not change")
    else:
        update_latest_link(folder.path)
    if scores := "  ".join(f"{k} {v:.2f}" for k, v in metrics.items() if k.startswith("test/")):
        log.info("test set %s: %s", datamodule.test.digest(), scores)


def _peak_memory() -> int | None:
    """Return the peak memory of this process in bytes, or None on Windows."""
    if resource is None:
        return None
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, else KiB
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'' if threads == 1 else 's'}"
