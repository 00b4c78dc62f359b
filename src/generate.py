"""Digits on demand: ``python src/generate.py run=logs/latest label=7 num_samples=16``."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from harness.command_line.entry_point import entry_point
from harness.config.paths import exists
from harness.run_folder import loading, trust
from harness.run_folder.reading import BEST


@entry_point("generate", less_memory="num_samples")
def main(cfg: DictConfig) -> None:
    """Decode random points of the latent space into a PNG, and a .npy file if asked."""
    run_dir, checkpoint = loading.find_run(cfg.run)

    from cvae.models import Autoencoder
    from cvae.sampling import file_name, generate, save

    model, _ = loading.load_model(checkpoint, cfg.trust, Autoencoder)
    label: Any = cfg.label
    if isinstance(label, ListConfig):
        label = list(label) if len(label) > 1 else label[0]
    settings = (label, cfg.num_samples, cfg.seed, cfg.temperature, cfg.binary)
    images = generate(model, *settings)
    name = file_name(*settings, "" if checkpoint == run_dir / BEST else checkpoint.stem)
    output = Path(cfg.output) if cfg.output else trust.inside(run_dir, f"generated/{name}")
    before = [path for path in (output, output.with_suffix(".npy")) if exists(path)]
    for path in save(images, output, label, npy=cfg.npy):
        print(path)
        if cfg.output and path in before:
            print(f"{path}: replaced", file=sys.stderr)


if __name__ == "__main__":
    main()
