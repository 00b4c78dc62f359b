"""Tests that modules import only from lower layers, and that the harness names no science."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment

SOURCE = ROOT / "src"
SCIENCE, HARNESS = SOURCE / "cvae", SOURCE / "harness"

# layers of packages of the harness and of modules of cvae; each imports only from earlier ones
HARNESS_FLOORS = (
    ("contract",),
    ("config",),
    ("run_folder",),
    ("tracking",),
    ("training",),
    ("sweeps",),
    ("reports",),
    ("command_line",),
)
SCIENCE_FLOORS = (
    ("types", "versions", "digits"),
    ("settings",),
    ("noise", "networks", "priors", "penalties"),
    ("augmentation", "models"),
    ("data", "bounds", "trial", "figures"),
    ("lightning_module", "sampling"),
    ("callbacks", "evaluation"),
    ("export",),
)
OF_THE_MACHINERY = {
    *("hydra", "omegaconf", "wandb", "subprocess", "multiprocessing", "signal"),
    *("hydra_plugins", "submitit", "ray", "optuna"),
}
OF_THE_SCIENCE = {"cvae", "elbo", "latent", "label", "digit", "mnist", "image"}
NAMES_OF_LIBRARIES = r"wandb\.Image|PIL import Image|\bImage\.Image\b|\blog_image\b|\badd_image\b"
MAX_LINES = 350


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every module that a file imports, and whether it does so within a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:  # may be a module of a package or a name in a module
                yield f"{node.module}.{alias.name}", id(node) in late


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name, _ in imports(path)}


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "egg-info" not in str(path))


def place(path: Path) -> str:
    """Return the package of the harness, or the module of cvae, that a file belongs to."""
    return path.relative_to(SOURCE).parts[1].removesuffix(".py")


ENTRY_POINTS = [f"{name}.py" for name in ("train", "generate", "compare", "export", "dashboard")]
OF_SCIENCE = {name for floor in SCIENCE_FLOORS for name in floor} | {"__init__"}
# files that a user adds in src/ or src/cvae are not tested
SCIENCE_FILES = [path for path in python_files(SCIENCE) if place(path) in OF_SCIENCE]
OURS = [
    *(SOURCE / name for name in ENTRY_POINTS),
    *python_files(HARNESS),
    *python_files(SOURCE / "hydra_plugins"),
    *SCIENCE_FILES,
]


def shown(path: object) -> str:
    return str(path.relative_to(SOURCE)) if isinstance(path, Path) else str(path)


HOUSES = [(HARNESS, HARNESS_FLOORS), (SCIENCE, SCIENCE_FLOORS)]


def test_every_module_is_on_a_floor() -> None:
    known = [name for floor in HARNESS_FLOORS for name in floor]
    assert {place(path) for path in python_files(HARNESS)} - {"__init__"} == set(known)
    assert len(known) == len(set(known))
    there = {place(path) for path in python_files(SCIENCE)}
    assert there | {"evaluation"} >= OF_SCIENCE  # a user may delete the evaluation


def test_types_are_strict_for_our_files_by_name() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert all(f'"cvae.{name}"' in pyproject for name in OF_SCIENCE - {"__init__", "evaluation"})


@pytest.mark.parametrize(("house", "floors"), HOUSES, ids=["harness", "cvae"])
def test_imports_come_from_lower_floors(house: Path, floors: tuple[tuple[str, ...], ...]) -> None:
    height = {name: number for number, floor in enumerate(floors) for name in floor}
    found = [
        f"{shown(path)} imports {name}"
        for path in python_files(house)
        for name, _ in imports(path)
        if name.startswith(f"{house.name}.") and place(path) in height
        if (other := name.split(".")[1]) != place(path) and other in height
        if height[other] >= height[place(path)]
    ]
    assert found == []


def test_the_science_knows_the_contract_alone() -> None:
    """Except for cvae.load_run, which imports the harness only when a user calls it."""
    found = [
        (shown(path), name, is_late)
        for path in SCIENCE_FILES
        for name, is_late in imports(path)
        if name.partition(".")[0] == "harness" and not name.startswith("harness.contract.")
    ]
    assert found == [("cvae/__init__.py", "harness.run_folder.loading", True)]


@pytest.mark.parametrize("path", SCIENCE_FILES, ids=shown)
def test_the_science_knows_nothing_of_the_machinery(path: Path) -> None:
    assert not packages(path) & OF_THE_MACHINERY


@pytest.mark.parametrize(
    "path", [*python_files(HARNESS), *python_files(SOURCE / "hydra_plugins")], ids=shown
)
def test_the_harness_knows_nothing_of_the_science(path: Path) -> None:
    assert not packages(path) & {"cvae", *(script.stem for script in SOURCE.glob("*.py"))}
    text = re.sub(NAMES_OF_LIBRARIES, "", path.read_text(encoding="utf-8"))
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)  # also in snake_case and CamelCase
    used = {word for word in map(str.lower, words) if word.removesuffix("s") in OF_THE_SCIENCE}
    assert used == set()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_are_short(name: str) -> None:
    text = (SOURCE / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert "sys.path" not in text


@pytest.mark.parametrize("path", OURS, ids=shown)
def test_a_long_file_says_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES or "in one file" in lines[0]


def names_no_encoding(call: ast.Call) -> bool:
    """Return whether a call opens, reads or writes text in the encoding of the locale."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    is_of_text = name in ("open", "_LogFile") or (owner and name in ("read_text", "write_text"))
    if not is_of_text or owner in ("os", "files", "trust", "PILImage"):
        return False
    texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    is_binary = name == "open" and any("b" in str(text) for text in texts)
    return not is_binary and not any(k.arg == "encoding" for k in call.keywords)


def test_files_are_not_in_the_encoding_of_the_locale() -> None:
    scripts = [
        path for name in ("benchmarks", "docs", "locks") for path in (ROOT / name).rglob("*.py")
    ]
    found = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in [*OURS, *sorted(scripts)]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and names_no_encoding(node)
    ]
    assert found == []


def test_no_room_for_everything() -> None:
    names = {path.stem for path in OURS}
    assert not names & {"utils", "helpers", "common", "base", "misc"}


def test_the_lock_is_that_of_the_constraints() -> None:
    """Every package has a digest and the version of constraints.txt."""

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
