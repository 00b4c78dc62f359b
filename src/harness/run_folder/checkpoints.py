"""Save checkpoints atomically, and verify their checksum before loading them.

A checkpoint is a file from ``torch.save``, which is a zip archive, plus a footer that is stored as
the comment of the archive. The footer holds the format version, the optimizer step, and the SHA-256
of all bytes before the digest, so that a missing, altered or added byte is detected.
"""

import glob
import hashlib
import io
import logging
import math
import os
import re
import secrets
import stat
import struct
import zipfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from harness.contract import files
from harness.contract.errors import ConfigError

log = logging.getLogger(__name__)

FORMAT = 1  # increase it when older code could misread the files
MAX_BYTES = 16 * 2**30  # limit on the size of a file to load
LAST, PREVIOUS = "last.ckpt", "last-previous.ckpt"
# keys that a checkpoint needs for an exact resume
RESUME_KEYS = frozenset({"position", "optimizer_states", "loops", "provenance"})
_REQUIRED_KEYS = {"state_dict", "config"}
_FOOTER = re.compile(
    rb"[a-z]+ checkpoint, format (\d{1,6}), step (\d{1,12}), sha256 ([0-9a-f]{64})"
)
_DIGEST_LENGTH = 64  # hexadecimal characters
_MAX_FOOTER = 128  # bytes
_END_RECORD = 22  # bytes of a zip archive's last record without its comment


