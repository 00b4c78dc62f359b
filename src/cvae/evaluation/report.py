"""All claims of one model: measured, and shown."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cvae.evaluation.claim import Metric, Metrics, NotApplicable, Subject, standard_error
from cvae.evaluation.claims import CLAIMS
from cvae.evaluation.oracle import Progress as Told
from cvae.terminal import encodable


class Report(NamedTuple):
    """What was measured, by claim."""

    metrics: dict[str, Metrics]
    left_out: dict[str, str]  # claims that say nothing about the model, and why
    seconds: dict[str, float]


@torch.no_grad()  # training of probes and classifiers enables them again
def evaluate(subject: Subject, claims: Sequence[str], with_targets: bool = True) -> Report:
    """Measure claims, in the order of :data:`cvae.evaluation.claims.CLAIMS`, and their judge.

    Args:
        with_targets: whether the targets, those of the default CVAE on MNIST, are shown.
    """
    report = Report({}, {}, {})
    for name in (known for known in CLAIMS if known in claims):
        start = time.perf_counter()
        try:
            found = CLAIMS[name](subject)
        except NotApplicable as reason:
            report.left_out[name] = str(reason)
            continue
        if not with_targets:
            found = {k: m._replace(at_least=None, at_most=None) for k, m in found.items()}
        report.metrics[name] = found
        report.seconds[name] = round(time.perf_counter() - start, 1)
    if subject.oracle.is_asked:
        report.metrics["oracle"] = oracle_accuracy(subject, with_targets)
    return report


def oracle_accuracy(subject: Subject, with_targets: bool = True) -> Metrics:
    """How good the judge is: share of real test images, grey and binarized, that it names right."""
    labels = subject.test.labels
    found: Metrics = {}
    for name, predicted, target in (
        ("oracle/accuracy", subject.test_prediction.labels, 0.993 if with_targets else None),
        ("oracle/accuracy_drawn", subject.test_prediction_drawn.labels, None),
    ):
        right = (predicted == labels).double()
        found[name] = Metric(float(right.mean()), "%", standard_error(right), at_least=target)
    return found


@contextmanager
def progress_bar() -> Iterator[Told]:
    """What is being done, on a terminal; elsewhere nothing is written."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), transient=True) as bar:
        task = bar.add_task("", total=1.0, visible=bar.console.is_terminal)

        def told(doing: str, share: float) -> None:
            bar.update(task, description=doing, completed=share)

        yield told


def as_json(report: Report) -> dict[str, Any]:
    """Plain data: a flat mapping of metrics, each naming its claim; what is nan is left out."""
    metrics = {
        name: {
            "claim": claim,
            **{k: v for k, v in metric._asdict().items() if v is not None and v == v},
        }
        for claim, found in report.metrics.items()
        for name, metric in found.items()
    }
    return {"metrics": metrics, "left_out": report.left_out, "seconds": report.seconds}


_MARKS = {"met": "✓", "near": "~", "missed": "-"}
_LEGEND = "target of the default CVAE on MNIST: ✓ met, ~ within two s.e. of it, - not met"
_UNITS = {"%": " %", "nats": " nats", "bits": " bits"}


def _number(value: float, unit: str, error: float | None = None) -> str:
    if unit == "%":
        value, error = 100 * value, None if error is None else 100 * error
    digits = {"nats": 2, "bits": 4, "%": 2, "dims": 0}.get(unit, 3)
    text = f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"
    return text + _UNITS.get(unit, "")


def _target(metric: Metric) -> str:
    low, high = metric.at_least, metric.at_most
    if low is None and high is None:
        return ""
    scale, digits = (100, 1) if metric.unit == "%" else (1, 2)
    shown = [f"{scale * bound:.{digits}f}" for bound in (low, high) if bound is not None]
    words = "-".join(shown) if len(shown) == 2 else ("≥ " if low is not None else "≤ ") + shown[0]
    return f"{words} {_MARKS[metric.standing or 'met']}"


def print_table(report: Report, title: str, console: Console | None = None) -> None:
    """A line for every metric, 80 columns wide: value and standard error, target, real data."""
    console = console or Console()
    shown = partial(encodable, encoding=console.encoding)
    table = Table(
        title=Text(shown(title)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("metric", overflow="fold")
    table.add_column(shown("value ± s.e."), justify="right", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("real data", justify="right", no_wrap=True)
    for found in report.metrics.values():
        for name, metric in found.items():
            floor = "" if metric.floor is None else _number(metric.floor, metric.unit)
            value = _number(metric.value, metric.unit, metric.standard_error)
            table.add_row(*map(shown, (name, value, _target(metric), floor)))
        table.add_section()
    console.print(table)
    metrics = [m for found in report.metrics.values() for m in found.values()]
    if any(m.standing for m in metrics):
        console.print(shown(_LEGEND), style="dim", highlight=False, soft_wrap=True)
    for claim, reason in report.left_out.items():
        console.print(f"{claim}: left out, {reason}", soft_wrap=True)
