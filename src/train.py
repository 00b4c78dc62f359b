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
from harness.training.ranks import is_first


@entry_point("train")
def main(cfg: DictConfig) -> float | None:
    """Archive the composed config in its run folder, then train on that file alone."""
    hydra = HydraConfig.get()
    path, typed, speaks = Path(hydra.runtime.output_dir), hydra.overrides.task, is_first()
    if cfg.rerun is not None:
        jobs.run_unfinished(path, hydra.launcher.get("num_jobs", 1), cfg.trust)
        return None
    if hydra.mode is RunMode.MULTIRUN:  # a job of a launcher that is not ours
        RunFolder.archive(cfg, path, Path(hydra.sweep.dir).name, typed)
        return jobs.run_jobs([path])[0]
    new = cfg.resume is None
    folder = RunFolder.archive(cfg, path, overrides=typed) if new and speaks else RunFolder(path)
    with folder.claimed() if speaks else nullcontext():
        if not new and not prepare_resume(folder, cfg, typed):
            return None
        try:
            objective = launch(folder)
        except ConfigError:
            if new and speaks:
                folder.discard_without_data()
            raise
    if speaks:
        print(folder.what_next())
    return objective


if __name__ == "__main__":
    main()