def save(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Save a checkpoint atomically: a kill or power failure leaves the old file or the new one.

    An existing ``last.ckpt`` is kept as ``last-previous.ckpt``.

    Raises:
        OSError: the file cannot be written; the old file is unchanged.
        ConfigError: the checkpoint holds more than plain data and tensors, so it could not be
            loaded again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # in memory first, because torch hides the reason if the disk is full
    torch.save(dict(checkpoint), buffer)
    _append_footer(buffer, int(checkpoint.get("global_step", 0)))
    try:
        with files.atomic_write(path) as file:
            file.write(buffer.getbuffer())
            file.flush()
            # check that it loads before it replaces the old file
            _load_content(Path(file.name), path, mmap=True)
            if path.name == LAST and path.exists():
                _link_previous(path)
    finally:
        # left by processes that were killed
        for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            left_over.unlink(missing_ok=True)


def _append_footer(file: BinaryIO, step: int) -> None:
    """Append the footer, as the comment of the zip archive."""
    unsigned = f"run checkpoint, format {FORMAT}, step {step}, sha256 ".encode()
    file.seek(-2, os.SEEK_END)  # these bytes hold the length of the comment, which is 0
    file.write(struct.pack("<H", len(unsigned) + _DIGEST_LENGTH) + unsigned)
    file.seek(0)
    file.write(_digest(file, None))


def _digest(file: BinaryIO, count: int | None) -> bytes:
    """Return the SHA-256 of the next ``count`` bytes, or of the rest, in hexadecimal."""
    digest = hashlib.sha256()
    num_left = math.inf if count is None else count
    while num_left > 0 and (chunk := file.read(int(min(num_left, 2**20)))):
        digest.update(chunk)
        num_left -= len(chunk)
    return digest.hexdigest().encode()


def _link_previous(path: Path) -> None:
    """Link the last checkpoint as last-previous.ckpt, so that one of them always exists."""
    previous = path.with_name(PREVIOUS)
    link = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(path, link)
    except OSError:  # the file system has no hard links
        os.replace(path, previous)
    else:
        os.replace(link, previous)


def load(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU, after verifying the whole file.

    Loading runs no code from the file.

    Raises:
        ConfigError: the file is missing, truncated or damaged, has a newer format, or is not a
            checkpoint of this project.
    """
    with _open(path) as file:
        _verify(file, path)
        checkpoint = _load_content(file, path)
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _REQUIRED_KEYS:
        keys = sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, dict) else "none"
        raise ConfigError(f"{path}: not a checkpoint of this project (its keys: {keys})")
    return checkpoint


class NewestCheckpoint(NamedTuple):
    """The newest checkpoint of a folder that loads, and the ones that were skipped."""

    path: Path | None  # None if no checkpoint loads
    content: dict[str, Any]
    skipped: list[str]  # one line per skipped file, with the reason


def find_newest(
    folder: Path, pattern: str = "*.ckpt", required_keys: Set[str] = frozenset()
) -> NewestCheckpoint:
    """Return the newest checkpoint of a folder, by step, that loads and has the required keys.

    If two have the same step, ``last.ckpt`` is preferred. Skipped files are also logged.

    Args:
        folder: the folder of the checkpoints.
        pattern: pattern of file names; ``last*.ckpt`` for checkpoints to resume from.
        required_keys: keys that the checkpoint must hold.
    """
    skipped: list[str] = []
    for path in sorted(folder.glob(pattern), key=_recency, reverse=True):
        try:
            content = load(path)
            if missing := sorted(required_keys - content.keys()):
                raise ConfigError(f"{path}: cannot resume a run, the key {missing[0]} is missing")
        except ConfigError as error:
            log.warning("skipped: %s", error)
            skipped.append(str(error))
        else:
            return NewestCheckpoint(path, content, skipped)
    return NewestCheckpoint(None, {}, skipped)


def _recency(path: Path) -> tuple[float, bool]:
    """Return a sort key: the step in the footer, then whether the file is last.ckpt."""
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _MAX_FOOTER))
            match = re.search(_FOOTER.pattern + rb"\Z", file.read())
    except ConfigError:
        match = None
    # an unreadable file sorts as the newest, so that it is reported as skipped
    return (int(match[2]) if match else math.inf, path.name == LAST)


def _open(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # check first: opening a pipe would block
            raise ConfigError(f"{path}: not a file")
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _verify(file: BinaryIO, path: Path) -> None:
    """Raise ConfigError unless the file matches its footer; then seek to its start."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise ConfigError(f"{path}: empty, not a checkpoint")
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: {size:,} bytes, above the limit of {MAX_BYTES:,}")
    head = file.read(512)
    if not head.startswith(b"PK\x03\x04"):
        raise ConfigError(f"{path}: not a checkpoint{_guess_file_type(head)}")
    file.seek(max(0, size - 2**16))
    tail = file.read()
    footers = list(_FOOTER.finditer(tail))
    if not footers:
        is_zip = tail[-_END_RECORD:].startswith(b"PK\x05\x06")
        problem = (
            "has no checksum: not written by this project" if is_zip else "truncated or damaged"
        )
        raise ConfigError(f"{path}: {problem}")
    footer = footers[-1]
    if added := len(tail) - footer.end():
        raise ConfigError(f"{path}: damaged, {added:,} bytes follow its footer")
    file.seek(0)
    if _digest(file, size - _DIGEST_LENGTH) != footer[3]:
        raise ConfigError(f"{path}: damaged, its content does not match its checksum")
    if int(footer[1]) > FORMAT:
        raise ConfigError(
            f"{path}: written by a newer version (format {int(footer[1])}; this one reads up to "
            f"{FORMAT})"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            members, comment = archive.infolist(), archive.comment
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError):
        raise ConfigError(f"{path}: not a checkpoint (no zip archive)") from None
    is_uncompressed = all(
        m.compress_type == zipfile.ZIP_STORED and m.file_size == m.compress_size for m in members
    )
    if comment != footer[0] or not is_uncompressed or sum(m.file_size for m in members) > size:
        raise ConfigError(f"{path}: rejected, because it would unpack to more bytes than it has")
    file.seek(0)


def _guess_file_type(head: bytes) -> str:
    """Return a hint about the type of a file that is not a checkpoint."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return " (looks like HTML: download the file itself, not its web page)"
    if text.startswith(b"version https://git-lfs"):
        return " (a Git LFS pointer: to get the file, run git lfs pull)"
    return " (a pickle)" if head[:1] == b"\x80" else ""


def _load_content(file: BinaryIO | Path, path: Path, mmap: bool = False) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many types
        # leave out torch's advice to load with weights_only=False
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = match[1] if match else " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ConfigError(
            f"{path}: rejected, because it holds more than plain data and tensors ({reason})"
        ) from None
