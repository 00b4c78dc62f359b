"""Digits on demand: ``python src/generate.py run=logs/latest label=7 num_samples=16``."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from cvae import runs, trust
from cvae.cli import entry_point


@entry_point("generate")
def main(cfg: DictConfig) -> None:
    """Decode random points of the latent space into a PNG, and a .npy file if asked."""
    run_dir, checkpoint = runs.find_run(cfg.run)

    from cvae.sampling import file_name, generate, save

    model, _ = runs.load_model(checkpoint, cfg.trust)
    label: Any = cfg.label
    if isinstance(label, ListConfig):
        label = list(label) if len(label) > 1 else label[0]
    settings = (label, cfg.num_samples, cfg.seed, cfg.temperature, cfg.binary)
    images = generate(model, *settings)
    name = file_name(*settings, "" if checkpoint == run_dir / runs.BEST else checkpoint.stem)
    output = Path(cfg.output) if cfg.output else trust.inside(run_dir, f"generated/{name}")
    before = [path for path in (output, output.with_suffix(".npy")) if runs.exists(path)]
    for path in save(images, output, label, npy=cfg.npy):
        print(path)
        if cfg.output and path in before:
            print(f"{path}: replaced", file=sys.stderr)


if __name__ == "__main__":
    main()
