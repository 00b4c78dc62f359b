"""Tests of make help, make doctor and CITATION.cff, which newcomers see first."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, clean_environment

DOCTOR = Path("tools") / "doctor.py"
LABELS = [
    *("project", "system", "python", "cores", "memory", "/dev/shm", "gpu", "W&B", "data"),
    *("variables", "package"),
]


def run_doctor(root: Path, *options: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, str(root / DOCTOR)],
        env={**clean_environment(), "DOCTOR_TIMEOUT": "60", **variables},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [label for text in lines if (label := text.split()[0]) in LABELS] == LABELS
    return done.stdout


def test_doctor_reports_versions_and_account_but_no_key(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    (tmp_path / "tools").mkdir()
    for name in (DOCTOR, "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    pins = tmp_path / "constraints.txt"
    pins.write_text(re.sub(r"(?m)^scipy==.*$", "scipy==0.1", pins.read_text()))
    text = run_doctor(
        tmp_path,
        WANDB_API_KEY=key,
        WANDB_BASE_URL="https://user:secret@wandb.example.org",
        WANDB_MODE="online",
    )
    assert re.search(r"^  scipy +\S+ +0\.1  <- differs$", text, re.MULTILINE)
    assert not re.search(r"^  torch .*differs", text, re.MULTILINE)
    assert key not in text
    assert "secret" not in text
    flat = " ".join(text.split())
    assert "mode online, account found, server https://wandb.example.org" in flat
    assert "not a git checkout" in text
    assert re.search(r"torch, built for .*, sees ", flat)


def test_doctor_works_without_packages_or_project_files(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / DOCTOR, tmp_path / DOCTOR)
    text = run_doctor(tmp_path, "-S")
    assert "No module named 'torch'" in " ".join(text.split())
    assert re.search(r"^W&B +not installed$", text, re.MULTILINE)


def test_doctor_lists_the_sets_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / DOCTOR, tmp_path / DOCTOR)
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "images").write_bytes(bytes(3_000_000))
    (raw / "labels").write_bytes(b"0")
    assert "data      MNIST (2 files, 3 MB)\n" in run_doctor(tmp_path, "-S")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_help_lists_every_target_within_80_columns() -> None:
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, env=os.environ, check=True
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [text.split()[0] for text in lines if text.startswith("  ")]
    makefile = (ROOT / "Makefile").read_text()
    included = " ".join(re.findall(r"(?m)^-include (.*)$", makefile)).split()
    texts = [makefile, *((ROOT / f).read_text() for f in included if (ROOT / f).is_file())]
    declared = re.findall(r"(?m)^\.PHONY: (.*)$", "\n".join(texts))
    assert sorted(listed) == sorted(" ".join(declared).split())


def test_the_citation_names_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
