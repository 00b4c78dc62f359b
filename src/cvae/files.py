"""Files that are whole or absent, and errors that name them."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of another when it is on disk and not before.

    Whoever looks, and whenever the power fails, finds the old content or the new. The temporary
    file lies in the same folder: across file systems a rename is a copy, which a kill cuts in two.

    Raises:
        OSError: it could not be written, with its path and the reason; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:  # never through a link that somebody has laid there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Put a folder's entries on disk: without it a power cut can undo a rename."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritten(path: Path, error: OSError) -> OSError:
    """The same error with the name of the file, which those of writing lack."""
    reason = error.strerror or str(error)
    return OSError(
        error.errno, f"{path}: cannot be written ({reason}); what was there is untouched"
    )
