"""Runs side by side: grouped by what differs in their configs, averaged over seeds. No torch.

Reads config.yaml, summary.json and evaluation.json of run folders, and nothing else.
"""

import csv
import glob
import io
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cvae import files, trust
from cvae.runs import (
    CONFIG,
    EVALUATION,
    METRICS,
    ROOT,
    SUMMARY,
    exists,
    read_evaluation,
    read_summary,
)
from cvae.schema import ConfigError, nearest_key
from cvae.terminal import encodable

_SIGNS = (CONFIG, SUMMARY, METRICS, EVALUATION, "checkpoints", ".hydra")  # of a run's folder
_IGNORED = re.compile(  # what a run's result does not depend on
    r"(seed|name|run_dir|run_id|sweep|mode|smoke|data\.data_dir|data\.num_workers"
    r"|data\.eval_batch_size|logger|logger\..*|callbacks\.(figures|progress)\..*|trainer\.(enable_\w+|log_every_n_steps"
    r"|profiler|default_root_dir)|test|test_num_samples|rerun|resume|trust|callbacks\.pruning\..*)$"
)
_LOWER_IS_BETTER = re.compile(r"nll|bits|frechet|mmd|kl$|label_accuracy|normal_accuracy|loss")
_FIRST_METRICS = (  # of the terminal's table, as far as they are there and fit
    "test/nll_k5000",
    "test/nll_k50",
    "test/nll_k100",
    "test/elbo",
    "test/reconstruction",
    "samples/label_agreement",
    "samples/frechet_distance",
    "latent/label_accuracy_logistic",
    "latent/label_accuracy_mlp",
    "val/elbo",
)


class Run(NamedTuple):
    """One run that can be compared."""

    folder: Path
    config: dict[str, Any]  # by dotted key, without what the result does not depend on
    seed: int | None
    metrics: dict[str, float]
    units: dict[str, str]
    minimized: str | None = None  # quantity that selected the run, if lower is better


class Broken(NamedTuple):
    """A folder that cannot be compared, and why."""

    folder: Path
    reason: str


class Statistic(NamedTuple):
    mean: float
    std: float | None  # sample standard deviation over runs; None of one run
    num_runs: int


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    label: str
    runs: list[Run]
    statistics: dict[str, Statistic]


def split_pattern(path: str) -> tuple[Path, str]:
    """Split a path into its longest existing part, brackets included, and the pattern below it."""
    parts = Path(path).parts
    for length in range(len(parts), 0, -1):
        folder = Path(*parts[:length])
        if exists(folder):
            return folder, str(Path(*parts[length:])) if parts[length:] else ""
    return Path(), path


def default_output(path: str) -> Path:
    """Return where the table goes: the compared folder, or logs/ for a pattern."""
    folder, pattern = split_pattern(path)
    return (ROOT / "logs" if pattern else folder) / "compare"


def find_folders(path: str) -> list[Path]:
    """Every folder of a run below what a path or a pattern names, and every empty folder there.

    Brackets in a path that exists are literal, not a pattern.

    Raises:
        ConfigError: nothing there.
    """
    found: dict[Path, None] = {}
    walked: set[Path] = set()
    start, pattern = split_pattern(path)
    whole = str(Path(glob.escape(str(start))) / pattern)
    for match in sorted(glob.glob(whole, recursive=True)):  # noqa: PTH207 - an absolute one
        top = Path(match).resolve()
        if not top.is_dir() or walked & {top, *top.parents}:
            continue
        walked.add(top)
        for place, folders, names in os.walk(top):
            here = Path(place)
            if any(sign in names or sign in folders for sign in _SIGNS):
                folders.clear()  # what a run keeps in folders is its own
                found[here] = None
            elif not folders and not names:
                found[here] = None
            folders.sort()
    if not found:
        raise ConfigError(f"runs={path}: no run folder there")
    return list(found)


