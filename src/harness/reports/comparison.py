"""Runs side by side: grouped by what differs in their configs, averaged over seeds. No torch.

Reads config.yaml, summary.json and evaluation.json of run folders, and nothing else.
"""

import csv
import io
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.keys import nearest_key
from harness.contract import files
from harness.contract.errors import ConfigError
from harness.contract.terminal import encodable
from harness.reports.run_results import Broken, Run, printable


class Statistic(NamedTuple):
    mean: float
    std: float | None  # sample standard deviation over runs; None of one run
    num_runs: int


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    title: str
    runs: list[Run]
    statistics: dict[str, Statistic]


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
    text = f"{value:g}" if isinstance(value, float) else printable(value)
    return text if len(text) <= 30 else text[:27] + "..."


def _title(config: Mapping[str, Any], keys: Sequence[str]) -> str:
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
        members.setdefault(_title(run.config, keys), []).append(run)
    return [group(title, found) for title, found in members.items()]


def group(title: str, runs: list[Run]) -> Group:
    """Runs to be averaged."""
    return Group(title, runs, _statistics(runs))


def _statistics(runs: Sequence[Run]) -> dict[str, Statistic]:
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        values = [float(run.metrics[name]) for run in runs if name in run.metrics]
        std = statistics.stdev(values) if len(values) > 1 else None
        found[name] = Statistic(statistics.fmean(values), std, len(values))
    return found


def metric_names(groups: Sequence[Group], first: Sequence[str] = ()) -> list[str]:
    """All that was measured, those that are named first in their order."""
    known = dict.fromkeys(name for group in groups for name in group.statistics)
    return [n for n in first if n in known] + [n for n in known if n not in first]


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


def sort_groups(
    groups: Sequence[Group], metric: str, lower_is_better: Sequence[str] = ()
) -> list[Group]:
    """The best first; groups without the metric last.

    Args:
        lower_is_better: regular expressions that find metrics of which the least is best.
    """
    minimized = {run.minimized for group in groups for run in group.runs}
    is_low = (
        any(re.search(p, metric) for p in lower_is_better) or metric.rpartition("/")[2] in minimized
    )
    sign = 1 if is_low else -1

    def place(group: Group) -> tuple[bool, float]:
        found = group.statistics.get(metric)
        return found is None, 0.0 if found is None else sign * found.mean

    return sorted(groups, key=place)


def cell(group: Group, metric: str) -> str:
    """Mean ± s.d. with as many decimals as they deserve; n where not all runs have the metric."""
    found = group.statistics.get(metric)
    if found is None:
        return ""
    unit = _unit(group, metric)
    scale, sign = _scale(unit)
    size = abs(found.mean * scale)
    decimals = 2 if sign or unit == "nats" or size >= 10 else 3 if size >= 0.1 else 4
    text = f"{found.mean * scale:.{decimals}f}"
    text += "" if found.std is None else f" ± {found.std * scale:.{decimals}f}"
    text += sign
    return text if found.num_runs == len(group.runs) else f"{text} (n={found.num_runs})"


def paired(groups: Sequence[Group], metric: str) -> Statistic | None:
    """Mean difference of the second group from the first over the seeds that both have.

    Its ``std`` is the standard error of that mean: differences of runs with one seed vary less than
    the runs. None unless there are two groups with two seeds in common.
    """
    if len(groups) != 2:
        return None
    first, second = (
        {r.seed: r.metrics[metric] for r in g.runs if metric in r.metrics} for g in groups
    )
    differences = [second[seed] - first[seed] for seed in first if seed in second]
    if len(differences) < 2:
        return None
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return Statistic(statistics.fmean(differences), error, len(differences))


def difference(groups: Sequence[Group], metric: str) -> str:
    """:func:`paired` as text; nothing where there is none."""
    found = paired(groups, metric)
    if found is None:
        return ""
    unit = _unit(groups[0], metric)
    assert found.std is not None
    scale, sign = _scale(unit)
    decimals = 2 if sign or unit == "nats" or found.std >= 0.1 else 3 if found.std >= 0.01 else 4
    return f"{scale * found.mean:+.{decimals}f} ± {scale * found.std:.{decimals}f}{sign}"


def _scale(unit: Any) -> tuple[int, str]:
    """What a value is multiplied by to be shown, and what is written behind it."""
    return (100, "%") if unit == "%" else (1, "")


def _unit(group: Group, metric: str) -> str:
    return next((run.units[metric] for run in group.runs if metric in run.units), "")


def target(metric: Mapping[str, Any]) -> str:
    """The target of a metric in evaluation.json, as text; nothing where there is none."""
    scale, sign = _scale(metric.get("unit"))
    decimals = 1 if sign else 2
    bounds = {"≥": metric.get("at_least"), "≤": metric.get("at_most")}
    return ", ".join(f"{k} {scale * v:.{decimals}f}" for k, v in bounds.items() if v is not None)


def shown_floor(metric: Mapping[str, Any]) -> str:
    """What real data give, as text; nothing where that is unknown."""
    if (floor := metric.get("floor")) is None:
        return ""
    scale, sign = _scale(metric.get("unit"))
    return f"{scale * floor:.{2 if sign else 3}f}{sign}"


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
    if found := {m: text for m in metrics if (text := difference(groups, m))}:
        extra = {"second - first ± s.e.": found, **extra}
    header = ["metric, mean ± s.d.", *(f"{g.title} (n={len(g.runs)})" for g in groups), *extra]
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
                [group.title, name, found.num_runs, repr(found.mean), std, values, seeds, folders]
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
    titles = [f"{g.title} (n={len(g.runs)})" for g in groups]
    for axes, metric in zip(all_axes, shown, strict=True):
        for row, group in enumerate(groups):
            if (found := group.statistics.get(metric)) is None:
                continue
            scale, _ = _scale(_unit(group, metric))
            width = scale * (found.std or 0.0)
            axes.errorbar(scale * found.mean, row, xerr=width, fmt="o", color="C0", capsize=4)
            dots = [scale * r.metrics[metric] for r in group.runs if metric in r.metrics]
            axes.plot(dots, [row + 0.15] * len(dots), ".", color="C1", markersize=4)
        signs = {sign for group in groups if (sign := _scale(_unit(group, metric))[1])}
        axes.set_title(", ".join([metric, *signs]), fontsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(range(len(groups)), titles)
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
    title_width = min(36, max(21, *(len(g.title) for g in groups)))
    left = console.width - title_width - 12
    shown = []
    for metric in metrics:
        left -= 3 + max(
            len(metric.replace("/", "/\n").split("\n")[-1]),
            *(len(shown_as(cell(g, metric))) for g in groups),
            len(shown_as(difference(groups, metric))),
        )
        if left < 0 and not asked:
            break
        shown.append(metric)
        table.add_column(metric.replace("/", "/\n"), justify="right", no_wrap=not asked)
    for group in groups:
        cells = [group.title, str(len(group.runs)), *(cell(group, m) for m in shown)]
        table.add_row(*map(shown_as, cells))
    if any(differences := [difference(groups, m) for m in shown]):
        pairs = [found.num_runs for m in shown if (found := paired(groups, m))]
        cells = ["second - first ± s.e.", str(max(pairs)), *differences]
        table.add_row(*map(shown_as, cells), style="dim")
    console.print(table)
    if len(shown) < len(metrics):
        more = len(metrics) - len(shown)
        console.print(f"{more} more metrics in the files below; metrics=[...] chooses", style="dim")
    for item in broken:
        console.print(f"not compared: {item.folder}: {item.reason}", soft_wrap=True)
