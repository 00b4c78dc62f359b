"""Tests of the data module of image folders and of its cache."""

import ctypes
import gc
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from cvae import image_folder
from cvae.augmentation import Warp
from cvae.conditions import Attributes
from cvae.image_folder import ImageFolderDataModule
from cvae.image_set import ImageSet
from cvae.pixel_map import open_map
from cvae.settings import has_data
from harness.contract.errors import DataError
from harness.contract.sampler import Rows
from tests.conftest import clean_environment
from tests.tally import Promise

CLASSES = ["cat", "dog", "emu"]


def write_folder(root: Path, train: int = 8, test: int = 2) -> None:
    """Write images of a single color, which encodes their class, number and split."""
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            for i in range(count):
                folder.mkdir(parents=True, exist_ok=True)
                pixels = np.full((6, 7, 3), (50 * label, i, split == "test"), np.uint8)
                PILImage.fromarray(pixels).save(folder / f"{i:02}.png")


def make_data(data_dir: Path, **settings: Any) -> ImageFolderDataModule:
    arguments = {"num_classes": 3, "validation_size": 5, "image_shape": (3, 6, 7), **settings}
    data = ImageFolderDataModule(data_dir, "pets", **arguments)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "pets")
    return tmp_path / "pets"


def list_images(data: ImageFolderDataModule, split: str) -> list[tuple[int, ...]]:
    """Return (label, 50 * label, number, is test) of each image."""
    images = getattr(data, split)
    rows = images.pixels[:, :, 0, 0].tolist()
    return [(label, *row) for label, row in zip(images.labels.tolist(), rows, strict=True)]


def test_all_images_are_read_with_the_labels_of_their_folders(root: Path) -> None:
    data = make_data(root.parent)
    images = {split: list_images(data, split) for split in ("train", "validation", "test")}
    assert {split: len(rows) for split, rows in images.items()} == {
        "train": 19,
        "validation": 5,
        "test": 6,
    }
    every = [(c, 50 * c, i, 0) for c in range(3) for i in range(8)]
    assert sorted(images["train"] + images["validation"]) == every
    assert images["train"] != sorted(images["train"])
    assert images["test"] == [(c, 50 * c, i, 1) for c in range(3) for i in range(2)]
    assert data.class_names == CLASSES
    assert data.classes == [0, 1, 2]
    x, y, *_ = next(iter(data.train_dataloader()))
    assert (x.shape, y.shape) == ((19, 3, 6, 7), (19, 3))
    assert data.examples().y.argmax(1).tolist() == [0, 1, 2]


def test_the_splits_do_not_depend_on_the_seed(root: Path) -> None:
    one, two = make_data(root.parent, seed=1), make_data(root.parent, seed=2)
    for split in ("train", "validation", "test"):
        assert getattr(one, split).digest() == getattr(two, split).digest()


def test_a_fraction_of_the_training_images_is_for_test_without_a_folder(root: Path) -> None:
    shutil.rmtree(root / "test")
    data = make_data(root.parent, test_fraction=0.25)
    splits = [list_images(data, split) for split in ("train", "validation", "test")]
    assert [len(rows) for rows in splits] == [13, 5, 6]
    assert len({row for rows in splits for row in rows}) == 24
    again = make_data(root.parent, test_fraction=0.25, seed=7)
    assert list_images(again, "test") == splits[2]


def test_test_images_may_lack_a_class(root: Path) -> None:
    shutil.rmtree(root / "test" / "dog")
    assert {row[0] for row in list_images(make_data(root.parent), "test")} == {0, 2}


def test_has_data_is_true_only_if_the_folder_exists(root: Path) -> None:
    node = {"_target_": "cvae.image_folder.ImageFolderDataModule", "data_dir": str(root.parent)}
    assert has_data({**node, "name": "pets"})
    assert not has_data({**node, "name": "cars"})


