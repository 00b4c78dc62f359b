"""Compares runs, without torch: groups by differing settings, means over seeds, tables."""

import csv
import io
import os
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from harness.config.keys import nearest_key
from harness.contract.errors import ConfigError
from harness.contract.terminal import make_encodable
from harness.reports.run_results import Excluded, Run, sanitize_text

_MAX_VALUE = 30  # characters of a value in a title


class Statistic(NamedTuple):
    mean: float
    std: float | None  # sample standard deviation over runs; None for one run
    num_runs: int


class Group(NamedTuple):
    """Runs that differ only in the seed."""

    title: str
    runs: list[Run]
    statistics: dict[str, Statistic]


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that tell the configs apart, classes first, without redundant keys."""
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [k for k in keys if len({_format_value(c.get(k, "-")) for c in configs}) > 1]
    differing.sort(
        key=lambda k: (not k.endswith("_target_"), k.count(".") if "_target_" in k else 0)
    )
    chosen: list[str] = []
    num_groups = 1
    for key in differing:
        num_split = len(
            {tuple(_format_value(c.get(k, "-")) for k in [*chosen, key]) for c in configs}
        )
        if num_split > num_groups:  # skip keys that are determined by those before
            chosen.append(key)
            num_groups = num_split
    return chosen


def _format_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else sanitize_text(value)


def _title(config: Mapping[str, Any], keys: Sequence[str], max_length: int) -> str:
    parts = []
    for key in (k for k in keys if k in config):
        value, name = _format_value(config[key]), key.rpartition(".")[2]
        if name == "_target_":
            parts.append(value.rpartition(".")[2])
        else:
            short = value if len(value) <= max_length else value[: max_length - 3] + "..."
            parts.append(f"{name}={short}")
    return " ".join(parts) or "all runs"


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ only in the seed."""
    keys = differing_keys([run.config for run in runs])
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        values = tuple(_format_value(run.config.get(key, "-")) for key in keys)
        members.setdefault(values, []).append(run)
    configs = [same[0].config for same in members.values()]
    titles = [_title(config, keys, _MAX_VALUE) for config in configs]
    if len(set(titles)) < len(titles):  # values that differ at their ends only
        titles = [_title(config, keys, sys.maxsize) for config in configs]
    return [make_group(title, same) for title, same in zip(titles, members.values(), strict=True)]


def make_group(title: str, runs: list[Run]) -> Group:
    """Return a group with the statistics of its runs."""
    return Group(title, runs, _statistics(runs))


def _statistics(runs: Sequence[Run]) -> dict[str, Statistic]:
    by_name = {}
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        values = [float(run.metrics[name]) for run in runs if name in run.metrics]
        std = statistics.stdev(values) if len(values) > 1 else None
        by_name[name] = Statistic(statistics.fmean(values), std, len(values))
    return by_name


def describe_test_sets(groups: Sequence[Group]) -> list[str]:
    """Return a heading and a line per test set if the runs have several, else an empty list."""
    titles: dict[str, dict[str, None]] = {}
    for group in groups:
        for run in group.runs:
            if run.test_digest:
                titles.setdefault(sanitize_text(run.test_digest), {})[group.title] = None
    if len(titles) < 2:
        return []
    lines = [f"test set {digest}: {', '.join(names)}" for digest, names in titles.items()]
    return ["The test sets differ: compare test metrics only within one.", *lines]


def metric_names(groups: Sequence[Group], first: Sequence[str] = ()) -> list[str]:
    """Return all metric names of the groups, with those in ``first`` first, in that order."""
    known = dict.fromkeys(name for group in groups for name in group.statistics)
    return [n for n in first if n in known] + [n for n in known if n not in first]


def check_metrics(names: Sequence[str], known: Sequence[str], key: str) -> None:
    """Raise if a metric is missing in all runs.

    Args:
        names: the metrics to check.
        known: the metrics of the runs.
        key: the override that names the metrics.

    Raises:
        ConfigError: no run has the metric; the message suggests the nearest one.
    """
    for name in names:
        if name not in known:
            near = nearest_key(name, known)
            hint = f"did you mean {near}?" if near else f"they have {', '.join(known)}"
            raise ConfigError(f"{key}={name}: no run has this metric; {hint}")


