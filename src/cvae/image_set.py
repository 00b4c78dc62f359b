"""Images, labels and conditions of one split."""

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cvae import noise
from cvae.augmentation import Augmentation
from cvae.types import Batch, Condition, Image
from harness.contract.errors import DataError
from harness.contract.sampler import Rows

_BINARIZATION_SEED = 0  # of the binarized evaluation sets, the same in all runs
_CHUNK_SIZE = 250  # images at a time
NOT_BINARIZED = "color images are not binarized; set data.binarization=none"


class ImageSet(Dataset[Batch]):
    """Grey or color images and their labels, fetched as whole batches.

    Args:
        pixels: unsigned bytes, of 1 or 3 channels; 0 or 255 if binarized.
        labels: class of each image.
        num_classes: length of the one-hot labels.
        binarization_seed: seed to sample binary pixels anew in each epoch; None for pixels / 255.
        augmentation: applied to the images in each epoch, before their pixels are sampled.
        conditions: y of each image, or a function from images to y; None for one-hot labels.
    """

    def __init__(
        self,
        pixels: UInt8[Tensor, "num_images channel height width"],
        labels: Int64[Tensor, " num_images"],
        num_classes: int,
        binarization_seed: int | None = None,
        augmentation: Augmentation | None = None,
        conditions: Condition | Callable[[Image], Condition] | None = None,
    ) -> None:
        if pixels.shape[1] not in (1, 3):
            raise DataError(f"images of {pixels.shape[1]} channels: must have 1 (grey) or 3 (RGB)")
        if binarization_seed is not None and pixels.shape[1] != 1:
            raise DataError(NOT_BINARIZED)
        self.pixels = pixels
        self.labels = labels
        self.num_classes = num_classes
        self.binarization_seed = binarization_seed
        self.augmentation = augmentation
        self.conditions = conditions
        self._one_hot = torch.eye(num_classes, device=labels.device)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Rows) -> Batch:
        pixels = self.pixels.index_select(0, rows.indices)  # takes a tenth of the time of [indices]
        if self.augmentation is not None and len(pixels):
            pixels = self.augmentation(pixels, rows.indices, rows.epoch)
        if self.conditions is None:
            y = self._one_hot.index_select(0, self.labels.index_select(0, rows.indices))
        elif isinstance(self.conditions, Tensor):
            y = self.conditions.index_select(0, rows.indices)
        if self.binarization_seed is None:
            x = pixels.float() / 255.0
        else:
            seed = self.binarization_seed
            x = noise.bernoulli(pixels.flatten(1), rows.indices, seed=seed, epoch=rows.epoch)
            x = x.view_as(pixels)
        if callable(self.conditions):
            y = self.conditions(x)
        return Batch(x, y, rows.indices, rows.global_size)

    def known_conditions(self) -> Condition | None:
        """Return y of all images, or None if one-hot. The pixels must not be resampled."""
        if not callable(self.conditions):
            return self.conditions
        parts = [self.conditions(rows.float() / 255.0) for rows in self.pixels.split(_CHUNK_SIZE)]
        return torch.cat(parts)

    def binarize(self) -> "ImageSet":
        """Return the images with pixels sampled once, with the same seed in every run."""
        index = torch.arange(len(self))
        # in chunks, because the random bits of a whole split take gigabytes
        chunks = [
            noise.bernoulli(self.pixels[i].flatten(1), i, seed=_BINARIZATION_SEED)
            for i in index.split(1000)
        ]
        pixels = torch.cat(chunks).to(torch.uint8).view_as(self.pixels) * 255
        return ImageSet(pixels, self.labels, self.num_classes, conditions=self.conditions)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the images on a device; batches then take indices on that device."""
        if self.pixels.device == torch.device(device):
            return self
        conditions = self.conditions
        if isinstance(conditions, Tensor):
            conditions = conditions.to(device)
        return ImageSet(
            self.pixels.to(device),
            self.labels.to(device),
            self.num_classes,
            self.binarization_seed,
            self.augmentation,
            conditions,
        )

    def digest(self) -> str:
        """Return a hash of pixels, labels and conditions, which identifies an evaluation set."""
        content = hashlib.sha256()
        for rows in self.pixels.split(_CHUNK_SIZE):  # a memory map may be larger than memory
            content.update(rows.flatten().numpy())
        content.update(self.labels.numpy().tobytes())
        if isinstance(self.conditions, Tensor):
            content.update(self.conditions.numpy().tobytes())
        return content.hexdigest()[:16]
