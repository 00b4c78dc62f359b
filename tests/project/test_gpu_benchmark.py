"""The benchmark of one GPU (make gpu), on a machine without one."""

import argparse
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.run_folder import checkpoints
from tests.conftest import ROOT, run_fresh
from tests.project.test_conf import compose

sys.path.append(str(ROOT / "benchmarks"))

import gpu
import gpu_checks
import gpu_nats
import gpu_rates
import gpu_runs
from gpu_runs import Skipped


@pytest.mark.engines
def test_the_gpu_benchmark_runs_on_a_cpu(data_dir: Path, tmp_path: Path) -> None:
    data = ["data=kmnist", f"data.data_dir={data_dir}", "data.batch_size=32"]
    data += ["data.eval_batch_size=16", "data.validation_size=45"]
    arguments = ["--cpu", "--steps", "4", "--folder", str(tmp_path), "--train", *data]
    path = f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"
    script = ROOT / "benchmarks" / "gpu.py"
    done = run_fresh(script, arguments, timeout=600, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "measured.json").read_text())
    assert document["gpu"] is None
    for section in gpu.BUDGETS:
        assert list(document[section]) == list(gpu.select_measurements(section, is_cpu=True))
    losses, waits, resumed, *_ = document["checks"].values()
    assert "batches were made on cpu" in waits["skipped"]
    assert losses["passed"]
    assert losses["largest_relative_difference"] == 0
    assert resumed["exit_codes"] == [143, 0]
    assert resumed["equal_weights"]
    rates = [row for row in document["rates"].values() if "images_per_second" in row]
    assert len(rates) >= 4
    default, weights, quick, speedrun = document["nats"].values()
    assert default["steps"] == 4
    assert weights["float32"] == pytest.approx(weights["bf16-mixed"], abs=0.1)
    assert quick["float32"] == pytest.approx(quick["bf16-mixed"], abs=1)
    assert "84 not reached" in speedrun["shown"]
    assert next(iter(document["evaluation"].values()))["values"]["test/nll_k2"] > 0


def test_a_gpu_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert "no CUDA GPU found: --cpu" in capsys.readouterr().err


def test_a_measurement_that_fails_is_recorded_and_the_others_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: Any) -> dict[str, Any]:
        raise ValueError("no such kernel")

    def skip(options: Any) -> dict[str, Any]:
        raise Skipped("needs a GPU")

    functions = {"one": fail, "two": skip, "three": lambda _: gpu_checks.make_verdict(False, "0.5")}
    monkeypatch.setattr(gpu, "select_measurements", lambda section, is_cpu: functions)
    output = tmp_path / "gpu.json"
    output.write_text('{"checks": {}}')
    gpu.run_section("checks", argparse.Namespace(cpu=True, output=output))
    document = json.loads(output.read_text())
    one, two, three = document["checks"].values()
    assert one["error"] == "ValueError: no such kernel"
    assert two["shown"] == "skipped: needs a GPU"
    assert not three["passed"]
    assert gpu.list_failures(document) == [
        "checks: one: **no result**: ValueError: no such kernel",
        "checks: three: **failed**: 0.5",
    ]


def test_a_section_is_stopped_at_the_end_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys, time; time.sleep(60 * (sys.argv[1] == 'slow')); sys.exit(3)")
    monkeypatch.setattr(gpu, "__file__", str(script))
    assert "stopped" in (gpu.run_section_in_process("rates", ["slow"], 1, is_cpu=True) or "")
    assert (
        gpu.run_section_in_process("rates", ["fast"], 60, is_cpu=True) == "ended with exit code 3"
    )


def test_the_bound_on_gpu_and_cpu_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(options: Any, accelerator: str, num_samples: int, claims: str) -> dict[str, Any]:
        assert (num_samples, claims) == (50, "bound")
        values = {"test/elbo": -88.0, "test/nll_k1": 88.5, "test/nll_k50": 84.0}
        if accelerator == "cpu":
            values = {**values, "test/nll_k1": 99.0, "test/nll_k50": 84.25}
        seconds = 2.0 if accelerator == "auto" else 30.0
        return {"seconds_by_claim": {"bound": seconds}, "values": values}

    monkeypatch.setattr(gpu_nats, "_evaluate_on", evaluate)
    found = gpu_nats.compare_cpu_and_gpu(argparse.Namespace(cpu=False))
    assert found["shown"] == "2.0 s and 30.0 s; largest difference 2.5e-01 nats"


def test_the_overrides_of_all_gpu_runs_compose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All overrides of runs and loops are valid, and the GPU overrides are applied."""
    composed = []

    def record(overrides: list[str]) -> Any:
        composed.append(compose(*(w for w in overrides if not w.startswith("+callbacks"))))
        raise Skipped("not trained")

    options = gpu.parse(["--cpu", "--folder", str(tmp_path)])
    options.cpu = False
    for module in (gpu_runs, gpu_rates):
        monkeypatch.setattr(module, "compose_config", record)
    measured = {
        k: v for s in ("rates", "nats") for k, v in gpu.select_measurements(s, False).items()
    }
    reasons = {name: gpu.measure(run, options)["shown"] for name, run in measured.items()}
    of_weights = reasons.pop("default, -ELBO of the same weights")
    assert "measure the section nats first" in of_weights
    assert {r for r in reasons.values() if "has no cuda_graph" not in r} == {"skipped: not trained"}
    assert {cfg.trainer.accelerator for cfg in composed} == {"gpu"}
    assert {cfg.trainer.precision for cfg in composed} == {"32-true", "bf16-mixed"}
    assert {cfg.data.batch_size for cfg in composed} == {128, 512}
    assert "reduce-overhead" in {cfg.compile for cfg in composed}


def test_runs_that_differ_in_one_weight_are_not_equal(tmp_path: Path) -> None:
    weights = {"model.a": torch.ones(3), "model.b": torch.zeros(2, 2)}
    for name in ("one", "same", "other"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        if name == "other":
            weights = {**weights, "model.a": torch.tensor([1.0, 1.0, 1.0 + 1e-7])}
        path = tmp_path / name / "checkpoints" / "last.ckpt"
        checkpoints.save({"state_dict": weights, "global_step": 1, "config": {}}, path)
    assert gpu_checks.have_equal_weights(tmp_path / "one", tmp_path / "same")
    assert not gpu_checks.have_equal_weights(tmp_path / "one", tmp_path / "other")


def test_the_table_names_the_gpu_and_what_failed() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "tables.py"))["render_gpu"]
    rate = {"images_per_second": 123456, "milliseconds_per_step": 1.037, "peak_memory_mib": 310}
    document = {
        "gpu": "NVIDIA H100 80GB HBM3",
        "cuda": "13.0",
        "machine": {"versions": {"torch": "2.14.1"}},
        "seconds": {"checks": 60.0, "rates": 180.0},
        "checks": {"equal losses": gpu_checks.make_verdict(False, "0.5")},
        "rates": {"ours": rate, "bare": gpu.describe_failure("RuntimeError: a | b")},
        "nats": {},
        "evaluation": {},
    }
    table = render(document)
    assert "NVIDIA H100 80GB HBM3, CUDA 13.0, torch 2.14.1; `make gpu`, 4 minutes" in table
    assert "| ours | 123,456 | 1.037 | 310 |" in table
    assert "| equal losses | **failed**: 0.5 |" in table
    assert "| bare | **no result**: RuntimeError: a / b |" in table
    for measured in ({}, {**document, "gpu": None}):  # not measured, or measured with --cpu
        assert "has not been run" in render(measured)