def is_lower_better(
    groups: Sequence[Group], metric: str, lower_is_better: Sequence[str] = ()
) -> bool:
    """Return whether lower values of a metric are better.

    This is true for a metric that matches a pattern, or whose lowest value selects the checkpoint
    of a run.

    Args:
        lower_is_better: regular expressions of metrics where lower is better.
    """
    minimized = {run.minimized for group in groups for run in group.runs}
    quantity = metric.rpartition("/")[2]
    return any(re.search(p, metric) for p in lower_is_better) or quantity in minimized


def sort_groups(
    groups: Sequence[Group], metric: str, lower_is_better: Sequence[str] = ()
) -> list[Group]:
    """Return the groups from best to worst by the mean of a metric; those without it come last.

    Args:
        lower_is_better: regular expressions of metrics where lower is better.
    """
    sign = 1 if is_lower_better(groups, metric, lower_is_better) else -1

    def order(group: Group) -> tuple[bool, float]:
        stat = group.statistics.get(metric)
        return stat is None, 0.0 if stat is None else sign * stat.mean

    return sorted(groups, key=order)


def format_cell(group: Group, metric: str) -> str:
    """Return mean ± s.d. of a metric as text, with n if some runs lack it; empty if all do."""
    stat = group.statistics.get(metric)
    if stat is None:
        return ""
    unit = unit_of(group, metric)
    scale, sign = scale_of(unit)
    size = abs(stat.mean * scale)
    decimals = 2 if sign or unit == "nats" or size >= 10 else 3 if size >= 0.1 else 4
    text = f"{stat.mean * scale:.{decimals}f}"
    text += "" if stat.std is None else f" ± {stat.std * scale:.{decimals}f}"
    text += sign
    return text if stat.num_runs == len(group.runs) else f"{text} (n={stat.num_runs})"


def paired_difference(groups: Sequence[Group], metric: str) -> Statistic | None:
    """Return the mean of the paired differences, second group minus first, over common seeds.

    ``std`` is the standard error of that mean. Pairing by seed removes the variance that the runs
    of a seed share. None unless there are two groups with two seeds in common.
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


def format_difference(groups: Sequence[Group], metric: str) -> str:
    """Return :func:`paired_difference` as text; empty if it is None."""
    stat = paired_difference(groups, metric)
    if stat is None:
        return ""
    unit = unit_of(groups[0], metric)
    assert stat.std is not None
    scale, sign = scale_of(unit)
    decimals = 2 if sign or unit == "nats" or stat.std >= 0.1 else 3 if stat.std >= 0.01 else 4
    return f"{scale * stat.mean:+.{decimals}f} ± {scale * stat.std:.{decimals}f}{sign}"


def scale_of(unit: Any) -> tuple[int, str]:
    """Return the factor and the suffix with which to show values of a unit."""
    return (100, "%") if unit == "%" else (1, "")


def unit_of(group: Group, metric: str) -> str:
    """Return the unit of a metric, from the evaluation of the runs; empty if unknown."""
    return next((run.units[metric] for run in group.runs if metric in run.units), "")


def format_target(metric: Mapping[str, Any]) -> str:
    """Return the target of a metric in evaluation.json as text; empty if it has none."""
    scale, sign = scale_of(metric.get("unit"))
    decimals = 1 if sign else 2
    bounds = {"≥": metric.get("at_least"), "≤": metric.get("at_most")}
    return ", ".join(f"{k} {scale * v:.{decimals}f}" for k, v in bounds.items() if v is not None)


def format_floor(metric: Mapping[str, Any]) -> str:
    """Return a metric's value on real data, or at chance, as text; empty if unknown."""
    if (floor := metric.get("floor")) is None:
        return ""
    scale, sign = scale_of(metric.get("unit"))
    return f"{scale * floor:.{2 if sign else 3}f}{sign}"


