"""Counts the faults that tests inject and how many were survived: docs/faults.json.

A test marked ``fault(promise, "what was injected")`` injects one fault, or as many as it tells the
fixture ``survived``; a test that fails adds one that was not. ``--faults FILE`` writes the counts
over those of the same faults there. ``--minutes N`` starts no test after so long, ``--faults-seed
N`` chooses which come first, and what is drawn inside them.
"""

import json
import os
import platform
import random
import time
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest


class Promise(StrEnum):
    """What the project promises of faults, in the order of the README's table."""

    EXACT = "A run that is killed goes on exactly where it was"
    STOPS = "Told to stop, a run saves and a sweep leaves no process"
    CHECKPOINTS = "The last checkpoint can be read; a damaged one never is"
    RANKS = "A rank that dies or hangs ends the others, and the run goes on"
    NUMBERS = "What is not finite never reaches the weights"
    DATA = "Damaged digits are made anew or refused"
    DISK = "A full disk stops a run in a line and spoils nothing"
    NETWORK = "Training goes on without W&B, its record complete"
    STRANGERS = "Nothing in a stranger's folder is executed"
    INPUT = "Bad input is refused in three lines, and leaves nothing"
    UNUSUAL = "Input that is unusual and good is accepted"


Survived = Callable[[int], None]
_counted = pytest.StashKey[list[int]]()
_started = time.monotonic()
_measured: dict[str, Any] = {}
_tally: dict[tuple[str, str], list[int]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--faults", type=Path, metavar="FILE", help="write the counts of faults to it")
    group.addoption("--faults-seed", type=int, metavar="N", help="draw other faults, in that order")
    group.addoption("--minutes", type=float, metavar="N", help="start no test after so long")


def shuffle(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("--faults-seed")) is not None:
        random.Random(seed).shuffle(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - _started > 60 * minutes:
        pytest.skip(f"{minutes:g} minutes are over")


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Survived:
    """Tells that so many more faults were injected and survived."""
    counts = request.node.stash.setdefault(_counted, [])
    return counts.append


@pytest.fixture
def faults_seed(request: pytest.FixtureRequest) -> int:
    """What makes the faults drawn in this session differ from those of another."""
    return request.config.getoption("--faults-seed") or 0


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> dict[str, Any]:
    """What a test measures, written down beside the counts."""
    found: dict[str, Any] = {}
    record_property("measured", found)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if (marker := item.get_closest_marker("fault")) and call.when == "call" and not report.skipped:
        counts = item.stash.get(_counted, None)
        good = sum(counts) if counts is not None else int(report.passed)
        report.user_properties.append(
            ("fault", [*map(str, marker.args), good + report.failed, good])
        )
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "fault":
                promise, fault, injected, good = cast(tuple[str, str, int, int], value)
                total = _tally.setdefault((promise, fault), [0, 0])
                total[0] += injected
                total[1] += good
            elif name == "measured":
                _measured.update(cast(dict[str, Any], value))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not _tally or hasattr(config, "workerinput"):  # a worker of xdist, whose counts are sent on
        return
    terminalreporter.section("faults injected and survived")
    for (promise, fault), (injected, good) in _sorted():
        terminalreporter.line(f"{injected:5d} {good:5d}  {promise}: {fault}")
    injected, good = (sum(counts) for counts in zip(*_tally.values(), strict=True))
    terminalreporter.line(f"{injected:5d} {good:5d}  in all")
    if path := config.getoption("--faults"):
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(_document(before), indent=1, ensure_ascii=False) + "\n")


def _sorted() -> list[tuple[tuple[str, str], list[int]]]:
    order = [str(promise) for promise in Promise]
    return sorted(_tally.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))


def _document(before: dict[str, Any]) -> dict[str, Any]:
    """The counts of this session, and those of the last for what was not injected this time."""
    for row in before.get("faults", []):
        _tally.setdefault((row["promise"], row["fault"]), [row["injected"], row["survived"]])
    minutes = before.get("minutes", 0.0) + (time.monotonic() - _started) / 60
    return {
        "minutes": round(minutes, 1),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "lightning", "hydra-core", "wandb")},
        },
        "faults": [
            {"promise": promise, "fault": fault, "injected": injected, "survived": good}
            for (promise, fault), (injected, good) in _sorted()
        ],
        "measured": {**before.get("measured", {}), **_measured},
    }
