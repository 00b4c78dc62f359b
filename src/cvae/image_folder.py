"""LightningDataModule of image files in one folder per class."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Interval, Len
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from cvae.attributes_csv import read_attributes
from cvae.data import MNISTDataModule, split_order
from cvae.image_files import FORMATS, SUFFIXES, Resize, decode
from cvae.pixel_map import open_map
from harness.contract.errors import DataError
from harness.contract.settings import Name, Size

_ATTRIBUTES = "attributes.csv"
_DECODER_VERSION = 1  # increase it to decode all images again
_IMAGES_PER_TASK = 64  # images that a thread decodes per task, because one image takes only 0.2 ms


class ImageFile(NamedTuple):
    path: str  # relative to the folder of the data set
    size: int
    mtime_ns: int
    label: int


class ImageFolderDataModule(MNISTDataModule):
    """Image files in one folder per class, the layout of torchvision.datasets.ImageFolder.

    The files are ``data_dir/NAME/train/CLASS/*`` and ``data_dir/NAME/test/CLASS/*``, as PNG, JPEG,
    WebP or BMP. The sorted names of the class folders are the class names. The images are decoded
    once into a memory-mapped file in ``data_dir/NAME/.cache-KEY``. On a CPU, all processes share
    it, so a large data set needs little memory. On a GPU, set ``num_workers`` above 0 if the
    data set does not fit into GPU memory. ``data_dir/NAME/attributes.csv``, if there is one, holds
    attributes for :class:`cvae.conditions.Attributes`: a column ``file`` with paths such as
    train/CLASS/1.png, and a numeric column for each attribute, with a row for every image.

    Example::

        data = ImageFolderDataModule("data", "flowers", num_classes=5, image_shape=(3, 64, 64))

    The other arguments are those of :class:`cvae.data.MNISTDataModule`.

    Args:
        data_dir: parent of the folder of the data set.
        name: name of the folder in ``data_dir``.
        binarization: "none" keeps the values from 0 to 1; "dynamic" is for grey images only.
        image_shape: (channels, height, width) of the decoded images, with 1 channel for grey or 3
            for RGB. With 1 channel, colors are converted to their luma.
        resize: "fit" scales images to cover the height and width and crops the center, "stretch"
            changes their proportions, "none" rejects images of another size.
        test_fraction: fraction of the training images to test on if there is no folder ``test``.
            The choice does not depend on the seed.
    """

    is_shuffled = True

    def __init__(
        self,
        data_dir: Name | Path,
        name: Name = "images",
        binarization: Literal["dynamic", "none"] = "none",
        image_shape: Annotated[Sequence[Size], Len(3, 3)] = (3, 64, 64),
        resize: Resize = "fit",
        test_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(
            data_dir, name, binarization=binarization, image_shape=image_shape, **settings
        )
        if resize not in ("fit", "stretch", "none"):
            raise ValueError(f"resize={resize!r}: must be 'fit', 'stretch' or 'none'")
        if image_shape[0] not in (1, 3):
            raise DataError(
                f"data.image_shape={list(image_shape)}: must have 1 channel (grey) or 3 (RGB)"
            )
        self.resize: Resize = resize
        self.test_fraction = test_fraction

    def load_arrays(self) -> Sequence[NDArray[Any]]:
        root = self.data_dir / self.dataset
        train, test, names = _list_files(root)
        if len(names) != self.num_classes:
            raise DataError(
                f"data.num_classes={self.num_classes}: {root / 'train'} has {len(names)} class "
                f"folders; set data.num_classes={len(names)}"
            )
        self._class_names = names
        order = split_order(len(train))
        stored = [*(train[i] for i in order), *test]
        labels = np.array([file.label for file in stored])
        pixels = self._decode_once(root, [*train, *test], order)
        num_train = len(train)
        if not test:
            num_train -= max(1, round(self.test_fraction * len(train)))
        if (table := root / _ATTRIBUTES).is_file():
            columns = read_attributes(table, [Path(file.path).as_posix() for file in stored])
            self.attributes = {k: (v[:num_train], v[num_train:]) for k, v in columns.items()}
        return pixels[:num_train], labels[:num_train], pixels[num_train:], labels[num_train:]

    def _decode_once(
        self, root: Path, images: Sequence[ImageFile], order: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return the training images in this order, then the test images, as a memory map."""
        settings = hashlib.sha256(repr((_DECODER_VERSION, self.image_shape, self.resize)).encode())
        content = hashlib.sha256()
        for image in images:
            content.update(os.fsencode(f"{image.path}\0{image.size}\0{image.mtime_ns}\0"))
        rows = np.arange(len(images))
        rows[order] = np.arange(len(order))
        return open_map(
            root,
            settings.hexdigest()[:8],
            content.hexdigest()[:16],
            (len(images), *self.image_shape),
            partial(_decode_all, root, images, rows.tolist(), self.image_shape, self.resize),
            count=len(images),
            class_names=self._class_names,
        )


def _decode_all(
    root: Path,
    images: Sequence[ImageFile],
    rows: Sequence[int],
    image_shape: tuple[int, ...],
    resize: Resize,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the row and the pixels of every image, with a progress bar on a terminal."""
    # threads suffice, because Pillow releases the GIL to decode and resize
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(num_threads)

    def decode_part(part: Sequence[ImageFile]) -> list[NDArray[np.uint8]]:
        return [decode(root / image.path, image_shape, resize) for image in part]

    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"decoding {root.name}", total=len(images))
            chunk_size = 4 * num_threads * _IMAGES_PER_TASK
            for start in range(0, len(images), chunk_size):
                chunk = images[start : start + chunk_size]
                tasks = [
                    chunk[i : i + _IMAGES_PER_TASK] for i in range(0, len(chunk), _IMAGES_PER_TASK)
                ]
                decoded = chain.from_iterable(pool.map(decode_part, tasks))
                yield from zip(rows[start : start + chunk_size], decoded, strict=True)
                bar.advance(task, len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)


def _list_files(root: Path) -> tuple[list[ImageFile], list[ImageFile], list[str]]:
    """Return the training files, the test files and the class names.

    Raises:
        DataError: a folder is missing or empty, or holds something other than images.
    """
    if not (root / "train").is_dir():
        raise DataError(f"{root / 'train'}: no such folder; put images into {root}/train/CLASS/")
    names = [entry.name for entry in _list_class_folders(root / "train")]
    if not names:
        raise DataError(f"{root / 'train'}: no class folders; put images into {root}/train/CLASS/")
    train = list(chain.from_iterable(_list_images(root, "train", names, c) for c in names))
    if not (root / "test").exists():
        return train, [], names
    test_names = [entry.name for entry in _list_class_folders(root / "test")]
    if unknown := sorted(set(test_names) - set(names)):
        raise DataError(
            f"{root / 'test' / unknown[0]}: a class without training images; remove it "
            f"or add {root / 'train' / unknown[0]}"
        )
    test = list(chain.from_iterable(_list_images(root, "test", names, c) for c in test_names))
    if not test:
        raise DataError(
            f"{root / 'test'}: no test images; add some, or remove the folder to test on a "
            "fraction of the training images"
        )
    return train, test, names


def _list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the files and folders in a folder, sorted by name, without hidden ones."""
    try:
        with os.scandir(folder) as iterator:
            entries = [entry for entry in iterator if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    return sorted(entries, key=lambda entry: entry.name)


def _list_class_folders(folder: Path) -> list[os.DirEntry[str]]:
    entries = _list_entries(folder)
    for entry in entries:
        if not entry.is_dir():
            raise DataError(f"{entry.path}: outside the class folders; move or remove it")
    return entries


def _list_images(
    root: Path, split: str, class_names: Sequence[str], class_name: str
) -> Iterator[ImageFile]:
    folder, label = root / split / class_name, class_names.index(class_name)
    entries = _list_entries(folder)
    if not entries:
        raise DataError(f"{folder}: no images; add some or remove the folder")
    for entry in entries:
        try:
            if entry.is_dir():
                raise DataError(f"{entry.path}: a folder in a class folder; move its images up")
            if not entry.name.lower().endswith(SUFFIXES):
                raise DataError(f"{entry.path}: not a {FORMATS} file; remove it")
            status = entry.stat()
        except OSError as error:
            raise DataError(f"{entry.path}: cannot be read ({error.strerror})") from None
        if status.st_size == 0:
            raise DataError(f"{entry.path}: an empty file; replace or remove it")
        path = f"{split}/{class_name}/{entry.name}"
        yield ImageFile(path, status.st_size, status.st_mtime_ns, label)
