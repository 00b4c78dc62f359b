"""Train a conditional VAE: ``python src/train.py model.latent_dim=8 trainer.devices=2``."""

from contextlib import nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cvae import runs, sweeps
from cvae.cli import entry_point
from cvae.launch import is_first, launch
from cvae.schema import ConfigError


@entry_point("train")
def main(cfg: DictConfig) -> float | None:
    """Archive the composed config in its run folder, then train on that file alone."""
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    if cfg.rerun is not None:
        sweeps.run_unfinished(run_dir, hydra.launcher.get("num_jobs", 1), cfg.trust)
        return None
    if hydra.mode is RunMode.MULTIRUN:
        runs.archive(cfg, run_dir, Path(hydra.sweep.dir).name, hydra.overrides.task)
        return sweeps.run_jobs([run_dir])[0]
    speaks = is_first()
    if cfg.resume is not None:
        with runs.claimed(run_dir) if speaks else nullcontext():
            goes_on = runs.prepare_resume(run_dir, cfg, hydra.overrides.task)
        if not goes_on:
            return None
    elif speaks:
        runs.archive(cfg, run_dir, overrides=hydra.overrides.task)
    try:
        objective = launch(run_dir)
    except ConfigError:
        if speaks and cfg.resume is None:
            runs.discard_without_data(run_dir)
        raise
    if speaks:
        print(runs.what_next(run_dir))
    return objective


if __name__ == "__main__":
    main()