def read_run(folder: Path) -> Run | Broken:
    """What a folder says of its run."""
    try:
        if not any(folder.iterdir()):
            return Broken(folder, "empty folder")
        config = yaml.safe_load(trust.read_text(folder, CONFIG))
    except ConfigError as error:
        return Broken(folder, str(error).removeprefix(f"run={folder}: "))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return Broken(folder, f"no readable {CONFIG} in it ({type(error).__name__})")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        return Broken(folder, f"{CONFIG} is not that of a run")
    summary, evaluation = read_summary(folder), read_evaluation(folder)
    status = summary.get("status")
    if status == "smoke":
        return Broken(folder, "a smoke run")
    if status != "finished":
        reason = f": {_printable(summary['error'])}" if summary.get("error") else ""
        no_status = f"no readable {SUMMARY} in it"
        return Broken(folder, f"{_printable(status)}{reason}" if status else no_status)
    scored = summary.get("metrics")
    scored = scored if isinstance(scored, dict) else {}
    told = {k: v for k, v in scored.items() if _is_number(v)}
    measured = {
        k: m for k, m in evaluation.get("metrics", {}).items() if _is_number(_get(m, "value"))
    }
    metrics = {**told, **{k: m["value"] for k, m in measured.items()}}
    if not metrics:
        return Broken(folder, "finished, without a metric")
    units = {k: str(m.get("unit", "")) for k, m in measured.items()}
    run_dir = str(config.get("run_dir") or folder)
    flat = {
        key: value
        for key, value in _flat(config)
        if not _IGNORED.match(key) and not (isinstance(value, str) and run_dir in value)
    }
    monitor = str(summary.get("monitor")) if summary.get("mode") == "min" else None
    minimized = monitor and monitor.rpartition("/")[2]
    return Run(folder, flat, config.get("seed"), metrics, units, minimized)


def _printable(value: Any) -> str:
    """Text of a folder's, in a line that cannot steer a terminal."""
    return "".join(c for c in " ".join(str(value).split()) if c.isprintable())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _get(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, Mapping) else None


def _flat(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fewest keys, classes first, that tell apart all configs that differ."""
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [k for k in keys if len({_shown(c.get(k, "-")) for c in configs}) > 1]
    differing.sort(
        key=lambda k: (not k.endswith("_target_"), k.count(".") if "_target_" in k else 0)
    )
    chosen: list[str] = []
    parts = 1
    for key in differing:
        split = len({tuple(_shown(c.get(k, "-")) for k in [*chosen, key]) for c in configs})
        if split > parts:  # keys that follow from those before it say nothing new
            chosen.append(key)
            parts = split
    return chosen


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else _printable(value)
    return text if len(text) <= 30 else text[:27] + "..."


def _label(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    parts = []
    for key in keys:
        if key not in config:
            continue
        value, name = _shown(config[key]), key.rpartition(".")[2]
        parts.append(value.rpartition(".")[2] if name == "_target_" else f"{name}={value}")
    return " ".join(parts) or "all runs"


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in the seed alone, together."""
    keys = differing_keys([run.config for run in runs])
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_label(run.config, keys), []).append(run)
    return [group(label, found) for label, found in members.items()]


def group(label: str, runs: list[Run]) -> Group:
    """Runs to be averaged."""
    return Group(label, runs, _statistics(runs))


def _statistics(runs: Sequence[Run]) -> dict[str, Statistic]:
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        values = [float(run.metrics[name]) for run in runs if name in run.metrics]
        std = statistics.stdev(values) if len(values) > 1 else None
        found[name] = Statistic(statistics.fmean(values), std, len(values))
    return found


def metric_names(groups: Sequence[Group]) -> list[str]:
    """All that was measured, the most wanted first."""
    known = dict.fromkeys(name for group in groups for name in group.statistics)
    return [n for n in _FIRST_METRICS if n in known] + [n for n in known if n not in _FIRST_METRICS]


def check_metrics(names: Sequence[str], known: Sequence[str], key: str) -> None:
    """
    Raises:
        ConfigError: no run has such a metric.
    """
    for name in names:
        if name not in known:
            near = nearest_key(name, known)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"{key}={name}: no run has this metric{hint}")


def sort_groups(groups: Sequence[Group], metric: str) -> list[Group]:
    """The best first; groups without the metric last."""
    minimized = {run.minimized for group in groups for run in group.runs}
    is_low = _LOWER_IS_BETTER.search(metric) or metric.rpartition("/")[2] in minimized
    sign = 1 if is_low else -1

    def place(group: Group) -> tuple[bool, float]:
        found = group.statistics.get(metric)
        return found is None, 0.0 if found is None else sign * found.mean

    return sorted(groups, key=place)


def cell(group: Group, metric: str) -> str:
    """Mean ± s.d. with as many digits as they deserve; n where not all runs have the metric."""
    found = group.statistics.get(metric)
    if found is None:
        return ""
    unit = _unit(group, metric)
    scale = 100 if unit == "%" else 1
    size = abs(found.mean * scale)
    digits = 2 if unit in ("%", "nats") or size >= 10 else 3 if size >= 0.1 else 4
    text = f"{found.mean * scale:.{digits}f}"
    text += "" if found.std is None else f" ± {found.std * scale:.{digits}f}"
    text += "%" if unit == "%" else ""
    return text if found.num_runs == len(group.runs) else f"{text} (n={found.num_runs})"


def _unit(group: Group, metric: str) -> str:
    return next((run.units[metric] for run in group.runs if metric in run.units), "")


