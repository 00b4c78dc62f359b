"""The LightningDataModule: batches of (image, one-hot label), and nothing else, for the model.

Pixels stay unsigned bytes in memory. A batch is one gather by index under an ordinary DataLoader;
its order and its noise are functions of (seed, epoch, image) alone, so they do not depend on the
number of processes and need no state to be resumed.
"""

import hashlib
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cvae import noise
from cvae.augmentation import Augmentation
from cvae.digits import SETS, Pixels, load_digits
from cvae.types import Batch, Split
from harness.contract.data import ExactDataModule
from harness.contract.errors import DataError
from harness.contract.sampler import Rows

log = logging.getLogger(__name__)

AugmentationFactory = Callable[..., Augmentation]
_SPLIT_SEED = 0  # of the train/validation split and of the binarized evaluation sets: never a run's


def checked_labels(labels: NDArray[Any], num_classes: int, split: str) -> Int64[Tensor, " n"]:
    """Return boolean, integer or whole float labels as int64.

    Raises:
        DataError: a label is not an integer from 0 to num_classes - 1.
    """
    must = f"must be integers from 0 to {num_classes - 1}"
    if labels.dtype.kind not in "buif":
        raise DataError(f"{split} labels of type {labels.dtype}: {must}; number the classes")
    if labels.dtype.kind == "f" and len(labels[labels != np.floor(labels)]):  # nan as well
        example = labels[labels != np.floor(labels)][0]
        raise DataError(f"{split} labels such as {example:g}: {must}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        low, high = labels.min(), labels.max()
        hint = "; subtract 1 from every label" if low == 1 else ""
        raise DataError(
            f"data.num_classes={num_classes}: the {split} labels range from {low} to {high}, "
            f"but {must}{hint}"
        )
    return torch.from_numpy(labels.astype(np.int64))


class Digits(Dataset[Batch]):
    """Images and labels in memory, fetched as whole batches.

    Args:
        pixels: unsigned bytes; of a binary set, 0 and 255.
        labels: class of each image.
        num_classes: length of the one-hot labels.
        binarization_seed: draw every pixel anew at each visit, keyed by this seed; None to
            give pixels / 255 as they are.
        augmentation: of the images at each visit, before their pixels are drawn.
    """

    def __init__(
        self,
        pixels: UInt8[Tensor, "num_images channel height width"],
        labels: Int64[Tensor, " num_images"],
        num_classes: int,
        binarization_seed: int | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        if pixels.shape[1] != 1:
            raise DataError(
                f"images of {pixels.shape[1]} channels: must have 1, colour is not supported; "
                "convert them to grey"
            )
        self.pixels = pixels
        self.labels = labels
        self.num_classes = num_classes
        self.binarization_seed = binarization_seed
        self.augmentation = augmentation
        self._one_hot = torch.eye(num_classes, device=labels.device)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Rows) -> Batch:
        pixels = self.pixels.index_select(0, rows.indices)  # a tenth of the time of [indices]
        if self.augmentation is not None and len(pixels):
            pixels = self.augmentation(pixels, rows.indices, rows.epoch)
        y = self._one_hot.index_select(0, self.labels.index_select(0, rows.indices))
        if self.binarization_seed is None:
            x = pixels.float() / 255.0
        else:
            seed = self.binarization_seed
            x = noise.bernoulli(pixels.flatten(1), rows.indices, seed=seed, epoch=rows.epoch)
            x = x.view_as(pixels)
        return Batch(x, y, rows.indices, rows.global_size)

    def binarized(self) -> "Digits":
        """The same images with every pixel drawn once, the same for every run and machine."""
        index = torch.arange(len(self))
        # piece by piece: the bits of a whole split would take gigabytes
        pieces = [
            noise.bernoulli(self.pixels[i].flatten(1), i, seed=_SPLIT_SEED)
            for i in index.split(1000)
        ]
        pixels = torch.cat(pieces).to(torch.uint8).view_as(self.pixels) * 255
        return Digits(pixels, self.labels, self.num_classes)

    def to(self, device: torch.device | str) -> "Digits":
        """The same images on a device, where batches are then made of indices that lie there."""
        if self.pixels.device == torch.device(device):
            return self
        moved = self.pixels.to(device), self.labels.to(device)
        return Digits(*moved, self.num_classes, self.binarization_seed, self.augmentation)

    def digest(self) -> str:
        """Fingerprint of pixels and labels: equal digests, equal evaluation set."""
        content = hashlib.sha256(self.pixels.numpy().tobytes())
        content.update(self.labels.numpy().tobytes())
        return content.hexdigest()[:16]


def _listed(labels: Sequence[int]) -> str:
    shown = ", ".join(map(str, labels[:10]))
    return shown if len(labels) <= 10 else f"{shown} and {len(labels) - 10} more"


class MNISTDataModule(ExactDataModule):
    """MNIST, or a set of the same form, as :class:`cvae.types.Batch`.

    x is float, (B, 1, 28, 28), in [0, 1] or, binarized, in {0, 1}; y is float one-hot, (B, 10).

    Args:
        data_dir: folder of the files; what is missing is made there.
        name: MNIST, FashionMNIST, KMNIST or EMNIST (its digits).
        batch_size: images in a global batch; each of n devices takes a share of batch_size / n.
        eval_batch_size: the same for validation and test.
        validation_size: images taken from the train split, the same ones whatever the seed.
        binarization: "dynamic" draws training pixels anew at every visit, and validation and test
            pixels once, with a seed that no setting changes; "none" leaves them grey.
        num_workers: DataLoader processes; batches come from memory, so 0 is fastest, and on a GPU
            all images then lie in its memory and batches are made there.
        num_classes: number of labels.
        image_shape: (1, height, width).
        seed: seed of the order, the augmentation and the binarization of the training images.
        augmentation: makes the augmentation of the training images, see
            :class:`cvae.augmentation.Augmentation`.
    """

    def __init__(
        self,
        data_dir: str | Path,
        name: str = "MNIST",
        batch_size: int = 128,
        eval_batch_size: int = 500,
        validation_size: int = 5000,
        binarization: str = "dynamic",
        num_workers: int = 0,
        num_classes: int = 10,
        image_shape: Sequence[int] = (1, 28, 28),
        seed: int = 1,
        augmentation: AugmentationFactory | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if binarization not in ("dynamic", "none"):
            raise ValueError(f"binarization={binarization!r} is neither 'dynamic' nor 'none'")
        self.data_dir = Path(data_dir)
        self.dataset = name
        self.validation_size = validation_size
        self.binarization = binarization
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)
        self.augmentation = augmentation
        self._arrays: Sequence[NDArray[Any]] | None = None  # read, and not yet split
        self.train: Digits | None = None
        self.validation: Digits | None = None
        self.test: Digits | None = None
        self._grey: dict[str, Digits] = {}  # the splits before they were binarized

    def load_arrays(self) -> Sequence[NDArray[Any]]:
        """Train images (unsigned bytes), train labels, test images and test labels."""
        return load_digits(SETS[self.dataset], self.data_dir)

    def prepare_data(self) -> None:
        """Make the files; Lightning calls this on one process of a node, the others wait."""
        if self._arrays is None and self.train is None:
            self._arrays = self.load_arrays()

    def setup(self, stage: str | None = None) -> None:
        """Load and split; every process does."""
        if self.train is not None:
            return
        train_x, train_y, test_x, test_y = self._arrays or self.load_arrays()
        self._arrays = None  # the tensors below are copies
        if not 0 < self.validation_size < len(train_x):
            raise DataError(
                f"data.validation_size={self.validation_size}: between 1 and the "
                f"{len(train_x) - 1} that leave an image to train on"
            )
        order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(_SPLIT_SEED))
        taken, held_out = order[: -self.validation_size], order[-self.validation_size :]
        if not len(test_x):
            raise DataError(f"{self.dataset}: no test images, must have at least one")
        pixels, labels = self._tensors(train_x, train_y, "train")
        dynamic = self.binarization == "dynamic"
        if not dynamic:
            log.warning(
                "data.binarization=none: elbo and nll of grey pixels are no likelihoods; "
                "compare them with each other only"
            )
        self.train = Digits(
            pixels[taken],
            labels[taken],
            self.num_classes,
            self.seed if dynamic else None,
            self.augmentation and self.augmentation(seed=self.seed),
        )
        self.validation = Digits(pixels[held_out], labels[held_out], self.num_classes)
        self.test = Digits(*self._tensors(test_x, test_y, "test"), self.num_classes)
        self._grey = {"train": self.train, "validation": self.validation, "test": self.test}
        self._warn_of_absent_classes()
        if dynamic:
            self.validation, self.test = self.validation.binarized(), self.test.binarized()

    def splits(self) -> dict[str, Split]:
        """Grey and binarized images of train, validation and test; those of train drawn once."""
        assert self.train is not None, "call setup() first"
        inputs = {"train": self.train, "validation": self.validation, "test": self.test}
        if self.binarization == "dynamic":
            inputs["train"] = self.train.binarized()
        return {
            name: Split(grey.pixels, binary.pixels, grey.labels)
            for (name, grey), binary in zip(self._grey.items(), inputs.values(), strict=True)
            if binary is not None
        }

    @property
    def classes(self) -> list[int]:
        """Labels that have training images, in order."""
        assert self.train is not None, "call setup() first"
        return self.train.labels.unique().tolist()

    def _warn_of_absent_classes(self) -> None:
        assert self.test is not None, "call setup() first"
        classes, tested = set(self.classes), set(self.test.labels.tolist())
        if not classes & tested:
            raise DataError(f"{self.dataset}: no label has both training and test images")
        untrained = [c for c in range(self.num_classes) if c not in classes]
        absent = (
            ("training", untrained, "left out of grids and evaluation"),
            ("test", sorted(classes - tested), "left out of samples/label_agreement_worst"),
        )
        parts = [
            f"no {kind} images of label {_listed(labels)} ({effect})"
            for kind, labels, effect in absent
            if labels
        ]
        if parts:
            log.warning("data.num_classes=%d: %s", self.num_classes, ", ".join(parts))

    def _tensors(self, images: Pixels, labels: NDArray[Any], split: str) -> tuple[Tensor, Tensor]:
        shape = [1, *images.shape[1:]]
        if shape != list(self.image_shape):
            raise DataError(
                f"data.image_shape={list(self.image_shape)}: the images are {shape}; "
                f"set data.image_shape={shape}"
            )
        # copies: the arrays may be read-only views of a file's bytes
        pixels = torch.from_numpy(images[:, None].copy())
        return pixels, checked_labels(labels, self.num_classes, split)

    @property
    def mean_image(self) -> Float[Tensor, "channel height width"]:
        """Mean of the training images in (0, 1), with half an image on and half off added."""
        assert self.train is not None, "call setup() first"
        # by numpy, which adds without a converted copy of all pixels
        total = self.train.pixels.numpy().sum(axis=0, dtype=np.int64) / 255.0
        return torch.from_numpy((total + 0.5) / (len(self.train) + 1)).float()

    def examples(self) -> Batch:
        """The first test image of every class: the same ones in every picture of every run."""
        assert self.test is not None, "call setup() first"
        classes = [torch.nonzero(self.test.labels == c)[:1, 0] for c in self.classes]
        index = torch.cat(classes)
        return self.test[Rows(0, index, len(index))]