def write_attributes(root: Path, *more: str) -> None:
    lines = ["file,number,height"]
    for path in sorted(root.glob("*/*/*.png")):
        number = int(path.stem)
        lines.append(f"{path.relative_to(root).as_posix()},{number},{0.5 * number}")
    (root / "attributes.csv").write_text("\n".join([*lines[: len(lines) - len(more)], *more]))


@pytest.mark.parametrize("has_test", [True, False])
def test_attributes_are_read_from_a_table(root: Path, has_test: bool) -> None:
    if not has_test:
        shutil.rmtree(root / "test")
    write_attributes(root)
    condition = Attributes({"number": 8, "height": "continuous"})
    data = make_data(root.parent, condition=condition)
    for split in (data.train, data.validation, data.test):
        assert split is not None
        assert isinstance(split.conditions, torch.Tensor)
        numbers = split.pixels[:, 1, 0, 0].long()
        assert torch.equal(split.conditions[:, :8].argmax(1), numbers)
        assert torch.equal(split.conditions[:, 8], 0.5 * numbers)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("other.png,1,2", "attributes.csv: no row for train/emu/07.png"),
        ("train/emu/07.png,1,tall", "line 31: height=tall: must be a number"),
        ("train/emu/07.png,1", "line 31: 2 cells, not 3"),
        ("train/emu/07.png,1,2,3", "line 31: 4 cells, not 3"),
        ("train/emu/07.png,1_5,2", "line 31: number=1_5: must be a number"),
        ("train/emu/06.png,1,2", "line 31: train/emu/06.png appears twice: remove a row"),
    ],
)
def test_a_wrong_table_of_attributes_is_rejected(root: Path, last: str, message: str) -> None:
    write_attributes(root, last)
    with pytest.raises(DataError, match=message):
        make_data(root.parent, condition=Attributes({"height": "continuous"}))


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("file,height,height", "the column 'height' is empty or repeated: rename it"),
        ("file,,height", "the column '' is empty or repeated: rename it"),
        ("file,label,height", "the folders are the labels: rename the column label"),
    ],
)
def test_wrong_columns_of_attributes_are_rejected(root: Path, first: str, message: str) -> None:
    write_attributes(root)
    table = root / "attributes.csv"
    table.write_text(table.read_text().replace("file,number,height", first))
    with pytest.raises(DataError, match=message):
        make_data(root.parent, condition=Attributes({"height": "continuous"}))


def test_spaces_in_names_and_large_numbers_of_attributes_are_read(root: Path) -> None:
    write_attributes(root)
    table = root / "attributes.csv"
    table.write_text(table.read_text().replace("file,number,height", "file, number, height"))
    table.write_text(table.read_text().replace("07.png,7,3.5", "07.png,1e30,3.5"))
    data = make_data(root.parent)
    assert set(data.attributes) == {"number", "height"}
    assert max(values.max() for values in data.attributes["number"]) == 1e30


def test_a_table_of_attributes_needs_column_names(root: Path) -> None:
    (root / "attributes.csv").write_text("test/emu/01.png,1,2\n")
    with pytest.raises(DataError, match="must have a column file and a column for each"):
        make_data(root.parent, condition=Attributes({"height": "continuous"}))


def test_hidden_files_are_ignored(root: Path) -> None:
    (root / "train" / ".DS_Store").write_text("x")
    (root / "train" / "cat" / ".DS_Store").write_text("x")
    assert len(list_images(make_data(root.parent), "train")) == 19


