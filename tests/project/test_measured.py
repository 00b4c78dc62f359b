"""Tables of results match the files of the benchmarks, and so do the results stated in conf/."""

import json
import re
import runpy

from harness.config.paths import CONF
from tests.conftest import ROOT


def test_the_tables_match_their_data_files() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    for page in script["PAGES"]:
        text = page.read_text()
        assert script["update_tables"](text) == text
        assert script["TABLE"].findall(text)


def test_recipe_files_state_the_measured_results() -> None:
    """Compare K and the nats of p(x|y), p(x, y) and p(x) with recipes.md."""
    page = ROOT / "docs" / "measured" / "recipes.md"
    rows = re.findall(r"^\| \*\*(\w+)\*\* (.*)", page.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == ["quick", "default", "flow", "reference"]
    for name, row in rows:
        path = CONF / ("train.yaml" if name == "default" else f"experiment/{name}.yaml")
        *nats, k = (cell.strip("| ") for cell in row.split(" | ")[:4])
        assert all(value in path.read_text() for value in (*nats, f"K = {k}")), path


def test_experiment_files_state_the_measured_results() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    document = json.loads((ROOT / "docs/measured/experiments.json").read_text())
    assert list(document["experiments"]) == [
        *("quadrants_1", "quadrants_2", "quadrants_3", "rotated", "fashion", "coloured")
    ]
    for name, row in document["experiments"].items():
        header = (CONF / f"experiment/{name}.yaml").read_text().replace("\n# ", " ")
        assert f"n = {row['n']}" in header
        for metric, value in row["metrics"].items():
            _, scale, _ = script["_QUANTITIES"][metric]
            assert script["format_mean"](value, scale) in header, (name, metric)
