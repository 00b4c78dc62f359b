"""Draw docs/measured/bench.json as bench.png: images per second, and curves of scaling."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "measured"
OUR_COLOR, OTHER_COLOR = "#1f5fa8", "#9a9a9a"


def draw(document: dict[str, Any]) -> Figure:
    mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(8.2, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(1.35, 1))
    bars = figure.add_subplot(grid[0, :])
    rates = {name: result["median"] for name, result in document["training"].items()}
    names = sorted(rates, key=lambda name: rates[name])
    bars.barh(
        names,
        [rates[name] for name in names],
        color=[OUR_COLOR if name.startswith("ours") else OTHER_COLOR for name in names],
    )
    for row, name in enumerate(names):
        values = document["training"][name]["all"]
        bars.plot([min(values), max(values)], [row, row], color="black", linewidth=1)
        ratio = rates[name] / rates["bare"]
        bars.text(max(values), row, f"  {rates[name]:,.0f}  ({ratio:.2f})", va="center")
    bars.set_xlim(0, 1.18 * max(max(result["all"]) for result in document["training"].values()))
    machine = document["machine"]
    bars.set_title(
        "training, images/s (ratio to the bare loop): median and range over "
        f"{document['rounds']} rounds\n{machine['cores']} cores, {machine['cpu']}, "
        f"torch {machine['versions']['torch']}",
        fontsize=8,
        loc="left",
    )
    for column, (curve, points) in enumerate(document["curves"].items()):
        axes = figure.add_subplot(grid[1, column])
        axes.plot(
            list(points),
            [point["median"] for point in points.values()],
            color=OUR_COLOR,
            marker=".",
        )
        axes.set_ylim(bottom=0)
        axes.set_xlabel(curve)
        axes.tick_params(axis="x", labelsize=6)
        axes.set_ylabel("images/s" if column == 0 else "")
    axes = figure.add_subplot(grid[1, 3])
    rates = document["evaluation"]["decoded_rows_per_second"]
    axes.plot(
        list(rates), [10_000 * int(k) / rate for k, rate in rates.items()], ".-", color=OUR_COLOR
    )
    axes.set_yscale("log")
    axes.set_xlabel("importance samples K")
    axes.set_ylabel("s for 10,000 test images")
    return figure


if __name__ == "__main__":
    figure = draw(json.loads((FOLDER / "bench.json").read_text(encoding="utf-8")))
    figure.savefig(FOLDER / "bench.png", dpi=130)
