"""Counts the faults that tests inject, and those survived, for docs/measured/faults.json.

A test marked ``fault(promise, "what was injected")`` counts as one fault, or as the number that it
passes to the fixture ``survived``. A test that fails adds one fault that was not survived.

``--faults FILE`` updates the counts in a file, ``--minutes N`` starts no test after N minutes, and
``--faults-seed N`` shuffles the tests and seeds the random faults in them.
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
    """Promises about faults, in the order of the table in docs/measured/faults.md."""

    EXACT = "A killed run resumes exactly where it was"
    STOPS = "On a stop signal, a run saves its state and a sweep leaves no process"
    CHECKPOINTS = "The last checkpoint loads; a damaged one is never loaded"
    RANKS = "A dead or hung rank or data worker ends the run instead of blocking it"
    NUMBERS = "A non-finite value never reaches the weights"
    DATA = "Damaged data are rebuilt or rejected"
    DISK = "A full disk fails a run with one line and damages no file"
    NETWORK = "Training continues without W&B, with complete metrics"
    STRANGERS = "Nothing in an untrusted run folder is executed"
    INPUT = "Bad input fails with at most three lines and no traceback"
    UNUSUAL = "Unusual but valid input is accepted"


Survived = Callable[[int], None]
_counted = pytest.StashKey[list[int]]()
_started = time.monotonic()
_measured: dict[str, Any] = {}
_tally: dict[tuple[str, str], list[int]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--faults", type=Path, metavar="FILE", help="update the counts in FILE")
    group.addoption("--faults-seed", type=int, metavar="N", help="seed of order and faults")
    group.addoption("--minutes", type=float, metavar="N", help="start no test after N minutes")


def shuffle(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("--faults-seed")) is not None:
        random.Random(seed).shuffle(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - _started > 60 * minutes:
        pytest.skip(f"{minutes:g} minutes are over")


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Survived:
    """Return a function that adds a number of faults that were injected and survived."""
    counts = request.node.stash.setdefault(_counted, [])
    return counts.append


@pytest.fixture
def faults_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of the random faults of this session."""
    return request.config.getoption("--faults-seed") or 0


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> dict[str, Any]:
    """Return a dict for values that a test measures, saved with the counts."""
    found: dict[str, Any] = {}
    record_property("measured", found)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if (marker := item.get_closest_marker("fault")) and call.when == "call" and not report.skipped:
        counts = item.stash.get(_counted, None)
        num_survived = sum(counts) if counts is not None else int(report.passed)
        report.user_properties.append(
            ("fault", [*map(str, marker.args), num_survived + report.failed, num_survived])
        )
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "fault":
                promise, fault, injected, num_survived = cast(tuple[str, str, int, int], value)
                total = _tally.setdefault((promise, fault), [0, 0])
                total[0] += injected
                total[1] += num_survived
            elif name == "measured":
                _measured.update(cast(dict[str, Any], value))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not _tally or hasattr(config, "workerinput"):  # an xdist worker sends its counts
        return
    terminalreporter.section("faults injected and survived")
    for (promise, fault), (injected, num_survived) in _sort_tally():
        terminalreporter.line(f"{injected:5d} {num_survived:5d}  {promise}: {fault}")
    injected, num_survived = (sum(counts) for counts in zip(*_tally.values(), strict=True))
    terminalreporter.line(f"{injected:5d} {num_survived:5d}  in all")
    if path := config.getoption("--faults"):
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(_make_document(before), indent=1, ensure_ascii=False) + "\n")


def _sort_tally() -> list[tuple[tuple[str, str], list[int]]]:
    order = [str(promise) for promise in Promise]
    return sorted(_tally.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))


def _make_document(before: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of this session, and earlier counts of faults not injected in it."""
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
            {"promise": promise, "fault": fault, "injected": injected, "survived": num_survived}
            for (promise, fault), (injected, num_survived) in _sort_tally()
        ],
        "measured": {**before.get("measured", {}), **_measured},
    }
