"""Runs side by side, from their folders alone."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from cvae import article, comparison, runs, sweeps
from cvae.launch import Share, shares
from cvae.schema import CLAIMS, ConfigError, num_cpus
from tests.conftest import clean_environment, run_script, tiny
from tests.tally import Promise, Survived


def write_run(folder: Path, seed: int, nll: float, target: str = "CVAE", **given: Any) -> Path:
    """A run folder as training and evaluation leave it."""
    folder.mkdir(parents=True)
    model = {"_target_": f"cvae.models.{target}", "latent_dim": given.pop("latent_dim", 24)}
    if target != "Autoencoder":
        model["beta"] = 1.0
    config = {
        "model": model,
        "optimizer": {"lr": given.pop("lr", 1e-3)},
        "callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}},
        "seed": seed,
        "run_dir": str(folder),
        "name": f"run-{seed}",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    summary = {"status": "finished", "seed": seed, "metrics": {"val/elbo": -nll}, **given}
    (folder / "summary.json").write_text(json.dumps(summary))
    metrics = {
        "test/nll_k50": {"claim": "bound", "value": nll, "unit": "nats"},
        "samples/label_agreement": {"claim": "label_control", "value": 0.98, "unit": "%"},
    }
    (folder / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs of two settings, one in a sweep, and five folders that cannot be compared."""
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


def read(folder: Path) -> tuple[list[comparison.Run], list[comparison.Broken]]:
    found = [comparison.read_run(f) for f in comparison.find_folders(str(folder / "**"))]
    return (
        [f for f in found if isinstance(f, comparison.Run)],
        [f for f in found if isinstance(f, comparison.Broken)],
    )


def test_every_folder_is_compared_or_named(folder: Path) -> None:
    usable, broken = read(folder)
    assert len(usable) == 4
    reasons = {b.folder.name: b.reason for b in broken}
    assert set(reasons) == {"running", "failed", "cut off", "no config", "empty"}
    assert reasons["failed"] == "failed: ValueError: why"
    assert reasons["no config"] == "no config.yaml in it"
    assert "no readable config.yaml" in reasons["cut off"]


def test_runs_are_grouped_by_what_differs_but_the_seed(folder: Path) -> None:
    groups = comparison.grouped(read(folder)[0])
    assert {g.label for g in groups} == {"latent_dim=24", "latent_dim=8"}
    (wide,) = (g for g in groups if g.label == "latent_dim=24")
    found = wide.statistics["test/nll_k50"]
    assert (found.mean, found.num_runs) == (85.0, 2)
    assert found.std == pytest.approx(2**0.5)
    assert comparison.cell(wide, "test/nll_k50") == "85.00 ± 1.41"
    assert comparison.cell(wide, "samples/label_agreement") == "98.00 ± 0.00%"


def test_what_follows_from_the_class_is_not_said_twice(tmp_path: Path) -> None:
    write_run(tmp_path / "1", 1, 84.0)
    write_run(tmp_path / "2", 1, 90.0, target="Autoencoder")
    write_run(tmp_path / "3", 1, 91.0, target="Autoencoder", lr=2e-3)
    labels = {g.label for g in comparison.grouped(read(tmp_path)[0])}
    assert labels == {"CVAE lr=0.001", "Autoencoder lr=0.001", "Autoencoder lr=0.002"}


def test_the_best_group_comes_first(folder: Path) -> None:
    groups = comparison.grouped(read(folder)[0])
    for metric in ("test/nll_k50", "val/elbo"):  # one falls, the other rises
        assert comparison.sort_groups(groups, metric)[0].label == "latent_dim=8"


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean test/nll_k50"):
        comparison.check_metrics(["test/nll_k5"], ["test/nll_k50", "val/elbo"], "sort")


