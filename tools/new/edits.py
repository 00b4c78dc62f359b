"""Edits that turn copied files into a new project: names, references to left-out files, format."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import tokenize
from collections.abc import Callable
from pathlib import Path
from string import Template

PACKAGE = "cvae"
ROOT = Path(__file__).resolve().parents[2]
MAX_LINE = 100
ROOTS = ("", "src", "benchmarks", "docs", "locks", "tools")  # folders of modules
GENERATORS = ("schemas.py", "reference.py")  # in docs/; make schemas runs them
PACKAGE_USES = re.compile(  # in code and paths; not model=cvae or run names such as cvae-mlp-z32-s1
    r"(?<![\w/-])cvae(?=\.(?!(?:yaml|md|json|csv|png|svg|ckpt)\b)[A-Za-z_{])"  # cvae.models
    r"|(?<=\bfrom )cvae(?= import\b)|(?<=\bimport )cvae\b"
    r"|(?<=\bsrc/)cvae\b(?![-.])|(?<=[ `])cvae(?=/)"
    r'|(?<=^PACKAGE = ")cvae(?=")',
    re.MULTILINE,
)
TABLE = re.compile(r"<!-- table: \w+ -->\n.*?<!-- end -->\n*", re.DOTALL)
FULL_ONLY = re.compile(r"<!-- all -->\n+(.*?)<!-- end all -->\n+", re.DOTALL)
# such as "- see [a](a.md)."
LINK_ITEM = re.compile(r"^- [^\[\n]*\[[^\]]*\]\(([^)#:\s]+)\)\.\n", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def read_text(path: Path) -> str | None:
    """Return the text of a file; None if it is binary."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def rename(text: str, name: str) -> str:
    """Return the text with the name of the package in imports, targets and paths replaced."""
    return PACKAGE_USES.sub(name, text).replace("conditional-vae", name.replace("_", "-"))


