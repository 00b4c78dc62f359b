"""The pictures of a run: those of training, and the two factors of style along their direction."""

import torch
from PIL import Image as PILImage

from cvae import figures
from cvae.evaluation.claim import Subject
from cvae.evaluation.style import moved, ridges
from cvae.types import Batch

_NUM_IMAGES = 2000  # test images that the latent plane and the traversals are drawn from


def pictures(subject: Subject, examples: Batch, with_style: bool) -> dict[str, PILImage.Image]:
    """All pictures that make sense for a model, by name.

    Args:
        examples: one test image of each class.
        with_style: whether to draw what the claim style found.
    """
    subject.progress("drawing", 0.0)
    model, index = subject.model, torch.arange(min(_NUM_IMAGES, len(subject.test.labels)))
    x, _ = subject.inputs(subject.test, index)
    one_hot = torch.nn.functional.one_hot(subject.test.labels[index], subject.num_classes)
    many = Batch(x, one_hot.float(), index, len(index))
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
