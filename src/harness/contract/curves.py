"""Curves of the metrics in metrics.csv, for a callback that draws figures."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAIN, _VALIDATION = "train", "val"
# blue and orange for color-blind readers, solid and dashed for grey print
_STYLES: dict[str, dict[str, Any]] = {
    _TRAIN: {"color": "#0072b2", "linestyle": "-", "linewidth": 1.0},
    _VALIDATION: {"color": "#d55e00", "linestyle": "--", "linewidth": 1.8},
}
_LEARNING_RATE = "learning_rate"
_MAX_PANELS = 9
_SKIPPED_SHARE = 0.05  # share of the steps, from the start, that the vertical axis may leave out

Curve = list[tuple[int, float]]  # optimizer step and value


def read_curves(path: Path) -> dict[str, dict[str, Curve]]:
    """Return the curves of a metrics.csv, by quantity and then by split: train or val."""
    curves: dict[str, dict[str, Curve]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for column, text in row.items():
                split, _, quantity = (column or "").partition("/")
                if split in _STYLES and quantity and text:
                    curve = curves.setdefault(quantity, {}).setdefault(split, [])
                    curve.append((int(row["step"]), float(text)))
    return curves


def select_panels(
    curves: Mapping[str, Mapping[str, Curve]], first: Iterable[str] = ()
) -> list[str]:
    """Return the quantities to draw: those with validation values, then the learning rate.

    Args:
        first: quantities of the first panels, in order; those without a curve are skipped.
    """
    validated = [name for name, of_split in curves.items() if _VALIDATION in of_split]
    names = validated or [name for name in curves if not name.endswith("_per_second")]
    names = [n for n in dict.fromkeys([*first, *names]) if n in names and n != _LEARNING_RATE]
    rate = [_LEARNING_RATE] if _LEARNING_RATE in curves else []
    return names[: _MAX_PANELS - len(rate)] + rate


def draw_curves(path: Path, units: Mapping[str, str] | None = None) -> "Figure | None":
    """Draw the curves of training and validation metrics, one panel per quantity.

    Example::

        figure = draw_curves(run_dir / "metrics.csv", {"loss": "nats per row"})

    Args:
        path: the metrics.csv of a run.
        units: units by quantity, for the titles; these panels come first, in this order.

    Returns:
        The figure, or None if there are no curves.
    """
    curves, units = read_curves(path) if path.is_file() else {}, units or {}
    names = select_panels(curves, units)
    if not names:
        return None
    from matplotlib.figure import Figure  # imported here: it takes a second
    from matplotlib.lines import Line2D

    num_rows = -(-len(names) // 2)
    height = 0.9 + 2.2 * num_rows  # inches
    figure = Figure(figsize=(7.6, height), dpi=110)
    # fixed margins: the automatic layout of Matplotlib takes a second
    margins = {"left": 0.09, "right": 0.98, "bottom": 0.5 / height, "top": 1 - 0.65 / height}
    grid = figure.add_gridspec(num_rows, 2, hspace=0.35, wspace=0.25, **margins)
    splits = [s for s in _STYLES if any(s in curves[name] for name in names)]
    shift = len(names) % 2  # with an odd number of panels, the first is as wide as two
    for number, name in enumerate(names):
        is_wide = number == 0 and shift == 1
        position = grid[0, :] if is_wide else grid[divmod(number + shift, 2)]
        axes = figure.add_subplot(position)
        for split, curve in curves[name].items():
            steps, values = zip(*curve, strict=True)
            marker = "o" if len(curve) < 3 else ""
            axes.plot(steps, values, marker=marker, markersize=4, **_STYLES[split])
        if name == _LEARNING_RATE:
            axes.set_ylim(bottom=0)
        elif (limits := _vertical_limits(curves[name].values())) is not None:
            axes.set_ylim(*limits)
        unit = units.get(name)
        axes.set_title(name.replace("_", " ") + (f", {unit}" if unit else ""), fontsize=11)
        axes.grid(alpha=0.3)
        axes.margins(x=0.02)
        if number >= len(names) - 2:
            axes.set_xlabel("optimizer steps")
    lines = [Line2D([], [], **_STYLES[split]) for split in splits]
    texts = {_TRAIN: "training", _VALIDATION: "validation"}
    figure.legend(lines, [texts[s] for s in splits], loc="upper right", ncols=2)
    return figure


def _vertical_limits(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """Return the range of the finite values after the first steps, or None to show all values."""
    points = [point for curve in curves for point in curve if math.isfinite(point[1])]
    last = max((step for step, _ in points), default=0)
    late = [value for step, value in points if step >= _SKIPPED_SHARE * last]
    if len(late) < 10 or min(late) == max(late):
        return None
    margin = 0.05 * (max(late) - min(late))
    return min(late) - margin, max(late) + margin
