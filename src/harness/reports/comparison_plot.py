"""Plot of a comparison: one panel per metric, one row per group of runs."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.contract import files
from harness.reports.comparison import Group, is_lower_better, scale_of, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_PANELS = 6
_MAX_COLUMNS = 3  # panels next to each other
_NAME_WIDTH, _NAME_LINES = 44, 2  # characters in a line of a name, and number of lines
_PANEL_WIDTH, _LINE_HEIGHT = 2.7, 0.17  # inches
_MEAN_COLOR, _RUN_COLOR = "#0072b2", "#d55e00"


def wrap_names(groups: Sequence[Group]) -> list[str]:
    """Return the names of groups in lines of at most 44 characters, with the number of runs.

    Names are cut after two lines, unless two of them would then be equal.
    """
    names = [_wrap(group, _NAME_LINES) for group in groups]
    return names if len(set(names)) == len(names) else [_wrap(group, None) for group in groups]


def _wrap(group: Group, max_lines: int | None) -> str:
    lines = textwrap.wrap(group.title, _NAME_WIDTH, max_lines=max_lines, placeholder=" …")
    count = f"(n={len(group.runs)})"
    if len(lines[-1]) + 1 + len(count) <= _NAME_WIDTH:
        return "\n".join([*lines[:-1], f"{lines[-1]} {count}"])
    return "\n".join([*lines, count])


def save_plot(
    groups: Sequence[Group],
    metrics: Sequence[str],
    path: Path,
    lower_is_better: Sequence[str] = (),
) -> None:
    """Save a PNG with the mean ± s.d. of each group, and the values of its runs.

    Each of the first six metrics has a panel. The arrow in its title points to better values.

    Args:
        lower_is_better: regular expressions of metrics where lower is better.
    """
    from matplotlib.figure import Figure  # late, because the tables do not need it
    from matplotlib.lines import Line2D

    shown_metrics = list(metrics)[:_MAX_PANELS]
    num_columns = min(_MAX_COLUMNS, len(shown_metrics))
    if len(shown_metrics) == _MAX_COLUMNS + 1:  # two rows of two
        num_columns = 2
    num_rows = -(-len(shown_metrics) // num_columns)
    names = wrap_names(groups)
    num_lines = len(names) * (1.8 + max(name.count("\n") for name in names))  # with gaps
    longest = max(len(line) for name in names for line in name.split("\n"))
    figure = Figure(
        figsize=(
            0.6 + 0.09 * longest + _PANEL_WIDTH * num_columns,
            0.4 + num_rows * (1.0 + _LINE_HEIGHT * num_lines),
        ),
        dpi=110,
        layout="constrained",
    )
    all_axes = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).flatten()
    for axes in all_axes[len(shown_metrics) :]:
        axes.set_axis_off()
    for axes, metric in zip(all_axes, shown_metrics, strict=False):
        units = {unit for g in groups if (unit := unit_of(g, metric))}
        arrow = (
            "← lower is better"
            if is_lower_better(groups, metric, lower_is_better)
            else "higher is better →"
        )
        axes.set_title(f"{', '.join([metric, *sorted(units)])}\n{arrow}", fontsize=10)
        _draw_metric(axes, groups, metric)
    all_axes[0].set_yticks(range(len(groups)), names)
    all_axes[0].set_ylim(len(groups) - 0.5, -0.5)
    if any(len(group.runs) > 1 for group in groups):
        mean = Line2D([], [], color=_MEAN_COLOR, marker="o", linestyle="-")
        run = Line2D([], [], color=_RUN_COLOR, marker="|", linestyle="")
        texts = ["mean ± s.d.", "one run"]
        figure.legend([mean, run], texts, loc="outside lower right", ncols=2, fontsize=9)
    with files.atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw_metric(axes: "Axes", groups: Sequence[Group], metric: str) -> None:
    for row, group in enumerate(groups):
        if (stat := group.statistics.get(metric)) is None:
            continue
        scale, _ = scale_of(unit_of(group, metric))
        width = None if stat.std is None else scale * stat.std
        axes.errorbar(scale * stat.mean, row, xerr=width, fmt="o", color=_MEAN_COLOR, capsize=4)
        if stat.num_runs > 1:
            values = [scale * r.metrics[metric] for r in group.runs if metric in r.metrics]
            axes.plot(values, [row + 0.25] * len(values), "|", color=_RUN_COLOR, markersize=7)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08)
