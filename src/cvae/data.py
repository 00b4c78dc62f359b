"""LightningDataModules of images with labels or other conditions.

Images stay in memory, or in a memory-mapped file, as unsigned bytes, and the DataLoader gathers a
whole batch by index. Order and noise depend on (seed, epoch, image) only, so they are the same on
any number of processes and after a resume.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval, Len
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from cvae.augmentation import AugmentationFactory
from cvae.conditions import ConditionSpec, OneHot
from cvae.digits import SETS, Pixels, load_digits
from cvae.image_set import NOT_BINARIZED, ImageSet
from cvae.npz import read_npz
from cvae.types import Batch, Split
from harness.contract.data import ExactDataModule
from harness.contract.errors import DataError
from harness.contract.sampler import Rows
from harness.contract.settings import Count, Name, Size

log = logging.getLogger(__name__)

_NUM_STD_IMAGES = 10_000  # a sample that fits in memory
_SPLIT_SEED = 0  # of the validation split, in all runs
_CHUNK_SIZE = 250  # images at a time in sums; 250 bytes add up to less than 2**16
_FASHION_CLASSES = "T-shirt trousers pullover dress coat sandal shirt sneaker bag boot"


def split_order(count: int) -> NDArray[np.int64]:
    """Return the fixed permutation of the training images; the last ones are for validation."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    return torch.randperm(count, generator=generator).numpy()


