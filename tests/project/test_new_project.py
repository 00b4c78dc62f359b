"""``make new`` creates a project that passes lint and tests, and trains."""

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import ROOT, clean_environment, run_warm, tiny, write_digits

SCRIPT = ROOT / "tools" / "new" / "new.py"
NAME = "a_study_with_a_name_as_long_as"  # the longest that is allowed
# allowed uses of the word cvae besides the package: the model, and names of runs
ALLOWED = (
    r"model(=|: )([a-z_]+,)*cvae\b",
    r"\bcvae-(mlp|conv|mnist-template)",
    r"my-cvae",
    r"[\"'(]cvae[\"']",  # in lists of models
    r"cvae, cvae_plain",
    r"\(cvae\)|convolutional cvae",
)


def run_new(*arguments: str, script: Path = SCRIPT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def run_git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def edits() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT.with_name("edits.py"))))


@pytest.fixture(scope="module")
def core_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new project (KEEP=core) in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("new") / "a study"
    done = run_new(NAME, str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cd '{folder}' && make install && make train" in done.stdout
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "NAME is missing: make new NAME=my_study DIR=../my-study"),
        ("My-Study", "use lower-case letters, digits and _"),
        ("class", "is a keyword of Python"),
        ("json", "is a module of the standard library"),
        ("torch", "is an installed package"),
        ("pytest", "is an installed package"),
        ("cvae", "this project has a module or folder of that name"),
        ("harness", "this project has a module or folder of that name"),
        ("train", "this project has a module or folder of that name"),
        ("a" * 31, "use at most 30 characters"),
    ],
)
def test_a_bad_name_is_rejected_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    done = run_new(name, str(tmp_path / "new"))
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_bad_folder_is_rejected_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, message in (
        ("", "DIR is missing"),
        (str(tmp_path), "exists and is not an empty folder"),
        (str(tmp_path / "file"), "exists and is not an empty folder"),
        (str(ROOT / "new"), "is in the template"),
    ):
        done = run_new("my_study", folder)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert message in done.stderr
    done = run_new("my_study", str(tmp_path / "new"), "--keep", "some")
    assert "KEEP=some: must be core or all" in done.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from cvae.models import CVAE", "from mine.models import CVAE"),
        ("from cvae import load_run", "from mine import load_run"),
        ("import cvae", "import mine"),
        ("_target_: cvae.models.CVAE", "_target_: mine.models.CVAE"),
        ('f"cvae.{room}"', 'f"mine.{room}"'),
        ("[models](../src/cvae/models.py)", "[models](../src/mine/models.py)"),
        ("edit `src/cvae/`", "edit `src/mine/`"),
        ("  cvae/   the science", "  mine/   the science"),
        ('PACKAGE = "cvae"  # ours', 'PACKAGE = "mine"  # ours'),
        ("project: ${env:WANDB_PROJECT,conditional-vae}", "project: ${env:WANDB_PROJECT,mine}"),
        *((same, same) for same in ("model=cvae", "conf/model/cvae.yaml", "model=vae,cvae.")),
        *((same, same) for same in ('"cvae.svg"',)),
        *((same, same) for same in ("cvae_plain", "cvae-mlp-z32-s1", "- model: cvae", "a CVAE.")),
    ],
)
def test_the_package_is_renamed_and_the_model_is_not(
    before: str, after: str, edits: SimpleNamespace
) -> None:
    assert edits.rename(before, "mine") == after


def test_long_prose_is_wrapped_and_code_is_not(edits: SimpleNamespace, tmp_path: Path) -> None:
    words = "word " * 25
    text = f'def f(x):\n    """{words}\n\n    Args:\n        x: {words}\n    """\n    # {words}\n'
    code = f'    return "{words}"\n'
    (tmp_path / "long.py").write_text(text + code)
    edits.wrap_prose(tmp_path / "long.py")
    *prose, last = (tmp_path / "long.py").read_text().splitlines(keepends=True)
    assert last == code
    assert max(map(len, prose)) <= 101
    assert "".join(prose).replace("#", "").split() == text.replace("#", "").split()
    compile("".join([*prose, last]), "long.py", "exec")


