"""The code blocks of README and how-to pages run, and files and keys named in pages exist.

Each page runs in its own copy of the project, which has one finished run. Its blocks run in
order: ``bash`` line by line; ``python`` and ``yaml`` whose first line is a comment with a path are
written to that file; other ``python`` blocks in a row are one script; ``diff`` changes a file. A
comment before a block marks it: ``<!-- tiny -->`` shortens its runs, ``<!-- not run: REASON -->``
skips it.
"""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT, clean_environment, run_warm

RUN_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<tag>[^>]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
KINDS = {"bash", "python", "yaml", "diff"}
NEVER_RUN = {"", "text", "console", "json", "toml"}  # kinds of blocks
TINY = (
    "trainer.max_epochs=1 trainer.limit_train_batches=3 "
    "trainer.limit_val_batches=1 trainer.limit_test_batches=1 test_num_samples=2 "
    "callbacks.figures=null"
)
# added to a command unless it sets the key itself
SMALL = {
    "data.batch_size": "data.batch_size=32",
    "data.eval_batch_size": "data.eval_batch_size=64",
    "data.validation_size": "data.validation_size=100",
    "logger": "logger=csv",
}
TINY_TRAINER = """\
import lightning
class Trainer(lightning.Trainer):
    def __init__(self, **kwargs):
        short = {"limit_train_batches": 3, "limit_val_batches": 1, "limit_test_batches": 1}
        super().__init__(**{**kwargs, "max_epochs": 1, **short})
lightning.Trainer = Trainer
"""


class Block(NamedTuple):
    tag: str
    kind: str
    text: str

    @property
    def file(self) -> str | None:
        """Path of the file that the block is written to, or None."""
        named = FILE.match(self.text)
        return named[1] if named and self.kind in ("python", "yaml") else None


def read_blocks(page: Path) -> list[Block]:
    return [Block(m["tag"] or "", m["kind"], m["text"]) for m in BLOCK.finditer(page.read_text())]