def test_images_may_be_grey_and_binarized(root: Path) -> None:
    data = make_data(root.parent, image_shape=(1, 4, 4), binarization="dynamic")
    assert set(next(iter(data.train_dataloader())).x.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(DataError, match="are not binarized"):
        make_data(root.parent, binarization="dynamic")


def test_images_of_a_folder_are_warped(root: Path) -> None:
    def warp(seed: int) -> Warp:
        return Warp(seed, affine=0.3, elastic=0.0, share=1.0, until=1.0)

    plain, warped = make_data(root.parent), make_data(root.parent, augmentation=warp)
    a, b = (next(iter(data.train_dataloader())).x for data in (plain, warped))
    assert a.shape == b.shape
    assert not torch.equal(a, b)


Damage = Callable[[Path], object]
UNSUITABLE_FOLDERS: list[tuple[Damage, str, str]] = [
    (shutil.rmtree, "train", "no such folder; put images into .*/train/CLASS/"),
    (lambda r: shutil.rmtree(r / "train"), "train", "no such folder"),
    (lambda r: any(map(shutil.rmtree, (r / "train").iterdir())), "train", "no class folders"),
    (lambda r: (r / "train/cat/00.png").write_bytes(b""), "train/cat/00.png", "an empty file"),
    (lambda r: (r / "train/cat/00.png").write_bytes(b"x"), "train/cat/00.png", "not a PNG"),
    (lambda r: (r / "train/cat/a.txt").write_text("x"), "train/cat/a.txt", "not a PNG.*remove it"),
    (lambda r: (r / "train/a.png").write_text("x"), "train/a.png", "outside the class folders"),
    (lambda r: (r / "train/cat/more").mkdir(), "train/cat/more", "a folder in a class folder"),
    (lambda r: (r / "train/cat/a.png").symlink_to("b.png"), "train/cat/a.png", "cannot be read"),
    (lambda r: (r / "train/fox").mkdir(), "train/fox", "no images; add some or remove"),
    (lambda r: (r / "test/fox").mkdir(), "test/fox", "a class without training images"),
    (lambda r: any(map(shutil.rmtree, (r / "test").iterdir())), "test", "no test images"),
]


@pytest.mark.fault(Promise.DATA, "an image folder that is incomplete or holds other files")
@pytest.mark.parametrize(("damage", "path", "message"), UNSUITABLE_FOLDERS)
def test_unsuitable_folders_are_rejected(
    damage: Damage, path: str, message: str, root: Path
) -> None:
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        make_data(root.parent)
    assert str(caught.value).startswith(f"{root / path}: ")
    assert "\n" not in str(caught.value)
    assert not list(root.glob(".cache-*"))
    assert not list(root.glob(".making-*"))


def test_settings_that_do_not_fit_the_folder_are_rejected(root: Path) -> None:
    with pytest.raises(DataError, match=r"has 3 class folders; set data\.num_classes=3"):
        make_data(root.parent, num_classes=10)
    with pytest.raises(DataError, match="must have 1 channel"):
        make_data(root.parent, image_shape=(2, 6, 7))
    with pytest.raises(ValueError, match="resize='crop': must be"):
        make_data(root.parent, resize="crop")
    with pytest.raises(DataError, match=r"cat/00\.png: height 6 and width 7 differ"):
        make_data(root.parent, image_shape=(3, 8, 8), resize="none")
    with pytest.raises(DataError, match="validation_size"):
        make_data(root.parent, validation_size=24)


def take_decoding_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines about decoding since the last call."""
    lines = [r.getMessage() for r in caplog.records if "decoding" in r.getMessage()]
    caplog.clear()
    return lines


def test_images_are_decoded_once_per_settings_and_files(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    before = make_data(root.parent)
    assert take_decoding_messages(caplog) == [f"{root}: decoding 30 images"]
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode", lambda *_: pytest.fail("decoded again"))
        again = make_data(root.parent, seed=5)
    assert take_decoding_messages(caplog) == []
    assert list_images(again, "train") == list_images(before, "train")
    (folder,) = root.glob(".cache-*")
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["count"], facts["class_names"], facts["shape"]) == (30, CLASSES, [30, 3, 6, 7])
    make_data(root.parent, image_shape=(3, 4, 4))
    assert len(list(root.glob(".cache-*"))) == 2  # one for each of the two settings
    shutil.copy(root / "train/cat/00.png", root / "train/cat/new.png")
    found = make_data(root.parent, validation_size=6)
    assert (
        take_decoding_messages(caplog)[-1]
        == f"{root}: the files have changed; decoding 31 images again"
    )
    assert len(list_images(found, "train")) == 19
    assert not folder.exists()  # the cache of the earlier files
    assert list_images(before, "train") == list_images(again, "train")  # still mapped


@pytest.mark.fault(Promise.DATA, "a cache of decoded images that is damaged")
@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "pixels.bin").write_bytes((f / "pixels.bin").read_bytes()[:-1]),
        lambda f: (f / "pixels.bin").write_bytes(bytes((f / "pixels.bin").stat().st_size)),
        lambda f: (f / "pixels.bin").unlink(),
        lambda f: (f / "facts.json").unlink(),
        lambda f: (f / "facts.json").write_text("{"),
        lambda f: (f / "facts.json").write_text("[]"),
        lambda f: (f / "facts.json").write_text('{"shape": [1, 2]}'),
    ],
)
def test_a_damaged_cache_is_made_again(
    damage: Damage, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = make_data(root.parent)
    expected = list_images(before, "train")
    del before
    (folder,) = root.glob(".cache-*")
    damage(folder)
    assert list_images(make_data(root.parent), "train") == expected
    (line,) = [line for line in take_decoding_messages(caplog) if "damaged" in line]
    assert line.startswith(f"{root}: damaged cache (")
    assert make_data(root.parent) is not None
    assert take_decoding_messages(caplog) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from cvae.pixel_map import open_map

def rows():
    yield 0, np.ones((1, 2, 2), np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)

open_map(Path(sys.argv[1]), "a", "b", (2, 1, 2, 2), rows)
"""


@pytest.mark.fault(Promise.DATA, "SIGKILL while images are decoded")
def test_a_killed_process_leaves_no_partial_map(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, env=clean_environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".making-*"))) == 1
    assert not list(tmp_path.glob(".cache-*"))
    image = np.full((1, 2, 2), 7, np.uint8)
    found = open_map(tmp_path, "a", "b", (2, 1, 2, 2), lambda: [(1, image), (0, image + 1)])
    assert found[:, 0, 0, 0].tolist() == [8, 7]
    assert not list(tmp_path.glob(".making-*"))


