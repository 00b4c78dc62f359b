"""Copy of a run's evaluation on Weights & Biases."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.run_folder.loading import instantiate_untrusted
from harness.run_folder.trust import Trust
from harness.tracking.wandb import log_evaluation, wandb_mode


def copy_to_wandb(
    run_dir: Path,
    archived: DictConfig,
    trusted: Trust,
    metrics: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Any],
    columns: Sequence[str],
) -> None:
    """Add metrics and pictures to the run on Weights & Biases, if there is one.

    Args:
        run_dir: the folder of the run.
        archived: the config of the run.
        trusted: packages whose classes the config may also name.
        metrics: metrics by name, as in evaluation.json.
        pictures: pictures by name.
        columns: entries of a metric to show as columns of the table, after its name.
    """
    loggers = archived.get("logger")
    if not isinstance(loggers, DictConfig) or not loggers.get("wandb"):
        return
    if mode := wandb_mode(run_dir):
        where = {"save_dir": str(run_dir), "resume": "allow", "mode": mode}
        make_logger = partial(instantiate_untrusted, loggers, "wandb", trusted, **where)
        log_evaluation(make_logger, metrics, pictures, columns)
