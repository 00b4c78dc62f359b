"""The blocks of the README run as they stand; those marked tiny, at a tiny budget."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT, clean_environment, run_warm

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:<!-- (?P<tag>[^>]*?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)```", re.DOTALL)
TINY = (
    "trainer.max_epochs=1 trainer.limit_train_batches=3 "
    "trainer.limit_val_batches=1 trainer.limit_test_batches=1 test_num_samples=2"
)


class Block(NamedTuple):
    tag: str
    kind: str
    text: str


BLOCKS = [Block(m["tag"] or "", m["kind"], m["text"]) for m in BLOCK.finditer(README)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that this one and its logs/latest do not change."""
    copy = tmp_path_factory.mktemp("readme") / "a copy"
    (copy / "logs").mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    if (ROOT / "data" / "MNIST").is_dir():
        shutil.copytree(ROOT / "data" / "MNIST", copy / "data" / "MNIST")
    return copy


def run(command: list[str], project: Path) -> None:
    """Run a command in the project; a script of ours saves the seconds of its imports."""
    source = str(project / "src")
    if command[0] == "python" and command[1].startswith("src/"):
        done = run_warm(project / command[1], command[2:], project, 600, PYTHONPATH=source)
    else:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        environment = {**clean_environment(), "PATH": path, "PYTHONPATH": source}
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def tiny(line: str) -> str:
    command, _, comment = line.partition("#")
    if command.startswith("python src/evaluate.py"):
        return f"{command.rstrip()} claims=bound num_samples=2 #{comment}"
    if not command.startswith("python src/train.py"):
        return line
    return f"{command.rstrip()} {TINY} #{comment}"


def test_the_blocks_run_in_their_order(project: Path) -> None:
    for tag, kind, text in BLOCKS:
        if tag.startswith("not run"):
            continue
        if kind == "bash":
            for line in text.splitlines():
                run(shlex.split(tiny(line) if tag == "tiny" else line, comments=True), project)
        elif named := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            (project / named[1]).write_text(text)
        elif kind == "python":
            run([sys.executable, "-c", text], project)
    finished = [p.parent for p in project.glob("logs/**/summary.json")]
    assert len(finished) == 13
    assert (project / "logs" / "latest").resolve() in finished


def test_every_kind_of_block_is_known() -> None:
    assert {block.kind for block in BLOCKS} <= {"", "bash", "python", "yaml"}
    assert all(block.tag in ("", "tiny") or block.tag.startswith("not run") for block in BLOCKS)


def test_the_tables_are_those_of_their_files() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    for page in script["PAGES"]:
        text = page.read_text()
        assert script["with_tables"](text) == text
        assert script["TABLE"].findall(text)


def test_make_targets_are_those_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in [*re.findall(r"make ([a-z-]+)`", README), "train", "test"]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_keys_named_in_the_readme_exist() -> None:
    from omegaconf import OmegaConf

    from harness.config.keys import leaf_keys
    from tests.project.test_conf import compose

    known = set(leaf_keys(OmegaConf.to_container(compose())))
    groups = ("model", "optimizer", "callbacks", "trainer", "data", "logger")
    for key in re.findall(r"`((?:" + "|".join(groups) + r")\.[a-z_.]+)[=`]", README):
        assert key in known, key
