"""Figure that compares the autoencoder, the VAE and the CVAE of the article."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image as PILImage

from cvae import figures
from cvae.models import Autoencoder
from cvae.types import Batch


@torch.no_grad()
def draw_systems(
    models: Mapping[str, Autoencoder],
    planes: Mapping[str, Autoencoder],
    examples: Batch,
    many: Batch,
) -> PILImage.Image:
    """Draw all systems on one page.

    Shows reconstructions and decoded samples of N(0, I) of every system, label grid and style
    transfer of those that take a label, and the latent planes.

    Args:
        models: models by the name to show.
        planes: models with a two-dimensional latent, by name.
        examples: one test image of each class.
        many: more test images, for the planes.
    """
    reconstructed, random = [examples.x], []
    for model in models.values():
        y = examples.y if model.conditional else None
        z = figures.fixed_latents(model, len(examples.x))
        reconstructed.append(model.reconstruct(examples.x, y))
        random.append(model.decode(z, y).mean)
    titles = ("Reconstructions", "Decoded samples of N(0, I)")
    first = [
        figures.image_grid(torch.stack(reconstructed), ("test image", *models), title=titles[0]),
        figures.image_grid(torch.stack(random), list(models), title=titles[1]),
    ]
    rows = [first]
    for model in models.values():
        if model.conditional:
            rows.append([figures.label_grid(model), figures.style_transfer(model, examples)])
    if planes:
        rows.append([figures.latent_plane(m, many, name) for name, m in planes.items()])
    return _stack([_stack(row, across=True) for row in rows])


def _stack(pages: Sequence[PILImage.Image], across: bool = False) -> PILImage.Image:
    """Join pictures vertically, or horizontally if ``across``."""
    widths, heights = [p.width for p in pages], [p.height for p in pages]
    size = (sum(widths), max(heights)) if across else (max(widths), sum(heights))
    page = PILImage.new("RGB", size, "white")
    at = 0
    for picture in pages:
        page.paste(picture.convert("RGB"), (at, 0) if across else (0, at))
        at += picture.width if across else picture.height
    return page