def to_markdown(
    groups: Sequence[Group],
    metrics: Sequence[str],
    excluded: Sequence[Excluded] = (),
    extra: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return a Markdown table with one row per metric and one column per group.

    Args:
        excluded: folders to list as not compared.
        extra: further columns by title, each with the text for each metric.
    """
    extra = extra or {}
    if differences := {m: text for m in metrics if (text := format_difference(groups, m))}:
        extra = {"second - first ± s.e.": differences, **extra}
    header = ["metric, mean ± s.d.", *(f"{g.title} (n={len(g.runs)})" for g in groups), *extra]
    rows = [
        [
            f"`{m}`",
            *(format_cell(g, m) for g in groups),
            *(column.get(m, "") for column in extra.values()),
        ]
        for m in metrics
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    if test_sets := describe_test_sets(groups):
        text += f"\n{test_sets[0]}\n\n" + "".join(f"- {x}\n" for x in test_sets[1:])
    if excluded:
        text += "\nNot compared:\n\n" + "".join(f"- {b.folder}: {b.reason}\n" for b in excluded)
    return text


def to_csv(groups: Sequence[Group], metrics: Sequence[str]) -> str:
    """Return CSV with one row per group and metric: n, mean, s.d. and the value of each run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["group", "metric", "n", "mean", "std", "values", "seeds", "folders"])
    for group in groups:
        for name in (m for m in metrics if m in group.statistics):
            stat = group.statistics[name]
            measured_runs = [r for r in group.runs if name in r.metrics]
            values = " ".join(repr(float(r.metrics[name])) for r in measured_runs)
            seeds = " ".join(str(r.seed) for r in measured_runs)
            folders = os.pathsep.join(str(r.folder) for r in measured_runs)
            std = "" if stat.std is None else repr(stat.std)
            writer.writerow(
                [group.title, name, stat.num_runs, repr(stat.mean), std, values, seeds, folders]
            )
    return out.getvalue()


def print_table(
    groups: Sequence[Group], metrics: Sequence[str], excluded: Sequence[Excluded], show_all: bool
) -> None:
    """Print the metrics that fit the width of the terminal, or all if they were requested."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)  # names may contain brackets and colons
    to_encodable = partial(make_encodable, encoding=console.encoding)
    table = Table(title=to_encodable("mean ± s.d. over runs"), title_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("n", justify="right")
    title_width = min(36, max(21, *(len(g.title) for g in groups)))
    width_left = console.width - title_width - 12
    shown_metrics = []
    for metric in metrics:
        width_left -= 3 + max(
            len(metric.replace("/", "/\n").split("\n")[-1]),
            *(len(to_encodable(format_cell(g, metric))) for g in groups),
            len(to_encodable(format_difference(groups, metric))),
        )
        if width_left < 0 and not show_all:
            break
        shown_metrics.append(metric)
        table.add_column(metric.replace("/", "/\n"), justify="right", no_wrap=not show_all)
    for group in groups:
        cells = [group.title, str(len(group.runs)), *(format_cell(group, m) for m in shown_metrics)]
        table.add_row(*map(to_encodable, cells))
    if any(differences := [format_difference(groups, m) for m in shown_metrics]):
        pairs = [stat.num_runs for m in shown_metrics if (stat := paired_difference(groups, m))]
        cells = ["second - first ± s.e.", str(max(pairs)), *differences]
        table.add_row(*map(to_encodable, cells), style="dim")
    console.print(table)
    if len(shown_metrics) < len(metrics):
        more = len(metrics) - len(shown_metrics)
        console.print(
            f"{more} more metrics in the files below; choose with metrics=[...]", style="dim"
        )
    for text in describe_test_sets(groups):
        console.print(to_encodable(text), soft_wrap=True)
    for item in excluded:
        console.print(f"not compared: {item.folder}: {item.reason}", soft_wrap=True)