def format_page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_run_page = pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.xdist_group(format_page_name(p))) for p in RUN_PAGES],
    ids=format_page_name,
)
each_page = pytest.mark.parametrize("page", PAGES, ids=format_page_name)


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with a finished run."""
    copy = tmp_path_factory.mktemp("trained") / "a copy"
    (copy / "logs").mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "conf", "pretrained"):
        if (ROOT / name).is_dir():  # a new project has no pretrained/
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    if (raw := ROOT / "data" / "MNIST" / "raw").is_dir():
        (copy / "data" / "MNIST").mkdir(parents=True)
        (copy / "data" / "MNIST" / "raw").symlink_to(raw)
    run_command(shlex.split(f"python src/train.py logger=csv {TINY}"), copy)
    return copy


def run_command(command: list[str], project: Path) -> None:
    """Run a command in the project; scripts run in a process with imported libraries."""
    count = next(i for i, word in enumerate(command) if not re.match(r"[A-Z_]+=", word))
    # NAME=value before the command
    variables = dict(word.split("=", 1) for word in command[:count])
    command = command[count:]
    source = str(project / "src")
    if command[0] == "python" and command[1].endswith(".py"):
        script = project / command[1]
        done = run_warm(script, command[2:], project, 600, **variables, PYTHONPATH=source)
    else:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        environment = {**clean_environment(), "PATH": path, "PYTHONPATH": source, **variables}
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def shorten_command(line: str) -> str:
    """Add overrides that shorten a command, before its comment."""
    command, _, comment = line.partition(" #")
    extra = ""
    if "src/train.py" in command:
        small = (override for key, override in SMALL.items() if key not in command)
        extra = " ".join([TINY, *small])
    elif "src/evaluate.py" in command:
        extra = "num_samples=2" + ("" if "claims=" in command else " claims=bound")
    return f"{command} {extra} #{comment}"


def apply_diff(text: str, project: Path) -> None:
    """Apply a diff of one file, in which the context of each hunk must occur once."""
    path, changed = "", ""
    for hunk in re.split(r"^@@.*\n", text, flags=re.MULTILINE):
        if named := re.search(r"^\+\+\+ (?:b/)?(\S+)\n", hunk, re.MULTILINE):
            path, changed = named[1], (project / named[1]).read_text()
            continue
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if not line.startswith("+"))
        new = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert changed.count(old) == 1, f"{path}: does not contain once\n{old}"
        changed = changed.replace(old, new)
    (project / path).write_text(changed)


def split_commands(text: str) -> Iterator[str]:
    yield from (line for line in text.replace("\\\n", " ").splitlines() if line.strip(" #"))


def run_blocks(page: Path, project: Path) -> None:
    """Run the blocks of a page in order."""
    blocks = [b for b in read_blocks(page) if not b.tag.startswith("not run") and b.kind in KINDS]
    for is_script, group in groupby(blocks, lambda b: b.kind == "python" and b.file is None):
        if is_script:
            parts = list(group)
            shorten = TINY_TRAINER if any(b.tag == "tiny" for b in parts) else ""
            script = project.parent / "block.py"
            script.write_text("\n".join([shorten, *(b.text for b in parts)]))
            run_command(["python", str(script)], project)
            continue
        for block in group:
            if block.file:
                (project / block.file).parent.mkdir(parents=True, exist_ok=True)
                (project / block.file).write_text(block.text)
            elif block.kind == "diff":
                apply_diff(block.text, project)
            elif block.kind == "bash":
                for line in split_commands(block.text):
                    words = shlex.split(
                        shorten_command(line) if block.tag == "tiny" else line, comments=True
                    )
                    if words:
                        run_command(words, project)


@pytest.fixture(scope="session")
def run_page(
    trained_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Path]:
    """Return a function that runs a page once and returns the copy of the project it ran in."""

    @functools.cache
    def run(page: Path) -> Path:
        project = tmp_path_factory.mktemp("page") / "a copy"
        shutil.copytree(trained_project, project, symlinks=True)
        run_blocks(page, project)
        return project

    return run


@each_run_page
def test_the_blocks_run_in_order(page: Path, run_page: Callable[[Path], Path]) -> None:
    project = run_page(page)
    summaries = [json.loads(p.read_text()) for p in project.glob("logs/**/summary.json")]
    assert {s.get("status", "finished") for s in summaries} <= {"finished", "smoke"}
    assert (project / "logs" / "latest" / "summary.json").is_file()
    for command in (["check"], ["format", "--check"]):
        run_command([sys.executable, "-m", "ruff", *command, "--no-cache", "src"], project)


@pytest.mark.xdist_group("docs/how-to/python.md")
def test_the_recipe_in_python_takes_the_steps_of_train(
    trained_project: Path, run_page: Callable[[Path], Path]
) -> None:
    import torch

    page = ROOT / "docs" / "how-to" / "python.md"
    recipes = [b.text for b in read_blocks(page) if "warmup_cosine" in b.text]
    assert len(recipes) == 1
    assert 'ModelCheckpoint("checkpoints", "best"' in recipes[0]
    ours, theirs = (
        torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for folder in (run_page(page), trained_project / "logs" / "latest")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@each_run_page
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    blocks = read_blocks(page)
    assert len(blocks) == page.read_text().count("\n```") / 2
    assert {block.kind for block in blocks} <= KINDS | NEVER_RUN
    assert all(b.tag in ("", "tiny") or b.tag.startswith("not run: ") for b in blocks)


@each_page
def test_make_targets_in_the_page_exist(page: Path) -> None:
    files = [ROOT / "Makefile", *ROOT.glob("*/*.mk")]
    makefile, text = "".join(path.read_text() for path in files), page.read_text()
    targets = re.findall(r"`make ([a-z-]+)[` ]", text)
    targets += re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "harness.md"], ids=format_page_name)
def test_files_in_the_page_exist(page: Path) -> None:
    """harness.md is left out, as its blocks make another project."""
    text = page.read_text()
    made = {block.file for block in read_blocks(page)}
    for name in re.findall(r"[`\[ ]((?:src|conf|docs|tests|benchmarks|locks)/[\w./-]+\.\w+)", text):
        assert name in made or (ROOT / name).exists(), name


def list_known_keys() -> set[str]:
    """Return the keys of the default config and of every option of a group."""
    from omegaconf import OmegaConf

    from harness.config.keys import iterate_keys
    from tests.project.test_conf import compose_option

    chosen: list[tuple[str, ...]] = [()]
    of_the_model = ("model/network", "model/likelihood", "model/prior", "model/penalty")
    of_the_data = ("data", "data/augmentation", "data/condition")
    others = ("optimizer", "scheduler", "callbacks", "logger")
    for group in (*of_the_model, *of_the_data, *others):
        for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
            chosen.append((f"{group}={path.stem}",))
    composed = [compose_option(*overrides) for overrides in chosen]
    leaves = {key for cfg in composed for key in iterate_keys(OmegaConf.to_container(cfg))}
    nodes = {key.rsplit(".", i)[0] for key in leaves for i in range(1, key.count("."))}
    return leaves | nodes


def test_keys_in_the_pages_exist() -> None:
    known = list_known_keys()
    groups = ("model", "optimizer", "scheduler", "callbacks", "trainer", "data", "logger")
    pattern = re.compile(r"`((?:" + "|".join(groups) + r")\.[a-z_.]+)[=`]")
    wrong = [
        f"{format_page_name(page)}: {key}"
        for page in PAGES
        for key in pattern.findall(page.read_text())
        if key not in known and not key.endswith((".py", ".yaml", ".md", ".safetensors"))
    ]
    assert wrong == []
