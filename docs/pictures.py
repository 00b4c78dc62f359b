"""Draw the pictures of docs/article-in-code.md and README.md from trained runs.

``python docs/pictures.py`` (make pictures) first trains the runs that are missing in ``--folder``,
one after another. To train a finished run again, delete its folder.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image as PILImage

from cvae import figures, load_run
from cvae.models import Autoencoder
from cvae.types import Batch
from harness.config.paths import ROOT
from harness.contract import files
from harness.contract.sampler import Rows
from harness.run_folder import loading, reading

IMAGES = ROOT / "docs" / "images"
RUNS = {  # overrides of every run, by the name of its folder
    "autoencoder": ["model=autoencoder", "trainer.max_epochs=5"],
    "vae": ["model=vae", "trainer.max_epochs=5"],
    "vae-plane": ["model=vae", "model.latent_dim=2", "trainer.max_epochs=5"],
    "cvae-plane": ["model=cvae_plain", "model.latent_dim=2", "trainer.max_epochs=5"],
    "cvae": [],
}
NUM_TEST_IMAGES = 2000  # in the latent planes
WALK_LABELS = (2, 7)


def train_missing(folder: Path, extra_overrides: list[str]) -> None:
    """Train the runs that have not finished; an interrupted run resumes."""
    for name, overrides in RUNS.items():
        run = folder / name
        if reading.read_summary(run).get("status") == "finished":
            continue
        arguments = [*overrides, *extra_overrides, "logger=csv", f"hydra.run.dir={run}"]
        if reading.holds_run(run):
            arguments = [f"resume={run}"]
        command = [sys.executable, str(ROOT / "src" / "train.py"), *arguments]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)


def load_images(run: Path) -> tuple[Batch, Batch]:
    """Return the first test image of every label, and the first 2,000 test images."""
    data = loading.load_data(reading.load_config(run))
    data.prepare_data()
    data.setup()
    index = torch.arange(min(NUM_TEST_IMAGES, len(data.test)))
    return data.examples(), data.test[Rows(0, index, len(index))]


def draw_random_codes(
    autoencoder: Autoencoder, vae: Autoencoder, examples: Batch
) -> PILImage.Image:
    """Draw test images, their reconstructions by the autoencoder, and decoded random codes."""
    z = figures.fixed_latents(vae, len(examples.x))
    rows = {
        "test image": examples.x,
        "autoencoder, reconstruction": autoencoder.reconstruct(examples.x),
        "autoencoder, random z": autoencoder.sample(z=z),
        "VAE, the same z": vae.sample(z=z),
    }
    return figures.image_grid(torch.stack(list(rows.values())), list(rows))


def draw_walk(model: Autoencoder) -> PILImage.Image:
    """Draw the plane of a two-dimensional latent, decoded with each of two labels."""
    steps = 0.6 * torch.arange(-3, 4)  # in standard deviations of p(z)
    z = torch.cartesian_prod(steps.flip(0), steps).flip(1)  # the largest second dimension on top
    return join_horizontally(
        figures.image_grid(
            model.sample(y=label, z=z).unflatten(0, (len(steps), -1)),
            [f"{s:.1f}" for s in steps.flip(0)],
            [f"{s:.1f}" for s in steps],
            title=f"Label {label}. Column: first dimension of z. Row: second.",
        )
        for label in WALK_LABELS
    )


def join_horizontally(pictures: Iterable[PILImage.Image]) -> PILImage.Image:
    row = [picture.convert("RGB") for picture in pictures]
    page = PILImage.new("RGB", (sum(p.width for p in row), max(p.height for p in row)), "white")
    for i, picture in enumerate(row):
        page.paste(picture, (sum(p.width for p in row[:i]), 0))
    return page


@torch.no_grad()
def draw_pictures(folder: Path) -> dict[str, PILImage.Image]:
    """Return the pictures by file name, drawn from the runs in ``folder``."""
    models = {name: load_run(folder / name) for name in RUNS}
    examples, test_images = load_images(folder / "vae")
    planes = {"VAE": models["vae-plane"], "CVAE": models["cvae-plane"]}
    return {
        "random_codes": draw_random_codes(models["autoencoder"], models["vae"], examples),
        "latent_planes": join_horizontally(
            figures.latent_plane(model, test_images, name) for name, model in planes.items()
        ),
        "walk": draw_walk(models["cvae-plane"]),
        "label_grid": figures.label_grid(models["cvae"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "logs" / "pictures", help="folder of the runs"
    )
    parser.add_argument("--output", type=Path, default=IMAGES, help="folder of the PNG files")
    parser.add_argument(
        "--train", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of every run"
    )
    arguments = parser.parse_args()
    train_missing(arguments.folder, arguments.train)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, picture in draw_pictures(arguments.folder).items():
        with files.atomic_write(arguments.output / f"{name}.png") as file:
            # few colors: the pictures are grey or have ten labels
            picture.quantize(64).save(file, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
