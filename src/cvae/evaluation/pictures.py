"""Figures of an evaluated run: those of training, and those of the measured claims."""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image as PILImage

from cvae import figures
from cvae.evaluation.claims import FIGURES, Subject
from cvae.types import Batch
from harness.contract.files import atomic_write

_NUM_IMAGES = 2000  # test images for the latent plane and the traversals


def save_pictures(
    subject: Subject, examples: Batch, claims: Iterable[str], folder: Path
) -> dict[str, PILImage.Image]:
    """Write :func:`draw_pictures` into a folder as PNG files, and return them."""
    pictures_by_name = draw_pictures(subject, examples, claims)
    folder.mkdir(exist_ok=True)
    for name, picture in pictures_by_name.items():
        with atomic_write(folder / f"{name}.png") as file:
            picture.save(file, format="PNG", optimize=True)
    return pictures_by_name


def draw_pictures(
    subject: Subject, examples: Batch, claims: Iterable[str]
) -> dict[str, PILImage.Image]:
    """Return all figures that apply to the model, by name.

    Args:
        examples: one test image of each class.
        claims: names of the measured claims; those in ``FIGURES`` draw figures too.
    """
    subject.progress("drawing", 0.0)
    model = subject.model
    count = min(_NUM_IMAGES, len(subject.test.labels))
    test_batch = subject.test_batch(torch.arange(count, device=subject.device))
    examples = examples._replace(x=examples.x.to(test_batch.x), y=examples.y.to(test_batch.y))
    classes, names = subject.classes.tolist(), subject.class_names
    pictures_by_name = figures.draw(model, examples, test_batch, classes, names)
    for name in claims:
        if name in FIGURES:
            pictures_by_name |= FIGURES[name](subject)
    return pictures_by_name
