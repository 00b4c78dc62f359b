"""Comparison of runs from their folders."""

import csv
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from harness.config import paths
from harness.contract.errors import ConfigError
from harness.reports import comparison, comparison_plot, run_results
from harness.sweeps import jobs
from tests.conftest import clean_environment, run_light, run_script
from tests.tally import Promise, Survived


def write_run(folder: Path, seed: int, nll: float, target: str = "CVAE", **fields: Any) -> Path:
    """Write a run folder with the files of training and evaluation."""
    folder.mkdir(parents=True)
    model = {"_target_": f"cvae.models.{target}", "latent_dim": fields.pop("latent_dim", 24)}
    if target != "Autoencoder":
        model["beta"] = 1.0
    config = {
        "model": model,
        "optimizer": {"lr": fields.pop("lr", 1e-3)},
        "callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}},
        "seed": seed,
        "run_dir": str(folder),
        "name": f"run-{seed}",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    summary = {"status": "finished", "seed": seed, "metrics": {"val/elbo": -nll}, **fields}
    (folder / "summary.json").write_text(json.dumps(summary))
    metrics = {
        "test/nll_k50": {"claim": "bound", "value": nll, "unit": "nats"},
        "samples/label_agreement": {"claim": "label_control", "value": 0.98, "unit": "%"},
    }
    (folder / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with four runs of two settings and five folders that cannot be compared."""
    write_run(tmp_path / "a/1", 1, 84.0)
    write_run(tmp_path / "a/2", 2, 86.0)
    write_run(tmp_path / "sweep/0", 1, 80.0, latent_dim=8)
    write_run(tmp_path / "sweep/1", 2, 81.0, latent_dim=8)
    write_run(tmp_path / "running", 1, 1.0, status="running")
    write_run(tmp_path / "failed", 1, 1.0, status="failed", error="ValueError: why")
    (write_run(tmp_path / "cut off", 1, 1.0) / "config.yaml").write_text("model: {a: [1")
    (write_run(tmp_path / "no config", 1, 1.0) / "config.yaml").unlink()
    (tmp_path / "empty").mkdir()
    return tmp_path


def read_runs(folder: Path) -> tuple[list[run_results.Run], list[run_results.Excluded]]:
    results = [run_results.read_run(f) for f in run_results.find_folders(str(folder / "**"))]
    return (
        [f for f in results if isinstance(f, run_results.Run)],
        [f for f in results if isinstance(f, run_results.Excluded)],
    )


def test_every_folder_is_compared_or_reported(folder: Path) -> None:
    usable, broken = read_runs(folder)
    assert len(usable) == 4
    reasons = {b.folder.name: b.reason for b in broken}
    assert set(reasons) == {"running", "failed", "cut off", "no config", "empty"}
    assert reasons["failed"] == "failed: ValueError: why"
    assert reasons["no config"] == "no config.yaml in it"
    assert "no readable config.yaml" in reasons["cut off"]


def test_runs_are_grouped_by_all_settings_but_the_seed(folder: Path) -> None:
    groups = comparison.group_runs(read_runs(folder)[0])
    assert {g.title for g in groups} == {"latent_dim=24", "latent_dim=8"}
    (wide,) = (g for g in groups if g.title == "latent_dim=24")
    statistics = wide.statistics["test/nll_k50"]
    assert (statistics.mean, statistics.num_runs) == (85.0, 2)
    assert statistics.std == pytest.approx(2**0.5)
    assert comparison.format_cell(wide, "test/nll_k50") == "85.00 ± 1.41"
    assert comparison.format_cell(wide, "samples/label_agreement") == "98.00 ± 0.00%"


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "old", 1, 84.0, started="2026-01-01T10:00:00")
    write_run(tmp_path / "new", 1, 85.0, started="2026-01-02T10:00:00")
    write_run(tmp_path / "other", 2, 87.0, started="2026-01-01T11:00:00")
    write_run(tmp_path / "wide", 1, 80.0, latent_dim=8)
    kept, repeats = run_results.drop_repeats(read_runs(tmp_path)[0])
    assert [b.folder.name for b in repeats] == ["old"]
    assert repeats[0].reason == f"same settings and seed as {tmp_path / 'new'}"
    (group, _) = comparison.group_runs(kept)
    statistics = group.statistics["test/nll_k50"]
    assert (statistics.mean, statistics.num_runs) == (86.0, 2)


def test_runs_on_different_test_sets_are_listed_by_test_set(tmp_path: Path) -> None:
    write_run(tmp_path / "1", 1, 84.0, test_digest="aa")
    write_run(tmp_path / "2", 1, 80.0, latent_dim=8, test_digest="aa")
    groups = comparison.group_runs(read_runs(tmp_path)[0])
    assert comparison.describe_test_sets(groups) == []
    write_run(tmp_path / "3", 1, 20.0, latent_dim=4, test_digest="bb")
    groups = comparison.group_runs(read_runs(tmp_path)[0])
    heading, *lines = comparison.describe_test_sets(groups)
    assert lines == ["test set aa: latent_dim=24, latent_dim=8", "test set bb: latent_dim=4"]
    assert heading in comparison.to_markdown(groups, ["test/nll_k50"])


def test_settings_implied_by_the_class_are_not_in_titles(tmp_path: Path) -> None:
    write_run(tmp_path / "1", 1, 84.0)
    write_run(tmp_path / "2", 1, 90.0, target="Autoencoder")
    write_run(tmp_path / "3", 1, 91.0, target="Autoencoder", lr=2e-3)
    labels = {g.title for g in comparison.group_runs(read_runs(tmp_path)[0])}
    assert labels == {"CVAE lr=0.001", "Autoencoder lr=0.001", "Autoencoder lr=0.002"}


def test_titles_tell_long_values_apart(tmp_path: Path) -> None:
    for i, name in enumerate(("DiscretizedLogistic", "DiscretizedLogisticMixture")):
        write_run(tmp_path / f"{i}", 1, 84.0 + i, target=f"a.package.of.a.long.name.{name}")
    groups = comparison.group_runs(read_runs(tmp_path)[0])
    assert [g.title for g in groups] == ["DiscretizedLogistic", "DiscretizedLogisticMixture"]
    for i, end in enumerate("ab"):
        write_run(tmp_path / f"long {end}", 1, 90.0 + i, latent_dim="x" * 40 + end)
    titles = [g.title for g in comparison.group_runs(read_runs(tmp_path)[0])]
    assert len(set(titles)) == 4, titles


def test_the_best_group_comes_first(folder: Path) -> None:
    groups = comparison.group_runs(read_runs(folder)[0])
    for metric in ("test/nll_k50", "val/elbo"):  # to minimize, to maximize
        assert comparison.sort_groups(groups, metric, ["nll"])[0].title == "latent_dim=8"


def test_an_unknown_metric_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean test/nll_k50"):
        comparison.check_metrics(["test/nll_k5"], ["test/nll_k50", "val/elbo"], "sort")


def test_compare_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "lightning", "wandb"):
        (blocked / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    overrides = [f"runs={folder}/**", f"output={folder}/out/table", "sort=test/nll_k50"]
    done = run_light("compare", *overrides, PYTHONPATH=str(blocked), COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "not compared" in done.stdout
    assert "80.50 ± 0.71" in done.stdout
    assert max(len(x) for x in done.stdout.splitlines() if "│" in x) <= 80
    assert "latent_dim=8 (n=2)" in (folder / "out/table.md").read_text()
    with (folder / "out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["values"] for r in rows if r["metric"] == "test/nll_k50"} == {
        "84.0 86.0",
        "80.0 81.0",
    }
    with Image.open(folder / "out/table.png") as picture:
        assert min(picture.size) > 100


def make_group(title: str, nlls: list[float]) -> comparison.Group:
    """Return a group of runs with these values of test/nll_k50, and an accuracy of 0.5."""
    metrics = [{"test/nll_k50": nll, "test/accuracy": 0.5} for nll in nlls]
    units = {"test/nll_k50": "nats", "test/accuracy": "%"}
    runs = [run_results.Run(Path(f"{i}"), {}, i, m, units) for i, m in enumerate(metrics)]
    return comparison.make_group(title, runs)


@pytest.fixture
def saved_figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which each saved figure is added."""
    figures: list[Any] = []
    save = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_the_plot_says_which_direction_is_better(tmp_path: Path, saved_figures: list[Any]) -> None:
    groups = [make_group("a", [80.0]), make_group("b", [81.0])]
    names = ["test/nll_k50", "test/accuracy"]
    comparison_plot.save_plot(groups, names, tmp_path / "x.png", ["nll"])
    titles = [axes.get_title() for axes in saved_figures[0].axes]
    assert titles == [
        "test/nll_k50, nats\n← lower is better",
        "test/accuracy, %\nhigher is better →",
    ]
    assert not saved_figures[0].legends  # one kind of marker
    groups = [make_group("a", [80.0, 80.5]), make_group("b", [81.0])]
    comparison_plot.save_plot(groups, names, tmp_path / "x.png", ["nll"])
    (legend,) = saved_figures[1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["mean ± s.d.", "one run"]


@pytest.mark.parametrize("count", [2, 20])
def test_names_in_the_plot_are_not_cut_and_do_not_overlap(
    count: int, tmp_path: Path, saved_figures: list[Any]
) -> None:
    titles = [
        f"Model latent_dim={i} weight_decay=0.0001 a_long_name={i:030d}" for i in range(count)
    ]
    groups = [make_group(title, [80.0 + i]) for i, title in enumerate(titles)]
    comparison_plot.save_plot(groups, ["test/nll_k50", "test/accuracy"], tmp_path / "x.png")
    figure = saved_figures[0]
    texts = [text for text in figure.axes[0].get_yticklabels() if text.get_text()]
    assert len(texts) == count
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: -box.y0)
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) < figure.axes[0].get_window_extent().x0
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width < 1300


def test_names_that_are_equal_when_shortened_are_shown_in_full() -> None:
    names = [" ".join(["word"] * 40) + end for end in (" a", " b")]
    cut = comparison_plot.wrap_names([make_group(names[0], [1.0]), make_group("other", [1.0])])
    assert cut[0].endswith(" …\n(n=1)")
    in_full = comparison_plot.wrap_names([make_group(name, [1.0]) for name in names])
    assert [name.split()[-2] for name in in_full] == ["a", "b"]


SWEEP_NAME = "[vae] runs=1/channels=[8,16]"


def test_brackets_in_an_existing_folder_are_literal(tmp_path: Path) -> None:
    """Wildcards after the existing folder still match."""
    sweep = tmp_path / SWEEP_NAME
    for name in ("[8]", "8", "16"):
        write_run(sweep / name, 1, 84.0)
    names = [f.name for f in run_results.find_folders(str(sweep))]
    assert sorted(names) == ["16", "8", "[8]"]
    for pattern, count in (("**", 3), ("*", 3), ("[18]*", 2), ("[8]", 1), ("[8]/**", 1)):
        assert len(run_results.find_folders(f"{sweep}/{pattern}")) == count, pattern
    with pytest.raises(ConfigError, match="no run folder"):
        run_results.find_folders(f"{sweep}/[79]")


def test_the_table_of_a_sweep_is_in_its_folder(tmp_path: Path) -> None:
    """The files of the table are not read as runs, and brackets in names are not markup."""
    sweep = tmp_path / SWEEP_NAME
    write_run(sweep / "0", 1, 84.0, act="[relu]")
    write_run(sweep / "1", 2, 86.0, act="[relu]")
    write_run(sweep / "[red]", 2, 86.0, status="running")
    for _ in range(2):
        done = run_script("compare", f"runs={sweep}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{SWEEP_NAME}/compare.md .csv .png"
        assert f"{sweep}/[red]: running" in done.stdout
        assert sorted(p.name for p in sweep.glob("compare.*")) == [
            *("compare.csv", "compare.md", "compare.png")
        ]
    assert len(jobs.find_jobs(sweep)) == 3
    assert run_results.default_output(f"{sweep}/**") == paths.ROOT / "logs" / "compare"


def test_a_sweep_ends_with_the_command_to_compare_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / SWEEP_NAME
    write_run(sweep / "0", 1, 84.0)
    assert jobs.print_report(sweep)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[-2:] == [str(paths.ROOT / "src" / "compare.py"), f"runs={SWEEP_NAME}"]


@pytest.mark.fault(
    Promise.DISK, "an output or folder that cannot be written to, at the end of a command"
)
def test_table_and_files_are_written_independently(
    folder: Path, tmp_path: Path, survived: Survived
) -> None:
    script = [sys.executable, str(paths.ROOT / "src" / "compare.py"), f"runs={folder}"]
    with Path("/dev/full").open("w") as full:
        command = [*script, f"output={tmp_path}/table"]
        done = subprocess.run(command, env=clean_environment(), stdout=full, check=False)
    assert done.returncode == 2
    assert (tmp_path / "table.csv").read_text().count("latent_dim") > 4
    survived(1)
    (tmp_path / "file").touch()
    shown = run_script("compare", f"runs={folder}", f"output={tmp_path}/file/table")
    assert shown.returncode == 2
    assert "latent_dim=8" in shown.stdout
    assert "cannot be written" in shown.stderr
    survived(1)


@pytest.mark.fault(Promise.UNUSUAL, "a terminal with another encoding")
def test_a_table_is_shown_in_any_encoding(folder: Path, survived: Survived) -> None:
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for encoding, more in (("ascii", {}), ("cp1252", {}), ("ascii", c_locale)):
        environment = more or {"PYTHONIOENCODING": encoding}
        done = subprocess.run(
            [sys.executable, str(paths.ROOT / "src" / "compare.py"), f"runs={folder}"],
            env={**clean_environment(), "COLUMNS": "80", **environment},
            capture_output=True,
            encoding=encoding,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
        assert len({len(row) for row in rows}) == 1  # aligned columns
        assert f"85.00 {'+-' if encoding == 'ascii' else '±'} 1.41" in done.stdout
        assert "± 1.41" in (folder / "compare.md").read_text(encoding="utf-8")
        survived(1)


def test_folders_without_results_fail_with_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "running", 1, 1.0, status="running")
    done = run_script("compare", f"runs={tmp_path}", f"output={tmp_path}/table")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "running" in done.stderr