class ImagesDataModule(MNISTDataModule):
    """Images of your own, from the file NAME.npz in ``data_dir``.

    It holds ``train_images`` and ``test_images``, (N, height, width) unsigned bytes, grey, bright
    on dark, and ``train_labels`` and ``test_labels``, (N,) whole numbers from 0 on. The arguments
    are those of :class:`MNISTDataModule`.
    """

    def load_arrays(self) -> Sequence[NDArray[Any]]:
        path = self.data_dir / f"{self.dataset}.npz"
        keys = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = [archive[key] for key in keys]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: {reason}; it must hold {', '.join(keys)}") from None
        for (images, labels), split in zip(
            (arrays[:2], arrays[2:]), ("train", "test"), strict=True
        ):
            if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1]:
                raise DataError(
                    f"{path}: {split}_images {images.dtype} {images.shape} with {split}_labels "
                    f"{labels.shape}; they must be unsigned bytes (N, height, width) and (N,)"
                    + _hint(images)
                )
            if images.size and images.max() == 1:
                raise DataError(
                    f"{path}: {split}_images go from 0 to 1, but a byte of 255 is white; multiply "
                    "by 255"
                )
        return arrays


def _hint(images: NDArray[Any]) -> str:
    if images.ndim == 4:
        one = 1 in (images.shape[1], images.shape[3])
        return "; drop the channel axis" if one else "; convert the images to grey"
    is_share = images.dtype.kind == "f" and images.size and images.min() >= 0 and images.max() <= 1
    return "; multiply by 255 and convert to uint8" if is_share else ""
