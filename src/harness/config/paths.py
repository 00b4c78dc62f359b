"""Paths of the project, and paths and commands in the form that a user types."""

import shlex
import shutil
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]  # src/, which holds this package and the sciences
ROOT = SOURCE.parent  # the project; default paths are relative to it
CONF = ROOT / "conf"


def python_command(entry_point: str) -> str:
    """Return a command that starts an entry point from the current folder, for a user to paste."""
    python = (
        "python" if shutil.which("python") == sys.executable else display_path(Path(sys.executable))
    )
    return shlex.join((python, display_path(ROOT / "src" / f"{entry_point}.py")))


def display_path(path: Path) -> str:
    """Return a path as text, relative to the current folder if it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def expand_home(path: str | Path) -> Path:
    """Return a path with ``~`` expanded, or unchanged if there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def path_exists(path: Path) -> bool:
    """Return whether a file or folder exists; False for a name that is too long."""
    try:
        return path.exists()
    except OSError:
        return False
