"""Start a project from this template: ``make new NAME=my_study DIR=../my-study``.

Copies the tracked files, renames the package ``cvae``, leaves out what only the template
needs, and commits the rest. Needs the standard library only; with the packages of ``make install``
it also formats the code and writes the generated files again.
"""

import argparse
import importlib.util
import keyword
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import edits

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MAX_NAME = 30

# patterns of paths; * matches slashes too
TEMPLATE_ONLY = (
    *("tools/new*", "docs/how-to/new-project.md", "tests/project/test_new_project.py"),
    *("docs/measured/*", "tests/project/test_measured.py"),  # results of the template
    *("pretrained/*", "tests/project/test_pretrained.py"),
    *("CONTRIBUTING.md", ".github/ISSUE_TEMPLATE/*"),
    # earlier versions of the template
    *("src/cvae/versions.py", "tests/project/test_earlier_versions.py", "tests/project/runs/*"),
)
NOT_IN_CORE = (
    *("benchmarks/*", "docs/tables.py", "tests/project/test_benchmarks.py"),
    "tests/project/test_gpu_benchmark.py",
    *("docs/article-in-code.md", "docs/pictures.py", "docs/diagram.py"),
    "tests/project/test_article.py",
    # claims about samples and latents; those about likelihood stay
    *("src/cvae/evaluation/oracle.py", "src/cvae/evaluation/sampled.py"),
    "src/cvae/evaluation/probes.py",
    *("src/cvae/evaluation/label_control.py", "src/cvae/evaluation/classification_accuracy.py"),
    "src/cvae/evaluation/attribute_control.py",
    *("src/cvae/evaluation/latent_independence.py", "src/cvae/evaluation/latent_content.py"),
    "src/cvae/evaluation/style.py",
    *("src/cvae/evaluation/aggregated_posterior.py", "src/cvae/evaluation/variety.py"),
    *("src/cvae/evaluation/prior_samples.py", "tests/science/evaluation/sampled/*"),
)
# left out if the template is not a git repository; a name matches at the top, * at any depth
NOT_COPIED = (
    *("data", "build", "dist", "site", "wandb", "lightning_logs", ".git", ".venv*"),
    *("*__pycache__", "*.egg-info", "*_cache", ".npm"),
)


class ArgumentError(Exception):
    """An argument is wrong; the message is one line."""


def check_name(name: str) -> None:
    """Raise ArgumentError unless the name can be that of a new package."""
    if not name:
        raise ArgumentError("NAME is missing: make new NAME=my_study DIR=../my-study")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ArgumentError(f"NAME={name}: use lower-case letters, digits and _, such as my_study")
    if keyword.iskeyword(name):
        raise ArgumentError(f"NAME={name}: is a keyword of Python")
    if len(name) > MAX_NAME:
        raise ArgumentError(f"NAME={name}: use at most {MAX_NAME} characters")
    if name in sys.stdlib_module_names:
        raise ArgumentError(f"NAME={name}: is a module of the standard library")
    own_names = {
        path.name.partition(".")[0]
        for folder in (ROOT, ROOT / "src")
        for path in visible_paths(folder)
    }
    if name in own_names:
        raise ArgumentError(f"NAME={name}: this project has a module or folder of that name")
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    imported = {n for t in texts for n in re.findall(r"^\s*(?:from|import) (\w+)", t, re.MULTILINE)}
    if name in imported or importlib.util.find_spec(name):
        raise ArgumentError(f"NAME={name}: is an installed package")