def target(metric: Mapping[str, Any]) -> str:
    """The target of a metric in evaluation.json, as text; nothing where there is none."""
    scale, digits = (100, 1) if metric.get("unit") == "%" else (1, 2)
    bounds = {"≥": metric.get("at_least"), "≤": metric.get("at_most")}
    return ", ".join(f"{k} {scale * v:.{digits}f}" for k, v in bounds.items() if v is not None)


def shown_floor(metric: Mapping[str, Any]) -> str:
    """What real data give, as text; nothing where that is unknown."""
    if (floor := metric.get("floor")) is None:
        return ""
    return f"{100 * floor:.2f}%" if metric.get("unit") == "%" else f"{floor:.3f}"


def markdown(
    groups: Sequence[Group],
    metrics: Sequence[str],
    broken: Sequence[Broken] = (),
    extra: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A table with a row for each metric and a column for each group.

    Args:
        extra: further columns: by title, a text for each metric.
    """
    extra = extra or {}
    header = ["metric, mean ± s.d.", *(f"{g.label} (n={len(g.runs)})" for g in groups), *extra]
    rows = [
        [f"`{m}`", *(cell(g, m) for g in groups), *(column.get(m, "") for column in extra.values())]
        for m in metrics
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    if broken:
        text += "\nNot compared:\n\n" + "".join(f"- {b.folder}: {b.reason}\n" for b in broken)
    return text


def as_csv(groups: Sequence[Group], metrics: Sequence[str]) -> str:
    """A line for each group and metric: n, mean, standard deviation, and each run's value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["group", "metric", "n", "mean", "std", "values", "seeds", "folders"])
    for group in groups:
        for name in (m for m in metrics if m in group.statistics):
            found, having = group.statistics[name], [r for r in group.runs if name in r.metrics]
            values = " ".join(repr(float(r.metrics[name])) for r in having)
            seeds = " ".join(str(r.seed) for r in having)
            folders = os.pathsep.join(str(r.folder) for r in having)
            std = "" if found.std is None else repr(found.std)
            writer.writerow(
                [group.label, name, found.num_runs, repr(found.mean), std, values, seeds, folders]
            )
    return out.getvalue()


def save_plot(groups: Sequence[Group], metrics: Sequence[str], path: Path) -> None:
    """A panel for each metric: mean and standard deviation of every group, and its runs as dots."""
    from matplotlib.figure import Figure  # late: the table needs none

    shown = list(metrics)[:6]
    figure = Figure(
        figsize=(2 + 2.6 * len(shown), 1.4 + 0.4 * len(groups)), dpi=110, layout="constrained"
    )
    all_axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    labels = [f"{g.label} (n={len(g.runs)})" for g in groups]
    for axes, metric in zip(all_axes, shown, strict=True):
        for row, group in enumerate(groups):
            if (found := group.statistics.get(metric)) is None:
                continue
            scale = 100 if _unit(group, metric) == "%" else 1
            width = scale * (found.std or 0.0)
            axes.errorbar(scale * found.mean, row, xerr=width, fmt="o", color="C0", capsize=4)
            dots = [scale * r.metrics[metric] for r in group.runs if metric in r.metrics]
            axes.plot(dots, [row + 0.15] * len(dots), ".", color="C1", markersize=4)
        is_share = any(_unit(group, metric) == "%" for group in groups)
        axes.set_title(f"{metric}, %" if is_share else metric, fontsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(range(len(groups)), labels)
    all_axes[0].set_ylim(len(groups) - 0.5, -0.5)
    with files.replacing(path) as file:
        figure.savefig(file, format="png")


def print_table(
    groups: Sequence[Group], metrics: Sequence[str], broken: Sequence[Broken], asked: bool
) -> None:
    """As many metrics as the terminal is wide for, unless they were asked for by name."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)  # names may contain brackets and colons
    shown_as = partial(encodable, encoding=console.encoding)
    table = Table(title=shown_as("mean ± s.d. over runs"), title_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("n", justify="right")
    label_width = min(36, max(len(g.label) for g in groups))
    left = console.width - label_width - 12
    shown = []
    for metric in metrics:
        left -= 3 + max(
            len(metric.replace("/", "/\n").split("\n")[-1]),
            *(len(shown_as(cell(g, metric))) for g in groups),
        )
        if left < 0 and not asked:
            break
        shown.append(metric)
        table.add_column(metric.replace("/", "/\n"), justify="right", no_wrap=not asked)
    for group in groups:
        cells = [group.label, str(len(group.runs)), *(cell(group, m) for m in shown)]
        table.add_row(*map(shown_as, cells))
    console.print(table)
    if len(shown) < len(metrics):
        more = len(metrics) - len(shown)
        console.print(f"{more} more metrics in the files below; metrics=[...] chooses", style="dim")
    for item in broken:
        console.print(f"not compared: {item.folder}: {item.reason}", soft_wrap=True)