def test_the_command_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "lightning", "wandb"):
        (blocked / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    words = [f"runs={folder}/**", f"output={folder}/out/table", "sort=test/nll_k50"]
    done = run_script("compare", *words, PYTHONPATH=str(blocked), COLUMNS="80")
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


BRACKETS = "[vae] runs=1/channels=[8,16]"


def test_brackets_in_an_existing_folder_are_literal(tmp_path: Path) -> None:
    """A pattern below such a folder still matches."""
    sweep = tmp_path / BRACKETS
    for name in ("[8]", "8", "16"):
        write_run(sweep / name, 1, 84.0)
    names = [f.name for f in comparison.find_folders(str(sweep))]
    assert sorted(names) == ["16", "8", "[8]"]
    for pattern, count in (("**", 3), ("*", 3), ("[18]*", 2), ("[8]", 1), ("[8]/**", 1)):
        assert len(comparison.find_folders(f"{sweep}/{pattern}")) == count, pattern
    with pytest.raises(ConfigError, match="no run folder"):
        comparison.find_folders(f"{sweep}/[79]")


def test_a_sweep_has_its_table_in_its_folder(tmp_path: Path) -> None:
    """Its files do not count as runs. The table of a pattern is in logs/. Names are not markup."""
    sweep = tmp_path / BRACKETS
    write_run(sweep / "0", 1, 84.0, act="[relu]")
    write_run(sweep / "1", 2, 86.0, act="[relu]")
    write_run(sweep / "[red]", 2, 86.0, status="running")
    for _ in range(2):
        done = run_script("compare", f"runs={sweep}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{BRACKETS}/compare.md .csv .png"
        assert f"{sweep}/[red]: running" in done.stdout
        assert sorted(p.name for p in sweep.glob("compare.*")) == [
            *("compare.csv", "compare.md", "compare.png")
        ]
    assert len(sweeps.jobs_of(sweep)) == 3
    assert comparison.default_output(f"{sweep}/**") == runs.ROOT / "logs" / "compare"


def test_a_sweep_ends_with_the_command_to_compare_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / BRACKETS
    write_run(sweep / "0", 1, 84.0)
    assert sweeps.report(sweep)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[-2:] == [str(runs.ROOT / "src" / "compare.py"), f"runs={BRACKETS}"]


@pytest.mark.fault(Promise.DISK, "a terminal that is gone, or a folder that is closed, at the end")
def test_neither_the_table_nor_the_files_are_lost_with_the_other(
    folder: Path, tmp_path: Path, survived: Survived
) -> None:
    script = [sys.executable, str(runs.ROOT / "src" / "compare.py"), f"runs={folder}"]
    with Path("/dev/full").open("w") as full:
        words = [*script, f"output={tmp_path}/table"]
        done = subprocess.run(words, env=clean_environment(), stdout=full, check=False)
    assert done.returncode == 2
    assert (tmp_path / "table.csv").read_text().count("latent_dim") > 4
    survived(1)
    (tmp_path / "file").touch()
    shown = run_script("compare", f"runs={folder}", f"output={tmp_path}/file/table")
    assert shown.returncode == 2
    assert "latent_dim=8" in shown.stdout
    assert "cannot be written" in shown.stderr
    survived(1)


@pytest.mark.fault(Promise.UNUSUAL, "a terminal of another encoding")
def test_a_table_is_shown_in_any_encoding(folder: Path, survived: Survived) -> None:
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for encoding, more in (("ascii", {}), ("cp1252", {}), ("ascii", c_locale)):
        environment = more or {"PYTHONIOENCODING": encoding}
        done = subprocess.run(
            [sys.executable, str(runs.ROOT / "src" / "compare.py"), f"runs={folder}"],
            env={**clean_environment(), "COLUMNS": "80", **environment},
            capture_output=True,
            encoding=encoding,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
        assert len({len(row) for row in rows}) == 1  # columns are aligned
        assert f"85.00 {'+-' if encoding == 'ascii' else '±'} 1.41" in done.stdout
        assert "± 1.41" in (folder / "compare.md").read_text(encoding="utf-8")
        survived(1)


def test_folders_without_any_result_get_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "running", 1, 1.0, status="running")
    done = run_script("compare", f"runs={tmp_path}", f"output={tmp_path}/table")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "running" in done.stderr


# the systems of the article


(MACHINE,) = shares(1)


def test_the_jobs_of_the_article() -> None:
    jobs = article.jobs(Path("/x"), [1, 2, 3], ["logger=csv"])
    assert len(jobs) == 14
    assert len({job.folder for job in jobs}) == 14
    assert sum(bool(job.claims) for job in jobs) == 12
    assert [j.train[-1] for j in jobs if not j.claims] == ["model.latent_dim=2"] * 2


def test_a_folder_of_other_settings_stays(tmp_path: Path) -> None:
    (job, *_) = article.jobs(tmp_path, [1], [])
    write_run(job.folder, 1, 1.0, status="running")
    with pytest.raises(ConfigError, match="other settings"):
        list(article.carry_out(job, MACHINE, set()))
    assert (job.folder / "config.yaml").is_file()


def test_an_unfinished_run_of_the_article_is_launched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, *_) = article.jobs(tmp_path, [1], [])
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        article, "_run", lambda script, words, *_: commands.append((script, *words))
    )
    list(article.carry_out(job, MACHINE, set()))
    assert commands[0] == ("train", *job.train, f"hydra.run.dir={job.folder}")
    (job.folder / "config.yaml").write_text("{}")
    runs.update_summary(job.folder, status="interrupted")
    commands.clear()
    list(article.carry_out(job, MACHINE, set()))
    assert commands[0] == ("train", f"rerun={job.folder}")
    runs.update_summary(job.folder, status="finished")
    commands.clear()
    list(article.carry_out(job._replace(evaluate=["figures=false"]), MACHINE, set()))
    all_claims = f"claims=[{','.join(CLAIMS)}]"
    words = (f"run={job.folder}", all_claims, "figures=false")
    assert commands == [("evaluate", *words)]


