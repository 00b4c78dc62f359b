"""Digits on demand: ``python src/generate.py run=logs/latest label=7 num_samples=16``."""

from pathlib import Path

from omegaconf import DictConfig

from cvae import runs, trust
from cvae.cli import entry_point


@entry_point("generate")
def main(cfg: DictConfig) -> None:
    """Decode random points of the latent space into a PNG, and a .npy file if asked."""
    run_dir, checkpoint = runs.find_run(cfg.run)

    from cvae.sampling import generate, save

    model, _ = runs.load_model(checkpoint, cfg.trust)
    images = generate(model, cfg.label, cfg.num_samples, cfg.seed, cfg.temperature, cfg.binary)
    name = f"label-{'none' if cfg.label is None else cfg.label}-seed-{cfg.seed}.png"
    output = Path(cfg.output) if cfg.output else trust.inside(run_dir, f"generated/{name}")
    for path in save(images, output, cfg.label, npy=cfg.npy):
        print(path)


if __name__ == "__main__":
    main()
