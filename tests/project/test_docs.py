"""The pages of docs/ match the code and link to what exists; check_site.py finds foreign files."""

import ast
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.contract import errors
from tests.conftest import ROOT

DOCS = ROOT / "docs"
RUN_PAGE = (DOCS / "design" / "run.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| `([^`]+)` \| (.+) \| (.+) \|$", RUN_PAGE, re.MULTILINE)
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "logs" / "README.md", *sorted(DOCS.rglob("*.md"))]
CODE = re.compile(r"^ *(```+)[^`\n]*\n.*?^ *\1 *$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|\b(?:src|srcset|href)=\"([^\"]+)\"")


def find_imported_files(path: str) -> set[str]:
    """Return the files of src/ that a file imports, also within functions."""
    files = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names] + [str(node.module)]
        files |= {f"src/{name.replace('.', '/')}.py" for name in names}
    return files


def find_files_named_in_conf() -> set[str]:
    """Return the files of the classes and functions that conf/ names."""
    texts = [path.read_text() for path in (ROOT / "conf").rglob("*.yaml")]
    targets = {name for text in texts for name in re.findall(r"_target_: (\S+)", text)}
    return {f"src/{target.rpartition('.')[0].replace('.', '/')}.py" for target in targets}


def test_calls_in_the_page_match_the_imports() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 16))
    reached, named_in_conf = {"src/train.py"}, find_files_named_in_conf()
    for _, file, _, called in ROWS:
        assert file in reached or file in named_in_conf, f"nothing before {file} calls it"
        calls = re.findall(r"`([^`]+)`", called)
        for other in calls:
            is_settings_lookup = file.endswith("science.py") and other.endswith("/settings.py")
            assert other in find_imported_files(file) | named_in_conf or is_settings_lookup, (
                f"{file} calls no {other}"
            )
        reached |= set(calls)


def test_the_page_lists_the_exit_codes_of_the_exceptions() -> None:
    table = (DOCS / "reference" / "exit-codes.md").read_text()
    cells = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    documented = {int(code) for cell in cells for code in cell.split(", ")}
    raised = {errors.ConfigError.exit_code, errors.RunFailed.exit_code, errors.Diverged.exit_code}
    assert raised | errors.STOPPED | {errors.BROKEN_PIPE} <= documented


def find_anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ +(.+?) *#*$", CODE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", CODE.sub("", page.read_text()))
    for target in (first or second for first, second in LINK.findall(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target}: no such file"
        if anchor and found.suffix == ".md":
            assert anchor in find_anchors(found), f"{target}: no such heading"


def iterate_pages(nav: Any) -> Iterator[str]:
    """Yield the pages of a navigation: a list of pages, or of titles with more of them."""
    for entry in nav if isinstance(nav, list) else nav.values():
        yield from [entry] if isinstance(entry, str) else iterate_pages(entry)


def test_every_page_is_in_the_navigation() -> None:
    settings = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    excluded = settings["exclude_docs"].split()
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert sorted(iterate_pages(settings["nav"])) == sorted(pages - set(excluded))


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ('<script src="https://other.example/a.js"></script>', 1),
        ('<link rel="stylesheet" href="//other.example/a.css">', 1),
        ('<img src="https://other.example/a.png">', 1),
        ("<style>@import 'https://other.example/a.css'; a { color: red }</style>", 1),
        ('<p style="background: url(https://other.example/a.png)"></p>', 1),
        ('<div class="mermaid">', 1),
        ('<a href="https://other.example">a link</a> <img src="images/a.png">', 0),
        ('<link href="assets/a.css"><script src="/a.js"></script><img src="data:x//y">', 0),
    ],
)
def test_files_of_another_host_are_found(page: str, count: int) -> None:
    script = runpy.run_path(str(DOCS / "check_site.py"))
    assert len(script["find_foreign_in_page"](page)) == count
