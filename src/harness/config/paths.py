"""Paths of the project, and paths and commands as a user would type them."""

import shlex
import shutil
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]  # src/: this package and the packages of the science
ROOT = SOURCE.parent  # the project: defaults are relative to it
CONF = ROOT / "conf"


def python_command(entry_point: str) -> str:
    """How to start an entry point from here, for a person to paste."""
    python = "python" if shutil.which("python") == sys.executable else shown(Path(sys.executable))
    return shlex.join((python, shown(ROOT / "src" / f"{entry_point}.py")))


def shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def expanded(path: str | Path) -> Path:
    """A path with ~ spelt out; where there is no such home it stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; no for a name that is too long for any."""
    try:
        return path.exists()
    except OSError:
        return False
