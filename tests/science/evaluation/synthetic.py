"""Synthetic images and models with known results: bars, and a decoder that draws them."""

import torch
from torch import Tensor

from cvae.evaluation.subject import Subject
from cvae.models import Autoencoder
from cvae.types import Split


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def make_bars(count: int, seed: int, num_classes: int = 3) -> Split:
    """Return images that show their label by the position of a bar."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % num_classes
    pixels = torch.randint(0, 60, (count, 1, 12, 12), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(y.tolist()):
        pixels[i, 0, 2:10, 1 + 4 * label : 3 + 4 * label] = 220
    binary = (pixels > 128).to(torch.uint8) * 255
    return Split(pixels, binary, y)


TRAIN, VALIDATION, TEST = make_bars(240, 0), make_bars(30, 1), make_bars(45, 2)


class Templates(torch.nn.Module):
    """Network that decodes each label to its bar, almost without z; all images have one code."""

    def __init__(self, image_shape: tuple[int, ...], condition_size: int, **kwargs: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        bar = torch.stack([TRAIN.inputs[TRAIN.labels == c][0] for c in range(3)]).float() / 255
        self.register_buffer("logits", 8 * bar - 4)
        self.relabel = [0, 1, 2]

    def encode(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.zeros(len(x), 4)

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        assert isinstance(self.logits, Tensor)
        label = torch.zeros(len(z)).long() if y is None else y.argmax(1)
        return self.logits[torch.tensor(self.relabel)[label]] + z.sum(1)[:, None, None, None] * 0.01


def make_subject(model_class: type[Autoencoder], num_samples: int = 50) -> Subject:
    model = model_class(Templates, 2, image_shape=(1, 12, 12), num_classes=3).eval()
    return Subject(model, TRAIN, VALIDATION, TEST, num_samples)
