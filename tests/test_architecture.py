"""The rooms and the arrows between them: who may import whom."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import clean_environment

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "cvae"

# room: the rooms of ours that it may import
ARROWS = {
    "__init__": {"runs"},
    "types": set[str](),
    "schema": set[str](),
    "files": set[str](),
    "terminal": set[str](),
    "trust": {"schema"},
    "noise": {"types"},
    "digits": {"schema"},
    "checkpoints": {"files", "schema"},
    "augmentation": {"noise", "types"},
    "workers": set[str](),
    "data": {"augmentation", "digits", "noise", "types", "workers"},
    "networks": {"types"},
    "priors": {"types"},
    "penalties": {"types"},
    "models": {"networks", "penalties", "priors", "types"},
    "evaluation": {"figures", "files", "models", "noise", "priors", "terminal", "types"},
    "figures": {"models", "noise", "types"},
    "sampling": {"figures", "models", "schema"},
    "lightning_module": {"evaluation", "models", "noise", "types"},
    "callbacks": {"checkpoints", "data", "figures", "files", "lightning_module", "runs", "search"},
    "loggers": {"files", "schema"},
    "runs": {
        "changes",
        "checkpoints",
        "files",
        "models",
        "schema",
        "trust",
    },  # those that know torch, late
    "changes": {"schema"},
    "resume": {"checkpoints", "data", "lightning_module", "processes", "runs"},
    "preflight": {"data", "models", "schema", "types"},
    "processes": {"runs", "schema"},
    "training": {
        *("callbacks", "checkpoints", "data", "digits", "lightning_module", "loggers"),
        *("preflight", "processes", "resume", "runs", "schema", "workers"),
    },
    "launch": {"processes", "runs", "schema", "terminal", "training"},
    "sweeps": {"launch", "processes", "runs", "schema"},
    "search": {"runs", "schema"},
    "cli": {"changes", "processes", "runs", "schema", "terminal"},
    "hooks": {"cli", "launch", "processes", "runs", "schema", "sweeps"},
    "dashboard": set[str](),
    "export": {"models", "runs", "schema", "trust", "types"},
    "comparison": {"files", "runs", "schema", "terminal", "trust"},
    "article": {"changes", "comparison", "figures", "launch", "processes", "runs", "schema"},
}
KNOW_HYDRA = {"changes", "cli", "hooks", "processes", "runs", "schema", "search", "training"}
KNOW_LIGHTNING = {
    "callbacks",
    "data",
    "launch",
    "lightning_module",
    "loggers",
    "preflight",
    "resume",
    "training",
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            found |= {f"cvae.{a.name}" for a in node.names} if module == "cvae" else {module}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_is_on_the_map() -> None:
    assert {room(path) for path in FILES} == set(ARROWS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_one_way(path: Path) -> None:
    here = room(path)
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("cvae.")} - {here}
    assert ours <= ARROWS[here], f"{here} must not import {ours - ARROWS[here]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_who_knows_hydra_and_lightning(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(path)}
    if libraries & {"hydra", "omegaconf"}:
        assert room(path) in KNOW_HYDRA
    if libraries & {"lightning", "pytorch_lightning"}:
        assert room(path) in KNOW_LIGHTNING


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*.py")), ids=lambda p: p.name)
def test_entry_points_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 100
    assert "sys.path" not in path.read_text()


def names_no_encoding(call: ast.Call) -> bool:
    """Return whether a call opens, reads or writes text in the encoding of the locale."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    is_of_text = name in ("open", "_LogFile") or (owner and name in ("read_text", "write_text"))
    if not is_of_text or owner in ("os", "runs", "trust", "PILImage"):
        return False
    texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    is_binary = name == "open" and any("b" in str(text) for text in texts)
    return not is_binary and not any(k.arg == "encoding" for k in call.keywords)


@pytest.mark.parametrize("folder", ["src", "benchmarks", "docs", "locks"])
def test_files_are_not_in_the_encoding_of_the_locale(folder: str) -> None:
    found = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and names_no_encoding(node)
    ]
    assert found == []


def test_no_room_for_everything() -> None:
    names = {path.stem for path in FILES}
    assert not names & {"utils", "helpers", "common", "base", "misc"}


def test_the_lock_is_that_of_the_constraints() -> None:
    """With a digest for every package, in the version that everybody gets."""

    def pinned(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text().splitlines()
        pairs = [line.split(" ")[0].split("==") for line in lines if not line.startswith("#")]
        return {re.sub(r"[-_.]+", "-", package).lower(): pin for package, pin in pairs}

    constraints = pinned("constraints.txt")
    for name in ("linux-x86_64-cp311.txt", "linux-x86_64-cp311-build.txt"):
        lock = (ROOT / "locks" / name).read_text().splitlines()
        assert all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in lock[1:])
        assert pinned(f"locks/{name}").items() <= constraints.items()


WHERE = """
import subprocess, sys
import cvae
from tests.conftest import ROOT, clean_environment

def test_where() -> None:
    show = [sys.executable, "-c", "import cvae; print(cvae.__file__)"]
    started = subprocess.run(show, env=clean_environment(), capture_output=True, text=True)
    assert cvae.__file__ == started.stdout.strip() == str(ROOT / "src" / "cvae" / "__init__.py")
"""


def test_tests_import_the_checkout_that_they_lie_in(tmp_path: Path) -> None:
    copy = tmp_path / "another checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "tests" / "test_where.py").write_text(WHERE)
    environment = {**clean_environment(), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_where.py"],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(
        ["make", "--no-print-directory", "--eval", 'path: ; @echo "$$PYTHONPATH"', "path"],
        cwd=copy,
        env={**environment, "PYTHONPATH": "elsewhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == f"{copy / 'src'}:elsewhere"