def visible_paths(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def check_folder(typed: str) -> Path:
    """Return the folder for the new project. Raise ArgumentError if it has files."""
    if not typed:
        raise ArgumentError("DIR is missing: make new NAME=my_study DIR=../my-study")
    folder = Path(typed).expanduser().resolve()
    if folder.is_relative_to(ROOT):
        raise ArgumentError(f"DIR={typed}: is in the template; choose a folder next to it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"DIR={typed}: exists and is not an empty folder")
    return folder


def git(*arguments: str, cwd: Path = ROOT) -> str | None:
    """Return the output of a git command; None if it fails or git is absent."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def is_repository() -> bool:
    """Return whether the template is a git repository, and not an archive within another one."""
    top = git("rev-parse", "--show-toplevel")
    return top is not None and Path(top).resolve() == ROOT


def list_files() -> list[str]:
    """Return the paths of the template's files: the tracked ones, or all of an archive."""
    if is_repository():
        return [n for n in (git("ls-files", "-z") or "").split("\0") if (ROOT / n).is_file()]
    paths = []
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [n for n in folders if not matches_any((here / n).as_posix(), NOT_COPIED)]
        paths += [(here / name).as_posix() for name in names]
    return [name for name in paths if not name.startswith("logs/") or name == "logs/README.md"]


def matches_any(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def copy_files(folder: Path, name: str, keep: str) -> None:
    """Copy the kept files under their new names, and the files that replace some of them."""
    dropped = TEMPLATE_ONLY + (NOT_IN_CORE if keep == "core" else ())
    kept = {path: ROOT / path for path in list_files() if not matches_any(path, dropped)}
    for overlay in (HERE / "both", HERE / keep):
        replaced = [path for path in overlay.rglob("*") if path.is_file()]
        kept |= {path.relative_to(overlay).as_posix(): path for path in replaced}
    for path, source in kept.items():
        target = folder / edits.rename(path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
        if not target.is_symlink() and (text := edits.read_text(source)) is not None:
            target.write_bytes(edits.rename(text, name).encode())


def commit(folder: Path, owner: str, message: str) -> bool:
    """Commit all files in a new repository; return whether git could do it."""
    mail = git("config", "user.email") or "unknown@localhost"
    config = (f"user.name={owner}", f"user.email={mail}", "commit.gpgsign=false")
    identity = [word for setting in config for word in ("-c", setting)]
    steps = (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "--all"),
        (*identity, "commit", "--quiet", "--no-verify", f"--message={message}"),
    )
    return all(git(*step, cwd=folder) is not None for step in steps)


def describe_template() -> str:
    """Return name, version and commit of the template; warn of uncommitted changes."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name, version = (
        re.findall(rf'^{key} = "(.*)"', text, re.MULTILINE)[0] for key in ("name", "version")
    )
    if not is_repository():
        return f"{name} {version}"
    description = f"{name} {version}, commit {git('rev-parse', '--short', 'HEAD')}"
    if not git("status", "--porcelain"):
        return description
    print("warning: uncommitted changes are copied too; untracked files are not")
    return f"{description} with changes"


def main(arguments: list[str] | None = None) -> None:
    """Create the project, or exit with one line that says why not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("dir")
    parser.add_argument("--keep", default="core")
    options = parser.parse_args(arguments)
    try:
        check_name(options.name)
        target = check_folder(options.dir)
        if options.keep not in ("core", "all"):
            raise ArgumentError(f"KEEP={options.keep}: must be core or all")
    except ArgumentError as error:
        raise SystemExit(f"error: {error}") from None
    origin = describe_template()
    owner = git("config", "user.name") or f"the authors of {options.name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as temporary:
        folder = Path(temporary) / "project"
        copy_files(folder, options.name, options.keep)
        edits.edit_project_files(folder, options.name, owner, origin)
        edits.drop_references(folder, options.name, options.keep)
        failed = edits.run_tools(folder)
        is_committed = commit(folder, owner, f"Start {options.name} from {origin}")
        folder.replace(target)
    print(f"{options.name}: {target}")
    if not is_committed:
        print("git could not commit the files: run git init, git add and git commit there")
    if failed:
        print(f"then run once in {target}: make install {' '.join(failed)}")
    else:
        print(f"next: cd {shlex.quote(options.dir)} && make install && make train")


if __name__ == "__main__":
    main()
