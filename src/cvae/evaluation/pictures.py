"""The pictures of a run: those of training, and the two factors of style along their direction."""

from pathlib import Path

import torch
from PIL import Image as PILImage

from cvae import figures
from cvae.evaluation.style import moved, ridges
from cvae.evaluation.subject import Subject
from cvae.types import Batch
from harness.contract.files import replacing

_NUM_IMAGES = 2000  # test images that the latent plane and the traversals are drawn from


def save_pictures(
    subject: Subject, examples: Batch, with_style: bool, folder: Path
) -> dict[str, PILImage.Image]:
    """Write :func:`pictures` into a folder as PNG files, and return them."""
    drawn = pictures(subject, examples, with_style)
    folder.mkdir(exist_ok=True)
    for name, picture in drawn.items():
        with replacing(folder / f"{name}.png") as file:
            picture.save(file, format="PNG", optimize=True)
    return drawn


def pictures(subject: Subject, examples: Batch, with_style: bool) -> dict[str, PILImage.Image]:
    """All pictures that make sense for a model, by name.

    Args:
        examples: one test image of each class.
        with_style: whether to draw what the claim style found.
    """
    subject.progress("drawing", 0.0)
    model = subject.model
    many = subject.test_batch(torch.arange(min(_NUM_IMAGES, len(subject.test.labels))))
    drawn = figures.draw(model, examples, many, subject.classes.tolist())
    if with_style:
        for name, ridge in ridges(subject).items():
            classes = subject.classes if model.conditional else torch.arange(10)
            count = len(classes)
            z = moved(figures.fixed_latents(model, 1).expand(count, -1), ridge.direction)
            if not model.conditional:
                z = moved(figures.fixed_latents(model, count), ridge.direction)
            images = subject.decode(z, classes.repeat_interleave(len(z) // count))
            drawn[f"traversal_{name}"] = figures.image_grid(
                images[:, 0].unflatten(0, (count, -1)),
                [str(c) for c in classes.tolist()] if model.conditional else (),
                title=f"Along the direction of {name}: -2.5 to 2.5 standard deviations of z",
            )
    return drawn
