"""Modules import only from lower layers, and the harness names nothing of the science."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import PACKAGE
from tests.conftest import ROOT, clean_environment

SOURCE = ROOT / "src"
SCIENCE, HARNESS = SOURCE / PACKAGE, SOURCE / "harness"

# packages of the harness and modules of the science, in layers; each imports only earlier layers
HARNESS_LAYERS = (
    ("contract",),
    ("config",),
    ("run_folder",),
    ("tracking",),
    ("training",),
    ("sweeps",),
    ("reports",),
    ("command_line",),
)
SCIENCE_LAYERS = (
    ("types", "versions", "digits", "npz", "attributes_csv", "image_files", "pixel_map"),
    ("settings",),
    ("noise", "networks", "likelihoods", "conditions", "priors", "penalties"),
    ("given_pixels", "pixel_distribution", "morphology", "image_grid"),
    ("augmentation", "models"),
    ("image_set", "bounds", "trial", "onnx_export", "directions"),
    ("figures",),
    ("data",),
    ("lightning_module", "sampling", "image_folder", "coloured_mnist", "rotated_mnist"),
    ("callbacks", "embedding", "evaluation", "films"),
    ("export", "generation", "explorer"),
)
MACHINERY_PACKAGES = {
    *("hydra", "omegaconf", "wandb", "subprocess", "multiprocessing", "signal"),
    *("hydra_plugins", "submitit", "ray", "optuna"),
}
SCIENCE_WORDS = {"cvae", "elbo", "latent", "label", "digit", "mnist", "image"}
NAMES_OF_LIBRARIES = r"wandb\.Image|PIL import Image|\bImage\.Image\b|\blog_image\b|\badd_image\b"
MAX_LINES = 350


def find_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every module that a file imports, and whether it does so within a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:  # the name may be a module or defined in one
                yield f"{node.module}.{alias.name}", id(node) in late


def find_packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name, _ in find_imports(path)}


def list_python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "egg-info" not in str(path))


def get_package(path: Path) -> str:
    """Return the package of the harness, or module of the science, of a file."""
    return path.relative_to(SOURCE).parts[1].removesuffix(".py")


SCRIPTS = ("train", "generate", "embed", "compare", "export", "explore", "dashboard")
ENTRY_POINTS = [f"{name}.py" for name in SCRIPTS]
SCIENCE_MODULES = {name for layer in SCIENCE_LAYERS for name in layer} | {"__init__"}
# without files that a user adds in src/
SCIENCE_FILES = [
    path for path in list_python_files(SCIENCE) if get_package(path) in SCIENCE_MODULES
]
SHIPPED_FILES = [
    *(SOURCE / name for name in ENTRY_POINTS),
    *list_python_files(HARNESS),
    *list_python_files(SOURCE / "hydra_plugins"),
    *SCIENCE_FILES,
]


def format_path(path: object) -> str:
    return str(path.relative_to(SOURCE)) if isinstance(path, Path) else str(path)


PACKAGES = [(HARNESS, HARNESS_LAYERS), (SCIENCE, SCIENCE_LAYERS)]


def test_every_module_is_in_a_layer() -> None:
    known = [name for layer in HARNESS_LAYERS for name in layer]
    assert {get_package(path) for path in list_python_files(HARNESS)} - {"__init__"} == set(known)
    assert len(known) == len(set(known))
    there = {get_package(path) for path in list_python_files(SCIENCE)}
    assert there | {"evaluation", "versions"} >= SCIENCE_MODULES  # these may be deleted


def test_mypy_is_strict_for_every_module_of_the_science() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert all(
        f'"{PACKAGE}.{name}"' in pyproject
        for name in SCIENCE_MODULES - {"__init__", "evaluation", "versions"}
    )


@pytest.mark.parametrize(("package", "layers"), PACKAGES, ids=["harness", "science"])
def test_imports_come_from_lower_layers(package: Path, layers: tuple[tuple[str, ...], ...]) -> None:
    height = {name: number for number, layer in enumerate(layers) for name in layer}
    violations = [
        f"{format_path(path)} imports {name}"
        for path in list_python_files(package)
        for name, _ in find_imports(path)
        if name.startswith(f"{package.name}.") and get_package(path) in height
        if (other := name.split(".")[1]) != get_package(path) and other in height
        if height[other] >= height[get_package(path)]
    ]
    assert violations == []


def test_the_science_imports_only_the_contract_of_the_harness() -> None:
    """load_run and train import more of the harness, but only when a user calls them."""
    violations = [
        (format_path(path), name, is_late)
        for path in SCIENCE_FILES
        for name, is_late in find_imports(path)
        if name.partition(".")[0] == "harness" and not name.startswith("harness.contract.")
    ]
    late = ("harness.run_folder.loading", "harness.training.run")
    assert violations == [(f"{PACKAGE}/__init__.py", name, True) for name in late]


@pytest.mark.parametrize("path", SCIENCE_FILES, ids=format_path)
def test_the_science_imports_no_packages_of_the_machinery(path: Path) -> None:
    allowed = {"subprocess"} if path == SCIENCE / "explorer" / "runtime.py" else set()  # npm
    assert not find_packages(path) & MACHINERY_PACKAGES - allowed


@pytest.mark.parametrize(
    "path",
    [*list_python_files(HARNESS), *list_python_files(SOURCE / "hydra_plugins")],
    ids=format_path,
)
def test_the_harness_uses_no_word_of_the_science(path: Path) -> None:
    assert not find_packages(path) & {PACKAGE, *(script.stem for script in SOURCE.glob("*.py"))}
    text = re.sub(NAMES_OF_LIBRARIES, "", path.read_text(encoding="utf-8"))
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)  # also in snake_case and CamelCase
    used = {word for word in map(str.lower, words) if word.removesuffix("s") in SCIENCE_WORDS}
    assert used == set()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_are_short(name: str) -> None:
    text = (SOURCE / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert "sys.path" not in text


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=format_path)
def test_files_are_short_or_say_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES or "in one file" in lines[0]


def uses_locale_encoding(call: ast.Call) -> bool:
    """Return whether a call opens, reads or writes text in the encoding of the locale."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    is_of_text = name in ("open", "_LogFile") or (owner and name in ("read_text", "write_text"))
    if not is_of_text or owner in ("os", "files", "trust", "edits", "PILImage"):
        return False
    texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    is_binary = name == "open" and any("b" in str(text) for text in texts)
    return not is_binary and not any(k.arg == "encoding" for k in call.keywords)