def convert_labels(labels: NDArray[Any], num_classes: int, split: str) -> Int64[Tensor, " n"]:
    """Convert boolean, integer or whole-number float labels to int64.

    Raises:
        DataError: a label is not an integer from 0 to num_classes - 1.
    """
    allowed = f"must be integers from 0 to {num_classes - 1}"
    if labels.dtype.kind not in "buif":
        raise DataError(f"{split} labels of type {labels.dtype}: {allowed}; number the classes")
    if labels.dtype.kind == "f" and len(labels[labels != np.floor(labels)]):  # also for nan
        example = labels[labels != np.floor(labels)][0]
        raise DataError(f"{split} labels such as {example:g}: {allowed}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        low, high = labels.min(), labels.max()
        hint = "; subtract 1 from every label" if low == 1 else ""
        raise DataError(
            f"data.num_classes={num_classes}: the {split} labels range from {low} to {high}, "
            f"but {allowed}{hint}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _select_rows(conditions: Any, rows: slice) -> Any:
    return conditions[rows] if isinstance(conditions, Tensor) else conditions


class MNISTDataModule(ExactDataModule):
    """MNIST or a data set of the same format, in batches of :class:`cvae.types.Batch`.

    x is float, (B, channels, height, width), binarized in {0, 1} or in [0, 1]; y is float,
    (B, condition.size), by default the one-hot label.

    Example::

        data = MNISTDataModule("data", batch_size=128)
        data.setup()
        x, y, *_ = next(iter(data.train_dataloader()))

    Args:
        data_dir: folder of the files; missing files are restored or downloaded into it.
        name: MNIST, FashionMNIST, KMNIST or EMNIST (its digits).
        batch_size: images in a global batch; each of n devices takes batch_size / n.
        eval_batch_size: images in a global batch of validation and test.
        validation_size: images of the train split to validate on; they do not depend on the seed.
        binarization: "dynamic" samples training pixels anew in every epoch, and validation and
            test pixels once with a fixed seed; "none" keeps the values from 0 to 1. Color images
            need "none".
        num_workers: DataLoader processes. 0 is fastest, because images are in memory. On a GPU,
            0 also keeps the images in GPU memory and makes batches there.
        num_classes: number of classes.
        image_shape: (channels, height, width); 1 channel for grey images, 3 for color.
        seed: seed of the order, the augmentation and the binarization of the training images.
        augmentation: constructor of the augmentation of the training images, a
            :class:`cvae.augmentation.AugmentationFactory`.
        condition: meaning of y, a :class:`cvae.conditions.ConditionSpec`; None for the label.
    """

    is_shuffled = False  # whether load_arrays returns the training images in split_order

    def __init__(
        self,
        data_dir: Name | Path,
        name: Name = "MNIST",
        batch_size: Size = 128,
        eval_batch_size: Size = 500,
        validation_size: Count = 5000,
        binarization: Literal["dynamic", "none"] = "dynamic",
        num_workers: Annotated[int, Interval(ge=0, le=256)] = 0,
        num_classes: Size = 10,
        image_shape: Annotated[Sequence[Size], Len(3, 3)] = (1, 28, 28),
        seed: int = 1,
        augmentation: AugmentationFactory | None = None,
        condition: ConditionSpec | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if binarization not in ("dynamic", "none"):
            raise ValueError(f"binarization={binarization!r}: must be 'dynamic' or 'none'")
        if binarization == "dynamic" and image_shape[0] != 1:
            raise DataError(f"data.image_shape={list(image_shape)}: {NOT_BINARIZED}")
        self.data_dir = Path(data_dir)
        self.dataset = name
        self.validation_size = validation_size
        self.binarization = binarization
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)
        self.augmentation = augmentation
        self.condition = condition
        self.attributes: Mapping[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._arrays: Sequence[NDArray[Any]] | None = None  # read but not yet split
        self._class_names: list[str] | None = None
        self.train: ImageSet | None = None
        self.validation: ImageSet | None = None
        self.test: ImageSet | None = None
        self._grey: dict[str, ImageSet] = {}  # the splits before binarization

    def load_arrays(self) -> Sequence[NDArray[Any]]:
        """Return train images, train labels, test images and test labels.

        Images are unsigned bytes (N, height, width), or (N, channels, height, width). May also set
        ``attributes``: for each name, the training values and the test values, (N,).
        """
        if self.dataset not in SETS:
            raise DataError(f"data.name={self.dataset}: must be one of {', '.join(SETS)}")
        if self.dataset == "FashionMNIST":
            self._class_names = _FASHION_CLASSES.split()
        return load_digits(SETS[self.dataset], self.data_dir)

    def prepare_data(self) -> None:
        """Read the files, after a download if needed. Lightning calls this once per node."""
        if self._arrays is None and self.train is None:
            self._arrays = self.load_arrays()

    def setup(self, stage: str | None = None) -> None:
        """Load and split the images. Lightning calls this in every process."""
        if self.train is not None:
            return
        train_x, train_y, test_x, test_y = self._arrays or self.load_arrays()
        self._arrays = None  # frees memory if the tensors below are copies
        if not 0 < self.validation_size < len(train_x):
            raise DataError(
                f"data.validation_size={self.validation_size}: must be from 1 to "
                f"{len(train_x) - 1}, as the train split has {len(train_x)} images"
            )
        if not len(test_x):
            raise DataError(f"{self.dataset}: no test images, must have at least one")
        order = None if self.is_shuffled else split_order(len(train_x))
        pixels, labels = self._convert(train_x, train_y, "train", order)
        test_pixels, test_labels = self._convert(test_x, test_y, "test")
        conditions, test_conditions = self._encode_conditions(labels, test_labels, order)
        num_train = len(pixels) - self.validation_size
        dynamic = self.binarization == "dynamic"
        train, held_out = slice(num_train), slice(num_train, None)
        make_set = partial(ImageSet, num_classes=self.num_classes)
        self.train = make_set(
            pixels[train],
            labels[train],
            binarization_seed=self.seed if dynamic else None,
            augmentation=None if self.augmentation is None else self.augmentation(seed=self.seed),
            conditions=_select_rows(conditions, train),
        )
        self.validation = make_set(
            pixels[held_out], labels[held_out], conditions=_select_rows(conditions, held_out)
        )
        self.test = make_set(test_pixels, test_labels, conditions=test_conditions)
        self._grey = {"train": self.train, "validation": self.validation, "test": self.test}
        self._check_classes()
        if dynamic:
            self.validation, self.test = self.validation.binarize(), self.test.binarize()

    def splits(self) -> dict[str, Split]:
        """Return each split by name, with training images that are binarized once."""
        assert self.train is not None, "call setup() first"
        inputs = {"train": self.train, "validation": self.validation, "test": self.test}
        if self.binarization == "dynamic":
            inputs["train"] = self.train.binarize()
        attributes = self._other_attributes()
        return {
            name: Split(
                grey.pixels, binary.pixels, grey.labels, binary.known_conditions(), attributes[name]
            )
            for (name, grey), binary in zip(self._grey.items(), inputs.values(), strict=True)
            if binary is not None
        }

    def _other_attributes(self) -> dict[str, dict[str, Tensor]]:
        """Return the numeric attributes of each split that are not part of y."""
        assert self.train is not None
        parts = () if self.condition is None else self.condition.parts
        num_train, num_images = len(self.train), len(self.train) + self.validation_size
        order = slice(None) if self.is_shuffled else split_order(num_images)
        columns: dict[str, dict[str, Tensor]] = {"train": {}, "validation": {}, "test": {}}
        for name, (train, test) in self.attributes.items():
            ordered = train[order]
            values = (ordered[:num_train], ordered[num_train:], test)
            if name not in parts and all(v.dtype.kind in "buif" for v in values):
                for split, column in zip(columns.values(), values, strict=True):
                    split[name] = torch.from_numpy(np.asarray(column, np.float64))
        return columns

    def _encode_conditions(
        self, labels: Tensor, test_labels: Tensor, order: NDArray[np.int64] | None
    ) -> tuple[Any, Any]:
        """Return y of the training images, in this order, and of the test images.

        Both are None for one-hot labels, and a function of the images for given pixels.
        """
        if self.condition is None or isinstance(self.condition, OneHot):
            return None, None
        if from_images := getattr(self.condition, "from_images", None):
            return from_images, from_images
        columns: dict[str, tuple[Any, Any]] = {"label": (labels, test_labels)}
        for name, (train, test) in self.attributes.items():
            columns[name] = (train if order is None else train[order], test)
        encoded = []
        for i, split in enumerate(("train", "test")):
            values = {name: pair[i] for name, pair in columns.items()}
            try:
                encoded.append(self.condition.from_columns(values))
            except ValueError as error:
                raise DataError(
                    f"data.condition: {split} images of {self.dataset}: {error}"
                ) from None
        return encoded[0], encoded[1]

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class, for figures; None if the data have no names."""
        return self._class_names

    @property
    def classes(self) -> list[int]:
        """Labels with training images, in ascending order."""
        assert self.train is not None, "call setup() first"
        return self.train.labels.unique().tolist()

    def _check_classes(self) -> None:
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
            f"no {kind} images of label {', '.join(map(str, labels[:10]))}"
            + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
            + f" ({effect})"
            for kind, labels, effect in absent
            if labels
        ]
        if parts:
            log.warning("data.num_classes=%d: %s", self.num_classes, ", ".join(parts))

    def _convert(
        self,
        images: Pixels,
        labels: NDArray[Any],
        split: str,
        order: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return images and labels as tensors, in this order; a writable array is not copied."""
        images = images[:, None] if images.ndim == 3 else images
        shape = list(images.shape[1:])
        if shape != list(self.image_shape):
            raise DataError(
                f"data.image_shape={list(self.image_shape)}: the images have shape {shape}; "
                f"set data.image_shape={shape}"
            )
        converted = convert_labels(labels, self.num_classes, split)
        if order is not None:
            images, converted = np.take(images, order, axis=0), converted[torch.from_numpy(order)]
        return torch.from_numpy(np.require(images, requirements=["C", "W"])), converted

    @property
    def mean_image(self) -> Float[Tensor, "channel height width"]:
        """Mean of the training images and one grey image, so that pixels are within (0, 1)."""
        assert self.train is not None, "call setup() first"
        total = np.zeros(self.train.pixels.shape[1:], np.int64)
        for rows in self.train.pixels.split(_CHUNK_SIZE):
            total += rows.numpy().sum(axis=0, dtype=np.uint16)  # a third of the time of int64
        return torch.from_numpy((total / 255.0 + 0.5) / (len(self.train) + 1)).float()

    @property
    def std_image(self) -> Float[Tensor, "channel height width"]:
        """Standard deviation of every pixel over the first 10,000 training images."""
        assert self.train is not None, "call setup() first"
        return (self.train.pixels[:_NUM_STD_IMAGES].float() / 255.0).std(dim=0, correction=0)

    def examples(self) -> Batch:
        """Return the first test image of every class, for figures."""
        assert self.test is not None, "call setup() first"
        classes = [torch.nonzero(self.test.labels == c)[:1, 0] for c in self.classes]
        index = torch.cat(classes)
        return self.test[Rows(0, index, len(index))]


class ImagesDataModule(MNISTDataModule):
    """Your own images, from the file NAME.npz in ``data_dir``.

    Its arrays are ``train_images`` and ``test_images``, unsigned bytes, and ``train_labels`` and
    ``test_labels``, integers (N,) from 0 to num_classes - 1. Grey images, bright on dark, have the
    shape (N, height, width), color images (N, height, width, 3) or (N, 3, height, width). The
    optional array ``class_names`` holds one string per class, for figures. Arrays ``train_NAME``
    and ``test_NAME`` of other names, (N,), are attributes for :class:`cvae.conditions.Attributes`.

    Example: ``ImagesDataModule("data", "letters", num_classes=26)`` reads data/letters.npz. The
    other arguments are those of :class:`MNISTDataModule`.

    Args:
        data_dir: folder of the file.
        name: name of the file, without .npz.
    """

    def load_arrays(self) -> Sequence[NDArray[Any]]:
        path = self.data_dir / f"{self.dataset}.npz"
        arrays, self._class_names, self.attributes = read_npz(path, self.num_classes)
        return arrays
