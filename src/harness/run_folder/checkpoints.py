"""Checkpoints that are whole or absent: written atomically, checked in full before a byte is used.

A checkpoint is what ``torch.save`` writes, a zip archive that ``torch.load`` reads, with a footer
in the place of the archive's comment: our format's version, the optimizer step, and the SHA-256 of
all bytes before the digest. A missing, altered or added byte anywhere in the file is found.
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

FORMAT = 1  # of the files written here; one more whenever older code could misread them
MAX_BYTES = 16 * 2**30  # of a file that is read at all
LAST, PREVIOUS = "last.ckpt", "last-previous.ckpt"
# keys that a checkpoint needs for an exact resume
TO_RESUME = frozenset({"position", "optimizer_states", "loops", "provenance"})
_KEYS = {"state_dict", "config"}
_FOOTER = re.compile(
    rb"[a-z]+ checkpoint, format (\d{1,6}), step (\d{1,12}), sha256 ([0-9a-f]{64})"
)
_DIGEST_LENGTH = 64  # hexadecimal characters
_MAX_FOOTER = 128  # bytes
_END_RECORD = 22  # bytes of a zip archive's last record without its comment


def save(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Replace a checkpoint: whoever looks, and whenever the power fails, finds the old or the new.

    The ``last.ckpt`` that was there stays beside the new one as ``last-previous.ckpt``.

    Raises:
        OSError: it could not be written; what was there before is untouched.
        ConfigError: it holds more than plain data and tensors, so it could not be read again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO()  # in memory first: torch hides the reason where a disk is full
    torch.save(dict(checkpoint), whole)
    _sign(whole, int(checkpoint.get("global_step", 0)))
    try:
        with files.replacing(path) as file:
            file.write(whole.getbuffer())
            file.flush()
            # what cannot be read back must not take the place of what can
            _unpickle(Path(file.name), path, mmap=True)
            if path.name == LAST and path.exists():
                _keep_previous(path)
    finally:
        # left by processes that were killed
        for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            left_over.unlink(missing_ok=True)


def _sign(file: BinaryIO, step: int) -> None:
    """Make the footer the comment of the archive that ends the file."""
    unsigned = f"run checkpoint, format {FORMAT}, step {step}, sha256 ".encode()
    file.seek(-2, os.SEEK_END)  # the length of the comment, 0
    file.write(struct.pack("<H", len(unsigned) + _DIGEST_LENGTH) + unsigned)
    file.seek(0)
    file.write(_digest(file, None))


def _digest(file: BinaryIO, count: int | None) -> bytes:
    """Hexadecimal SHA-256 of the next ``count`` bytes, or of all there are."""
    digest = hashlib.sha256()
    left = math.inf if count is None else count
    while left > 0 and (piece := file.read(int(min(left, 2**20)))):
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest().encode()


def _keep_previous(path: Path) -> None:
    """A second name for the last checkpoint; at no moment is there none."""
    previous = path.with_name(PREVIOUS)
    link = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        os.replace(path, previous)
    else:
        os.replace(link, previous)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU, after every byte of the file was checked; it runs no code.

    Raises:
        ConfigError: the file is missing, truncated, damaged, of a newer format, or no checkpoint
            of this project.
    """
    with _opened(path) as file:
        _verify(file, path)
        checkpoint = _unpickle(file, path)
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _KEYS:
        keys = sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, dict) else "none"
        raise ConfigError(f"{path}: not a checkpoint of this project (its keys: {keys})")
    return checkpoint


class Newest(NamedTuple):
    """The newest good checkpoint of a folder, if there is one, and what was skipped for it."""

    path: Path | None
    content: dict[str, Any]
    skipped: list[str]  # why, a line each


def newest_good(folder: Path, pattern: str = "*.ckpt", needed: Set[str] = frozenset()) -> Newest:
    """The readable checkpoint of a folder with the most steps, and what was skipped, and why.

    At equal steps ``last.ckpt`` comes first. What was skipped is logged as well.

    Args:
        pattern: of the names to look at; ``last*.ckpt`` for those that a run goes on from.
        needed: keys that the checkpoint must hold.
    """
    skipped: list[str] = []
    for path in sorted(folder.glob(pattern), key=_rank, reverse=True):
        try:
            content = load(path)
            if missing := sorted(needed - content.keys()):
                raise ConfigError(f"{path}: cannot be resumed from, {missing[0]} is missing")
        except ConfigError as error:
            log.warning("skipped: %s", error)
            skipped.append(str(error))
        else:
            return Newest(path, content, skipped)
    return Newest(None, {}, skipped)


def _rank(path: Path) -> tuple[float, bool]:
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _MAX_FOOTER))
            found = re.search(_FOOTER.pattern + rb"\Z", file.read())
    except ConfigError:
        found = None
    return (int(found[2]) if found else math.inf, path.name == LAST)  # unreadable: to be told of


def _opened(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening, which waits for a pipe
            raise ConfigError(f"{path}: not a file")
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _verify(file: BinaryIO, path: Path) -> None:
    """Hold the file to its footer, and the archive to its size. Leaves it at its start."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise ConfigError(f"{path}: empty, not a checkpoint")
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: {size:,} bytes, above the {MAX_BYTES:,} that are read")
    head = file.read(512)
    if not head.startswith(b"PK\x03\x04"):
        raise ConfigError(f"{path}: not a checkpoint{_resembled(head)}")
    file.seek(max(0, size - 2**16))
    tail = file.read()
    footers = list(_FOOTER.finditer(tail))
    if not footers:
        whole = tail[-_END_RECORD:].startswith(b"PK\x05\x06")
        what = "no checksum, so not written by this project" if whole else "truncated or damaged"
        raise ConfigError(f"{path}: {what}")
    footer = footers[-1]
    if added := len(tail) - footer.end():
        raise ConfigError(f"{path}: damaged, {added:,} bytes follow its end")
    file.seek(0)
    if _digest(file, size - _DIGEST_LENGTH) != footer[3]:
        raise ConfigError(f"{path}: damaged, its content is not that of its checksum")
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
    stored = all(
        m.compress_type == zipfile.ZIP_STORED and m.file_size == m.compress_size for m in members
    )
    if comment != footer[0] or not stored or sum(m.file_size for m in members) > size:
        raise ConfigError(f"{path}: refused, a zip archive that would unpack to more than it is")
    file.seek(0)


def _resembled(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return " (looks like HTML: a web page saved in its place?)"
    if text.startswith(b"version https://git-lfs"):
        return " (a pointer of Git LFS: git lfs pull gets the file)"
    return " (a pickle)" if head[:1] == b"\x80" else ""


def _unpickle(file: BinaryIO | Path, path: Path, mmap: bool = False) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises half a dozen kinds
        # its advice to load anyway is not ours
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = found[1] if found else " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ConfigError(
            f"{path}: refused, it holds more than plain data and tensors ({reason})"
        ) from None