def test_every_text_file_is_opened_with_an_encoding() -> None:
    folders = ("benchmarks", "docs", "locks", "tools")
    scripts = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    violations = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in [*SHIPPED_FILES, *sorted(scripts)]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and uses_locale_encoding(node)
    ]
    assert violations == []


def test_no_module_has_a_catch_all_name() -> None:
    names = {path.stem for path in SHIPPED_FILES}
    assert not names & {"utils", "helpers", "common", "base", "misc"}


def test_the_locks_match_the_constraints() -> None:
    """Every package has a digest and the version of constraints.txt."""

    def read_pins(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text().splitlines()
        pairs = [line.split(" ")[0].split("==") for line in lines if not line.startswith("#")]
        return {re.sub(r"[-_.]+", "-", package).lower(): pin for package, pin in pairs}

    constraints = read_pins("constraints.txt")
    for name in ("linux-x86_64-cp311.txt", "linux-x86_64-cp311-build.txt"):
        lock = (ROOT / "locks" / name).read_text().splitlines()
        assert all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in lock[1:])
        assert read_pins(f"locks/{name}").items() <= constraints.items()


CHECKOUT_TEST = f"""
import subprocess, sys
import {PACKAGE} as science
from tests.conftest import ROOT, clean_environment

def test_where() -> None:
    show = [sys.executable, "-c", "import {PACKAGE}; print({PACKAGE}.__file__)"]
    started = subprocess.run(show, env=clean_environment(), capture_output=True, text=True)
    assert science.__file__ == started.stdout.strip()
    assert science.__file__ == str(ROOT / "src" / "{PACKAGE}" / "__init__.py")
"""


def test_tests_import_their_own_checkout(tmp_path: Path) -> None:
    copy = tmp_path / "another checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "tests" / "test_where.py").write_text(CHECKOUT_TEST)
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
