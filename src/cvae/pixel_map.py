"""Images in a memory-mapped file that is written once and verified at every start.

A map is a folder ``.cache-KEY`` with the pixels and a JSON file of metadata. A process writes it to
a temporary folder and renames that, under a lock, so a killed process leaves no partial map.
"""

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from harness.contract import files
from harness.contract.errors import DataError

log = logging.getLogger(__name__)

# returns positions and images, in any order
RowReader = Callable[[], Iterable[tuple[int, NDArray[np.uint8]]]]

_PIXELS, _METADATA = "pixels.bin", "facts.json"
_LOCK_TIMEOUT = 3600  # seconds to wait for another process that decodes the same images
# Blocks that are verified at every start, in 4 ms for 2.4 GB; a hash of all bytes takes 2 to 6 s.
# A resume is still safe, because a run hashes its splits anyway.
_NUM_BLOCKS, _BLOCK_SIZE = 64, 2**16


def open_map(
    folder: Path,
    settings: str,
    content: str,
    shape: tuple[int, ...],
    read_rows: RowReader,
    **metadata: Any,
) -> NDArray[np.uint8]:
    """Return the images as a copy-on-write memory map; write it first if there is no valid one.

    Args:
        folder: folder of the map.
        settings: digest of the settings that the images depend on.
        content: digest of the files that the images come from. Maps with the same settings but
            another digest are removed.
        shape: (number of images, channels, height, width).
        read_rows: function that returns all images and their positions; called if no map is valid.
        metadata: further entries of the JSON file.

    Raises:
        DataError: the map cannot be written.
    """
    map_folder = folder / f".cache-{settings}-{content}"
    if _find_problem(map_folder, shape) is not None:
        with _lock_folder(folder):
            problem = _find_problem(map_folder, shape)  # another process may have made it
            if problem is not None:
                outdated = [
                    path for path in folder.glob(f".cache-{settings}-*") if path != map_folder
                ]
                _log_decoding(folder, problem, bool(outdated), shape[0])
                _make_map(map_folder, shape, read_rows, metadata)
                for path in outdated:
                    shutil.rmtree(path, ignore_errors=True)
    return np.memmap(map_folder / _PIXELS, dtype=np.uint8, mode="c", shape=shape)


def _find_problem(map_folder: Path, shape: tuple[int, ...]) -> str | None:
    """Return None for a valid map, else "missing" or a description of the damage."""
    if not map_folder.is_dir():
        return "missing"
    try:
        metadata = json.loads((map_folder / _METADATA).read_text(encoding="utf-8"))
        if metadata["shape"] != list(shape):
            return f"{_METADATA} has shape {metadata['shape']}"
        if (map_folder / _PIXELS).stat().st_size != math.prod(shape):
            return f"{_PIXELS} has a wrong size"
        if _blocks_digest(map_folder / _PIXELS) != metadata["blocks_sha256"]:
            return f"{_PIXELS} has changed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _blocks_digest(path: Path) -> str:
    """Return the SHA-256 of 64 blocks of 64 KiB, spread evenly from the first byte to the last."""
    digest = hashlib.sha256()
    last = max(0, path.stat().st_size - _BLOCK_SIZE)
    with path.open("rb") as file:
        for i in range(_NUM_BLOCKS):
            file.seek(i * last // (_NUM_BLOCKS - 1))
            digest.update(file.read(_BLOCK_SIZE))
    return digest.hexdigest()


def _log_decoding(folder: Path, problem: str, has_old: bool, count: int) -> None:
    if problem != "missing":
        log.warning("%s: damaged cache (%s); decoding %d images again", folder, problem, count)
    elif has_old:
        log.info("%s: the files have changed; decoding %d images again", folder, count)
    else:
        log.info("%s: decoding %d images", folder, count)


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, and remove temporary folders that killed processes left there."""
    try:
        lock = FileLock(folder / ".cache.lock", timeout=_LOCK_TIMEOUT)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise DataError(f"data.data_dir: cannot write to {folder}: {error}") from error
    try:
        for left_over in folder.glob(".making-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        yield
    finally:
        lock.release()


def _make_map(
    map_folder: Path, shape: tuple[int, ...], read_rows: RowReader, metadata: Mapping[str, Any]
) -> None:
    """Write all images to a temporary folder, then rename it."""
    folder, size = map_folder.parent, math.prod(shape)
    if (free := shutil.disk_usage(folder).free) < size:
        raise DataError(
            f"{folder}: {shape[0]} images take {size / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB "
            "are free on the disk; free some, or set a smaller data.image_shape"
        )
    temporary = folder / f".making-{secrets.token_hex(4)}"
    try:
        temporary.mkdir()
        with (temporary / _PIXELS).open("wb") as file:
            file.truncate(size)
            for row, pixels in read_rows():
                file.seek(row * math.prod(shape[1:]))
                file.write(pixels.tobytes())
            file.flush()
            os.fsync(file.fileno())
        with (temporary / _PIXELS).open("rb") as file:
            pixels_digest = hashlib.file_digest(file, "sha256").hexdigest()
        blocks_digest = _blocks_digest(temporary / _PIXELS)
        digests = {"sha256": pixels_digest, "blocks_sha256": blocks_digest}
        files.write_json(temporary / _METADATA, {"shape": list(shape), **metadata, **digests})
        if map_folder.exists():
            shutil.rmtree(map_folder)
        temporary.rename(map_folder)
        files.sync_folder(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot write the decoded images ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