def test_the_command_gets_as_far_as_training(data_dir: Path, tmp_path: Path) -> None:
    """The whole of ``make article`` takes too long: its first training fails here."""
    train = [w for w in tiny(data_dir) if "latent_dim" not in w] + [
        "trainer.limit_val_batches=1e-6"
    ]
    words = [f"folder={tmp_path}", "seeds=[1]", f"train={json.dumps(train, ensure_ascii=False)}"]
    done = run_script("article", *words)
    assert done.returncode == 1
    assert "1/6 training autoencoder-s1" in done.stdout
    assert "limit_val_batches" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_evaluated_again_in_other_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after another training; not where both are as they were."""
    (job, *_) = article.jobs(tmp_path, [1], [], ["num_samples=5"])
    best = job.folder / "checkpoints" / "best.ckpt"

    def run(script: str, *_: Any) -> None:
        best.parent.mkdir(parents=True, exist_ok=True)
        if script == "train":
            best.write_bytes(b"weights")
            runs.update_summary(job.folder, status="finished")
            return
        done = {"metrics": {}, "seconds": dict.fromkeys(CLAIMS, 1.0)}
        of = {"checkpoint": best.name, "checkpoint_digest": runs.file_digest(best)}
        runs.write_json(job.folder / runs.EVALUATION, {**of, **done})

    monkeypatch.setattr(article, "_run", run)
    first = [f"training {job.folder.name}", f"evaluating {job.folder.name}"]
    assert list(article.carry_out(job, MACHINE, set())) == first
    assert list(article.carry_out(job, MACHINE, set())) == []
    other = job._replace(evaluate=["num_samples=6"])
    assert list(article.carry_out(other, MACHINE, set())) == first[1:]
    best.write_bytes(b"other weights")
    assert list(article.carry_out(other, MACHINE, set())) == first[1:]
    assert list(article.carry_out(other, MACHINE, set())) == []


def test_a_recipe_that_has_changed_is_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of the command may be the same, and mean something else by now."""
    (job, *_) = article.jobs(tmp_path / "runs", [1], [])
    monkeypatch.setattr(article, "_run", lambda *_: None)
    list(article.carry_out(job, MACHINE, set()))
    (job.folder / "config.yaml").write_text("{}")
    runs.update_summary(job.folder, status="finished")
    assert article.is_trained(job)
    conf = tmp_path / "conf"
    shutil.copytree(runs.ROOT / "conf", conf)
    recipe = conf / "optimizer" / "adamw.yaml"
    recipe.write_text(recipe.read_text() + "eps: 1e-6\n")
    monkeypatch.setattr(article, "_CONF", conf)
    article._described.cache_clear()
    try:
        assert not article.is_trained(job)
        with pytest.raises(ConfigError, match="other settings"):
            list(article.carry_out(job, MACHINE, set()))
    finally:
        article._described.cache_clear()


def test_jobs_of_the_article_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a share of its own and a file for what it prints; after a failure none begins."""
    two = [Share([0], []), Share([1], [])]
    monkeypatch.setattr(article, "num_cpus", lambda: 2)
    monkeypatch.setattr(article, "shares", lambda count: two)
    jobs = article.jobs(tmp_path, [1], [])
    together = threading.Barrier(2, timeout=20)
    begun: list[Share] = []

    def run(
        script: str, words: Sequence[str], share: Share, output: Path | None, _: object
    ) -> None:
        begun.append(share)
        assert output is not None
        together.wait()  # or they would not run at one time
        if words[0] == "model=vae":
            raise runs.RunFailed("a command ended with code 1")
        time.sleep(1.0)  # the other is over by now

    monkeypatch.setattr(article, "_run", run)
    told: list[str] = []
    with pytest.raises(runs.RunFailed, match="code 1"):
        article.carry_out_all(jobs, 2, lambda job, doing: told.append(doing))
    assert sorted(told) == ["training autoencoder-s1", "training vae-s1"]
    assert sorted(begun) == two
    with pytest.raises(ConfigError, match="num_jobs=3"):
        article.carry_out_all(jobs, 3, lambda job, doing: None)


def test_an_article_that_is_stopped_stops_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal to it alone, not to the group of processes of a terminal."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("import time; time.sleep(60)")
    jobs = article.jobs(tmp_path, [1], [])
    threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    start = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        article.carry_out_all(jobs, 1, lambda job, doing: None)
    assert stopped.value.code == 143
    assert time.monotonic() - start < 30


@pytest.mark.engines
def test_the_article_is_written_and_resumed(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is not done again; what was interrupted is."""
    monkeypatch.setattr(article, "SYSTEMS", ("cvae",))
    monkeypatch.setattr(article, "PLANES", ("cvae",))
    small = [w for w in tiny(data_dir) if "latent_dim" not in w]
    train, evaluate = [*small, "logger=csv", "trainer.max_epochs=1"], ["num_generated=20"]
    jobs = article.jobs(tmp_path, [1], train, [*evaluate, "figures=false"])

    def carry_out(num_parallel: int = 1) -> list[str]:
        told: list[str] = []
        article.carry_out_all(jobs, num_parallel, lambda _, doing: told.append(doing))
        return told

    assert carry_out() == ["training cvae-s1", "evaluating cvae-s1", "training cvae-plane"]
    table = article.table(jobs)
    assert "| `test/nll_k50` |" in table
    assert "over 1 seed;" in table
    assert min(article.figure(jobs).size) > 500
    runs.update_summary(jobs[1].folder, status="running")  # as if it had been killed
    assert carry_out(min(2, num_cpus())) == ["training cvae-plane"]
    assert carry_out() == []
