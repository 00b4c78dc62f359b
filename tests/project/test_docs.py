"""Tests that docs/run.md matches the code: the calls between files, and the exit codes."""

import ast
import re

from harness.contract import errors
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "run.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| `([^`]+)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)


def imported(path: str) -> set[str]:
    """Return the files of src/ that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names] + [str(node.module)]
        found |= {f"src/{name.replace('.', '/')}.py" for name in names}
    return found


def named_in_conf() -> set[str]:
    """Return the files of the classes and functions that conf/ names."""
    texts = [path.read_text() for path in (ROOT / "conf").rglob("*.yaml")]
    targets = {name for text in texts for name in re.findall(r"_target_: (\S+)", text)}
    return {f"src/{target.rpartition('.')[0].replace('.', '/')}.py" for target in targets}


def test_a_run_goes_the_way_that_its_page_says() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 15))
    reached, of_conf = {"src/train.py"}, named_in_conf()
    for _, file, _, called in ROWS:
        assert file in reached or file in of_conf, f"nothing before {file} calls it"
        calls = re.findall(r"`([^`]+)`", called)
        for other in calls:
            is_asked_for = file.endswith("science.py") and other.endswith("/settings.py")
            assert other in imported(file) | of_conf or is_asked_for, f"{file} calls no {other}"
        reached |= set(calls)


def test_exit_codes_are_those_of_the_exceptions() -> None:
    table = PAGE.partition("## Exit codes")[2]
    cells = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    told = {int(code) for cell in cells for code in cell.split(", ")}
    raised = {errors.ConfigError.exit_code, errors.RunFailed.exit_code, errors.Diverged.exit_code}
    assert raised | errors.STOPPED | {errors.BROKEN_PIPE} <= told
