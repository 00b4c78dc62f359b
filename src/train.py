"""Train a conditional VAE: ``python src/train.py model.latent_dim=8 trainer.devices=2``."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cvae import runs
from cvae.cli import entry_point
from cvae.launch import launch


@entry_point("train")
def main(cfg: DictConfig) -> float | None:
    """Archive the composed config in its run folder, then train on that file alone."""
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    sweep = Path(hydra.sweep.dir).name if hydra.mode is RunMode.MULTIRUN else None
    runs.archive(cfg, run_dir, sweep=sweep)
    objective = launch(run_dir, fresh=sweep is not None)
    print(runs.what_next(run_dir))
    return objective


if __name__ == "__main__":
    main()
