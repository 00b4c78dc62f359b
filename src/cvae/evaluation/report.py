"""Measure the claims of one model and show the results as a table or JSON."""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvae.data import MNISTDataModule
from cvae.evaluation.claim import Metric, Metrics, NotApplicable
from cvae.evaluation.claims import CLAIMS, Subject
from cvae.evaluation.device import full_float32
from cvae.evaluation.progress import ClaimProgress, claim_progress
from cvae.evaluation.targets import add_targets
from cvae.models import Autoencoder
from harness.contract.terminal import make_encodable

# columns of the W&B table after the metric's name: the keys of a metric in evaluation.json
COLUMNS = ("claim", "value", "standard_error", "floor", "at_least", "at_most", "unit")


class Report(NamedTuple):
    """Metrics, skipped claims and seconds of one evaluation."""

    metrics: dict[str, Metrics]
    left_out: dict[str, str]  # claims that do not apply to the model, with the reason
    seconds: dict[str, float]


def measure(
    model: Autoencoder,
    data: MNISTDataModule,
    claims: Sequence[str] | None,
    num_samples: int,
    num_generated: int,
    device: torch.device | str = "cpu",
) -> tuple[Subject, Report]:
    """Prepare the data, measure the claims of a model, and show progress.

    Args:
        model: the model, in evaluation mode; it is moved to the device.
        data: the data, not set up yet.
        claims: names of the claims to measure; None for all.
        num_samples: K of the importance-weighted bound.
        num_generated: samples per label.
        device: where to compute; scikit-learn and scikit-image always use the CPU.
    """
    data.prepare_data()
    data.setup()
    splits = data.splits()
    cache = data.data_dir / Path(data.dataset).name / "oracle"
    with claim_progress() as progress:
        subject = Subject(
            model.to(device),
            **splits,
            num_samples=num_samples,
            num_generated=num_generated,
            progress=progress.update,
            cache=cache,
            class_names=data.class_names,
        )
        # a subclass may also use the name MNIST
        is_mnist = type(data) is MNISTDataModule and data.dataset == "MNIST"
        has_targets = is_mnist and model.conditional
        return subject, evaluate(subject, list(claims or CLAIMS), has_targets, progress)


@torch.no_grad()  # probes and classifiers enable gradients when they train
@full_float32()
def evaluate(
    subject: Subject,
    claims: Sequence[str],
    has_targets: bool = False,
    progress: ClaimProgress | None = None,
) -> Report:
    """Measure claims, in the order of :data:`cvae.evaluation.claims.CLAIMS`.

    The report ends with the accuracy of the classifiers that the claims used.

    Args:
        subject: the model and its data.
        claims: names of the claims.
        has_targets: whether :mod:`cvae.evaluation.targets` apply to this model and these images.
        progress: gets the name and the outcome of every claim; None to show nothing.
    """
    report = Report({}, {}, {})
    apply_targets = add_targets if has_targets else dict
    names = [known for known in CLAIMS if known in claims]
    progress = progress or ClaimProgress(None, Console(quiet=True))
    for number, name in enumerate(names, start=1):
        progress.start_claim(name, number, len(names))
        start = time.perf_counter()
        try:
            claim_metrics = CLAIMS[name](subject)
        except NotApplicable as reason:
            report.left_out[name] = str(reason)
            progress.end_claim(f"skipped, {reason}")
            continue
        report.metrics[name] = apply_targets(claim_metrics)
        report.seconds[name] = round(time.perf_counter() - start, 1)
        progress.end_claim(f"{report.seconds[name]} s")
    for name, accuracy in subject.classifier_accuracy().items():
        report.metrics[name] = apply_targets(accuracy)
    return report


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain data: metrics by name, each with its claim, without nan."""
    metrics = {
        name: {
            "claim": claim,
            **{k: v for k, v in metric._asdict().items() if _is_json_value(v)},
        }
        for claim, claim_metrics in report.metrics.items()
        for name, metric in claim_metrics.items()
    }
    for entry in metrics.values():
        entry.pop("floor_error", None)  # only some metrics have it
    return {"metrics": metrics, "left_out": report.left_out, "seconds": report.seconds}


def _is_json_value(value: Any) -> bool:
    """Return whether JSON can hold a value: not None, nan or an infinity."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


_MARKS = {"met": "✓", "near": "~", "missed": "-"}
_LEGEND = "target of the default CVAE on MNIST: ✓ met, ~ within two s.e. of it, - not met"
_DIGITS = {"%": 2, "nats": 2, "bits": 4, "dims": 0}  # of values; 3 for others
_SHOWN_UNITS = ("%", "nats", "bits")


def _format_value(metric: Metric, value: float | None, error: float | None = None) -> str:
    """Return a value of the metric as text, with its unit; empty for None."""
    if value is None:
        return ""
    digits = _DIGITS.get(metric.unit, 3)
    text = f"{metric.scale * value:.{digits}f}"
    text += "" if error is None else f" ± {metric.scale * error:.{digits}f}"
    return f"{text} {metric.unit}" if metric.unit in _SHOWN_UNITS else text


def _format_target(metric: Metric) -> str:
    low, high = metric.at_least, metric.at_most
    digits = 1 if metric.unit == "%" else 2
    shown = [f"{metric.scale * bound:.{digits}f}" for bound in (low, high) if bound is not None]
    if not shown:
        return ""
    text = "-".join(shown) if len(shown) == 2 else ("≥ " if low is not None else "≤ ") + shown[0]
    return f"{text} {_MARKS[metric.status or 'met']}"


def print_table(report: Report, title: str, console: Console | None = None) -> None:
    """Print one line per metric in 80 columns: value ± standard error, target, real data."""
    console = console or Console()
    to_encodable = partial(make_encodable, encoding=console.encoding)
    table = Table(
        title=Text(to_encodable(title)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("metric", overflow="fold")
    table.add_column(to_encodable("value ± s.e."), justify="right", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("real data", justify="right", no_wrap=True)
    for claim_metrics in report.metrics.values():
        for name, metric in claim_metrics.items():
            value = _format_value(metric, metric.value, metric.standard_error)
            floor = _format_value(metric, metric.floor)
            table.add_row(*map(to_encodable, (name, value, _format_target(metric), floor)))
        table.add_section()
    console.print(table)
    metrics = [m for claim_metrics in report.metrics.values() for m in claim_metrics.values()]
    if any(m.status for m in metrics):
        console.print(to_encodable(_LEGEND), style="dim", highlight=False, soft_wrap=True)
    for claim, reason in report.left_out.items():
        console.print(f"{claim}: skipped, {reason}", soft_wrap=True)
