"""Atomic file writes: a reader finds the old content or the new, never half of it."""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from harness.contract.errors import ConfigError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file to write, which replaces ``path`` once it is on disk.

    A reader finds the old content or the new, even after a power failure. The temporary file is in
    the same folder: os.replace fails across file systems.

    Raises:
        OSError: the file cannot be written; the message has its path and the reason. The old
            content is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:  # "x": follow no link that someone else placed there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise make_write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk: otherwise a power failure can undo a rename."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_write_error(path: Path, error: OSError) -> OSError:
    """Return an OSError that names the file and the reason."""
    reason = error.strerror or str(error)
    return OSError(
        error.errno, f"{path}: cannot be written ({reason}); its old content is unchanged"
    )


def make_output_error(output: Path, error: OSError) -> ConfigError:
    """Return the error of a command whose ``output`` cannot be written."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return ConfigError(f"output={output}: cannot be written ({cause.strerror})")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def file_digest(path: Path) -> str:
    """Return a fingerprint of the content of a file: 16 hex characters of its SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def atomic_write_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files replace those of ``folder`` at the end.

    Subfolders are merged in the same way. Links in ``folder`` are replaced and not followed.

    Raises:
        ConfigError: ``folder`` cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as temporary:
            yield Path(temporary)
            _replace_files(Path(temporary), folder)
    except OSError as error:
        raise make_output_error(folder, error) from None


def _replace_files(source: Path, target: Path) -> None:
    """Move all files of a folder and its subfolders into another folder."""
    for path in sorted(source.iterdir()):
        replaced = target / path.name
        if path.is_dir():
            if replaced.is_symlink():
                replaced.unlink()
            replaced.mkdir(exist_ok=True)
            _replace_files(path, replaced)
        else:
            path.chmod(0o644)
            os.replace(path, replaced)