PARALLEL = """
import sys, time
from pathlib import Path
import numpy as np
from cvae.pixel_map import open_map

def rows():
    with Path(sys.argv[1], "made").open("a") as file:
        file.write("x")
    time.sleep(0.3)
    yield 0, np.ones((1, 2, 2), np.uint8)

assert open_map(Path(sys.argv[1]), "a", "b", (1, 1, 2, 2), rows).sum() == 4
"""


def test_processes_that_start_together_decode_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARALLEL, str(tmp_path)]
    started = [subprocess.Popen(command, env=clean_environment()) for _ in range(2)]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert (tmp_path / "made").read_text() == "x"


@pytest.mark.fault(Promise.DISK, "no space for the decoded images")
def test_a_full_disk_is_reported_before_decoding(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(root)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"30 images take .* GiB are free on the disk"):
        make_data(root.parent)


def measure_memory() -> float:
    """Return the anonymous memory of this process in MiB, without freed memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Anonymous:"))) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_decoded_images_are_not_copied_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [image_folder.ImageFile(str(i), 1, 1, i % 10) for i in range(12_500)]
    listed = files[2500:], files[:2500], list("abcdefghij")
    monkeypatch.setattr(image_folder, "_list_files", lambda root: listed)
    monkeypatch.setattr(image_folder, "_decode_all", lambda *_: ())  # the file stays sparse
    data = ImageFolderDataModule(tmp_path, ".", validation_size=1000)
    before = measure_memory()
    data.prepare_data()
    data.setup()
    assert isinstance(data.train, ImageSet)
    mean_image, digest, examples = data.mean_image, data.train.digest(), data.examples()
    for start in range(0, 9000, 100):
        data.train[Rows(0, torch.arange(start, start + 100), 100)]
    splits = data.splits()
    assert measure_memory() - before < 50  # MiB; the images take 146
    del mean_image, digest, examples, splits