def replace_patterns(
    path: Path, *changes: tuple[str, str | Callable[[re.Match[str]], str]]
) -> None:
    """Replace patterns in a file, if it exists."""
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        for pattern, new in changes:
            text = re.sub(pattern, new, text, flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")


def edit_project_files(folder: Path, name: str, owner: str, origin: str) -> None:
    """Write the names of the project into the files that hold them."""
    title = name.replace("_", "-")
    for stub in ("README.md", "CHANGELOG.md", "CITATION.cff"):
        text = Template((folder / stub).read_text(encoding="utf-8"))
        filled = text.substitute(NAME=name, TITLE=title, OWNER=owner, ORIGIN=origin)
        (folder / stub).write_text(filled, encoding="utf-8")
    description = f"{title}, a study that started from a conditional VAE on MNIST"
    replace_patterns(
        folder / "pyproject.toml",
        (r'^name = ".*"', f'name = "{title}"'),
        (r'^version = ".*"', 'version = "0.1.0"'),
        (r'^description = ".*"', f'description = "{description}"'),
        (rf"^{PACKAGE} = ", f"{name} = "),
        (rf'"{PACKAGE}"', f'"{name}"'),
    )
    replace_patterns(folder / "zensical.toml", (r'^site_name = ".*"', f'site_name = "{title}"'))
    line = f"Copyright (c) {time.localtime().tm_year} {owner}"
    replace_patterns(folder / "LICENSE", (r"^(Copyright .*)$", rf"\1\n{line}"))


def drop_references(folder: Path, name: str, keep: str) -> None:
    """Remove imports, settings, rows and links that name files left out of the project."""
    replace_patterns(
        folder / "src" / name / "settings.py", (rf"^from {name}\.versions import .*\n", "")
    )

    def keep_existing(match: re.Match[str]) -> str:
        there = [word for word in match[1].split() if (folder / word).exists()]
        return f"-include {' '.join(there)}\n" if there else ""

    replace_patterns(folder / "Makefile", (r"^-include (.*)\n", keep_existing))
    filter_strict_modules(folder)
    filter_navigation(folder)
    evaluation = f"src/{PACKAGE}/evaluation"
    there = {path.name for path in (folder / rename(evaluation, name)).glob("*.py")}
    dropped_claims = {
        path.stem for path in (ROOT / evaluation).glob("*.py") if path.name not in there
    }
    for page in (folder / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        text = TABLE.sub("", FULL_ONLY.sub("" if keep == "core" else r"\1", text))
        text = drop_rows(text, dropped_claims)
        page.write_text(remove_broken_links(text, page), encoding="utf-8")
    texts = "".join(page.read_text(encoding="utf-8") for page in folder.rglob("*.md"))
    for picture in (folder / "docs" / "images").glob("*"):
        if picture.name not in texts:
            picture.unlink()


def drop_rows(text: str, claims: set[str]) -> str:
    """Return Markdown without the table rows whose first cell names one of the claims."""
    kept, is_kept = [], True
    for line in text.splitlines(keepends=True):
        cell = re.match(r"\|([^|]*)\|", line)
        if cell is None or cell[1].strip():  # an empty first cell continues the row above
            is_kept = cell is None or not claims & set(re.findall(r"\w+", cell[1]))
        kept += [line] if is_kept else []
    return "".join(kept)


def remove_broken_links(text: str, page: Path) -> str:
    """Return Markdown with links to missing files as text, and without missing pictures.

    A list item that is such a link is dropped.
    """
    text = LINK_ITEM.sub(lambda found: found[0] if (page.parent / found[1]).exists() else "", text)

    def keep_text(match: re.Match[str]) -> str:
        if (page.parent / match[3]).exists():
            return match[0]
        return "" if match[1] else match[2]

    return LINK.sub(keep_text, text)


def filter_strict_modules(folder: Path) -> None:
    """Drop the modules that do not exist from mypy's list in pyproject.toml."""
    files = {path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py")}
    files |= {parent for file in files for parent in file.parents}

    def exists(module: str) -> bool:
        path = module.removesuffix(".*").replace(".", "/")
        return any(Path(root) / path in files for root in ROOTS)

    def filtered(match: re.Match[str]) -> str:
        names = ", ".join(f'"{n}"' for n in re.findall(r'"([^"]+)"', match[2]) if exists(n))
        rows = textwrap.fill(names, 96, initial_indent="    ", subsequent_indent="    ")
        return f"{match[1]}{rows},\n{match[3]}"

    modules = r"(?s)^(module = \[\n)(.*?)(\]\ndisallow_any_generics)"
    replace_patterns(folder / "pyproject.toml", (modules, filtered))


def filter_navigation(folder: Path) -> None:
    """Drop the pages that do not exist from the navigation of the site."""
    path = folder / "zensical.toml"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        page = re.compile(r'^\s*\{ "[^"]+" = "([^"]+\.md)" \},$')
        kept = [n for n in lines if not (m := page.match(n)) or (folder / "docs" / m[1]).exists()]
        text = re.sub(r'^ *\{ "[^"]+" = \[\n *\] \},\n', "", "".join(kept), flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")


def wrap_prose(path: Path) -> None:
    """Break lines of docstrings and comments that are too long with the new name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if max(map(len, lines), default=0) <= MAX_LINE:
        return
    prose: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            is_text = token.string.startswith(('"""', 'r"""', "#"))
            if is_text and not token.line[: token.start[1]].strip():
                prose |= set(range(token.start[0], token.end[0] + 1))
    for number in sorted(prose, reverse=True):
        line = lines[number - 1]
        if len(line) > MAX_LINE and " " in line.strip():
            indent = re.match(r"\s*(?:# )?", line)
            assert indent is not None
            at = line.rfind(" ", len(indent[0]), MAX_LINE + 1)
            hanging = "    " if re.match(r"\s+\w+: ", line) else ""
            lines[number - 1 : number] = [line[:at], indent[0] + hanging + line[at + 1 :]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_tools(folder: Path) -> list[str]:
    """Format the code and write generated files; return the make targets that failed."""
    python = [sys.executable, "-B"]
    sort = [*python, "-m", "ruff", "check", "--select", "I", "--fix", "--quiet", "."]
    scripts = [path for name in GENERATORS if (path := folder / "docs" / name).is_file()]
    steps = (
        ("schemas", "hydra", [[*python, str(script)] for script in scripts]),
        ("format", "ruff", [sort, [*python, "-m", "ruff", "format", "--quiet", "."]]),
    )
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    failed = []
    for target, module, commands in steps:
        results = (
            subprocess.run(command, cwd=folder, env=environment, check=False).returncode
            for command in commands
        )
        if importlib.util.find_spec(module) is None or any(results):
            failed.append(target)
    for path in folder.rglob("*.py"):
        wrap_prose(path)
    shutil.rmtree(folder / ".ruff_cache", ignore_errors=True)
    return failed
