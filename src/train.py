"""Train a conditional VAE: ``python src/train.py model.latent_dim=8 trainer.devices=2``."""

from contextlib import nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from harness.command_line.entry_point import entry_point
from harness.contract.errors import ConfigError
from harness.run_folder.folder import RunFolder
from harness.run_folder.resuming import prepare_resume
from harness.sweeps import jobs
from harness.training.launch import launch
from harness.training.ranks import is_rank_zero


@entry_point("train")
def main(cfg: DictConfig) -> float | None:
    """Archive the composed config in its run folder, then train from that file alone."""
    hydra = HydraConfig.get()
    path, overrides = Path(hydra.runtime.output_dir), hydra.overrides.task
    rank_zero = is_rank_zero()
    if cfg.rerun is not None:
        jobs.run_unfinished(path, hydra.launcher.get("num_jobs", 1), cfg.trust)
        return None
    if hydra.mode is RunMode.MULTIRUN:  # a job of another launcher, such as submitit
        RunFolder.archive(cfg, path, Path(hydra.sweep.dir).name, overrides)
        return jobs.run_jobs([path])[0]
    is_new = cfg.resume is None
    if is_new and rank_zero:
        folder = RunFolder.archive(cfg, path, overrides=overrides)
    else:
        folder = RunFolder(path)
    with folder.lock() if rank_zero else nullcontext():
        if not is_new and not prepare_resume(folder, cfg, overrides):
            return None
        try:
            objective = launch(folder)
        except ConfigError:
            if is_new and rank_zero:
                folder.discard_if_no_data()
            raise
    if rank_zero:
        print(folder.next_steps())
    return objective


if __name__ == "__main__":
    main()