def test_links_to_missing_pages_become_text(edits: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("")
    text = "[a](there.md#x) [b](gone.md) ![c](gone.png) [d](https://example.org) [e](#here)"
    kept = "[a](there.md#x) b  [d](https://example.org) [e](#here)"
    assert edits.remove_broken_links(text, tmp_path / "page.md") == kept
    items = "- see [a](there.md).\n- see [b](gone.md).\n"
    assert edits.remove_broken_links(items, tmp_path / "page.md") == "- see [a](there.md).\n"


def test_a_project_can_be_made_before_packages_are_installed(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    command = [sys.executable, "-S", str(SCRIPT), "mine", str(folder)]  # without site-packages
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"then run once in {folder}: make install schemas format" in done.stdout
    assert (folder / "src" / "mine" / "models.py").is_file()
    assert "_target_: mine.models.CVAE" in (folder / "conf" / "model" / "cvae.yaml").read_text()


def test_rows_of_claims_are_dropped(edits: SimpleNamespace) -> None:
    rows = "| `bound` | a |\n| | b |\n| `style` | c |\n| | d |\n| the oracle | e |\n\ntext\n"
    assert edits.drop_rows(rows, {"style", "oracle"}) == "| `bound` | a |\n| | b |\n\ntext\n"


@pytest.mark.engines
def test_a_new_project_has_its_own_name_and_history(core_project: Path) -> None:
    occurrences = run_git(core_project, "grep", "-n", "-w", "cvae").splitlines()
    allowed = re.compile("|".join(ALLOWED))
    assert len(occurrences) > 5
    assert [line for line in occurrences if not allowed.search(line.partition(":")[2])] == []
    log = run_git(core_project, "log", "--format=%s").splitlines()
    assert len(log) == 1
    template = r"cvae-mnist-template [\d.]+(, commit \w+( with changes)?)?"
    assert re.fullmatch(f"Start {NAME} from {template}", log[0])
    assert run_git(core_project, "status", "--porcelain") == ""
    for gone in ("benchmarks", "docs/measured", "tools/new", "tests/project/runs"):
        assert not (core_project / gone).exists()
    assert (core_project / "README.md").read_text().startswith(f"# {NAME}\n")
    assert "Copyright" in (core_project / "LICENSE").read_text().splitlines()[3]
    done = subprocess.run(
        ["make", "help"], cwd=core_project, capture_output=True, text=True, check=True
    )
    listed = set(re.findall(r"^  ([a-z-]+) ", done.stdout, re.MULTILINE))
    assert listed >= {"lint", "test", "train"}
    assert not listed & {"new", "recipes"}


@pytest.fixture(scope="module")
def run_module(core_project: Path) -> Callable[..., None]:
    """Return a function that runs ``python -m MODULE`` in the new project."""
    if (ROOT / ".mypy_cache").is_dir():  # the cache of make lint saves mypy a minute
        shutil.copytree(ROOT / ".mypy_cache", core_project / ".mypy_cache")

    def run(*command: str) -> None:
        environment: dict[str, Any] = {
            **clean_environment(),
            "PYTHONPATH": str(core_project / "src"),
        }
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=core_project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    return run


@pytest.mark.engines
@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_a_new_project_passes_lint(command: str, run_module: Callable[..., None]) -> None:
    run_module(*command.split())


@pytest.mark.engines
def test_all_tests_of_a_new_project_are_collected(run_module: Callable[..., None]) -> None:
    run_module("pytest", "-q", "-p", "no:cacheprovider", "--co")


@pytest.mark.engines
def test_a_new_project_passes_the_fast_tests_of_its_science(
    run_module: Callable[..., None],
) -> None:
    run_module(
        "pytest", "-q", "-p", "no:cacheprovider", "-m", "not engines and not long", "tests/science"
    )


@pytest.mark.engines
def test_a_new_project_trains_and_evaluates(core_project: Path) -> None:
    write_digits(core_project / "data" / "KMNIST" / "raw")
    source = str(core_project / "src")
    small = [*tiny(core_project / "data"), "experiment=quick", "logger=csv"]
    for script, overrides in (
        ("train", small),
        ("evaluate", ["num_samples=4", "num_generated=10"]),
    ):
        done = run_warm(
            core_project / "src" / f"{script}.py", overrides, core_project, 120, PYTHONPATH=source
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "test/marginal_nll_k4" in (core_project / "logs" / "latest" / "evaluation.json").read_text()
    )


@pytest.mark.engines
def test_an_archive_without_git_gives_the_same_files(core_project: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for name in run_git(ROOT, "ls-files").splitlines():
        (archive / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, archive / name)
    (archive / "logs" / "train").mkdir()
    (archive / "logs" / "train" / "metrics.csv").write_text("a run")
    folder = tmp_path / "made"
    done = run_new(NAME, str(folder), script=archive / "tools" / "new" / "new.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_git(folder, "ls-files") == run_git(core_project, "ls-files")
