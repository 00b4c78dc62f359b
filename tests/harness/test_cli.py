"""The command line: quick help, errors of one to three lines, quoting of paths."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from harness.command_line import hooks
from harness.command_line.entry_point import entry_point
from harness.command_line.messages import report_errors
from harness.command_line.overrides import (
    bracket_lists,
    parse_overrides,
    quote_paths,
    rewrite_for_hydra,
)
from harness.config import checks, instantiation
from harness.contract.errors import ConfigError, RunFailed
from harness.run_folder import reading
from harness.run_folder.folder import RunFolder
from harness.sweeps import jobs
from harness.training import build, run
from harness.training.outcome import record_outcome
from tests.conftest import ROOT, clean_environment, run_fresh, run_light, run_script, tiny
from tests.tally import Promise, Survived

SCRIPTS = ("train", "generate", "evaluate", "embed", "compare", "export", "explore", "dashboard")
ENTRY_POINTS = [name for name in SCRIPTS if (ROOT / "src" / f"{name}.py").is_file()]


@pytest.fixture(scope="session")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a PYTHONPATH on which torch and lightning can be read but not imported."""
    folder = tmp_path_factory.mktemp("no_torch")
    for name in ("torch", "lightning", "wandb", "torchvision"):
        spec = find_spec(name)
        assert spec is not None
        real = Path(str(spec.origin)).parent
        (folder / name).mkdir()
        for child in real.iterdir():
            (folder / name / child.name).symlink_to(child)
        (folder / name / "__init__.py").unlink()
        text = (real / "__init__.py").read_text(encoding="utf-8")
        stop = f"raise SystemExit('{name} was imported')\n"
        (folder / name / "__init__.py").write_text(stop + text, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("name", ENTRY_POINTS)
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["sede=1"]], ids=" ".join)
def test_help_config_and_errors_need_no_torch(
    name: str, arguments: list[str], no_torch: str
) -> None:
    if arguments == ["--cfg", "job"]:
        done = run_fresh(ROOT / "src" / f"{name}.py", arguments, PYTHONPATH=no_torch)
    else:
        done = run_light(name, *arguments, PYTHONPATH=no_torch)
    assert done.returncode == (2 if arguments == ["sede=1"] else 0), done.stderr
    if arguments == ["--help"]:
        assert f"python src/{name}.py" in done.stdout


@pytest.mark.fault(Promise.UNUSUAL, "a terminal with another encoding")
def test_scripts_print_errors_in_ascii(no_torch: str, survived: Survived) -> None:
    typed = "name='±≥数"
    for name in ENTRY_POINTS:
        done = run_light(name, typed, PYTHONPATH=no_torch, PYTHONIOENCODING="ascii")
        assert done.returncode == 2
        assert r"name='+->=\u6570" in done.stderr
        survived(1)
    command = [sys.executable, "-m", "harness.training.launch", "/no/such/±"]
    environment = {**clean_environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "/no/such/+-" in done.stderr
    survived(1)


def test_lists_need_no_brackets() -> None:
    typed = ["label=3,7", "metrics=test/nll_k50,val/elbo", "claims=bound", "+x=1,2"]
    assert bracket_lists(typed) == [
        *("label=[3,7]", "metrics=[test/nll_k50,val/elbo]", "claims=bound", "+x=[1,2]")
    ]
    others = ["runs=a,b", "output=/x,y", "name='a,b'", "label=[3,7]", "hydra.verbose=a,b", "a=,"]
    assert bracket_lists(others) == others


def test_help_takes_little_cpu_time(no_torch: str) -> None:
    """Count CPU seconds, as the machine may be busy; take the best of at most three."""
    seconds: list[float] = []
    while len(seconds) < 3 and not (seconds and min(seconds) < 1.5):
        before = os.times()
        done = run_fresh(ROOT / "src" / "train.py", ["--help"], PYTHONPATH=no_torch)
        after = os.times()
        assert done.returncode == 0, done.stderr
        spent = after.children_user - before.children_user
        seconds.append(spent + after.children_system - before.children_system)
    assert min(seconds) < 1.5


# run by test_bad_input.py
BAD = [
    ("train", "model.latnet_dim=3", ["model.latnet_dim", "model.latent_dim?"]),
    ("train", "latent_dim=3", ["latent_dim=3", "model.latent_dim?"]),
    ("train", "modle=vae", ["modle=vae", "model?"]),
    ("train", "model=vea", ["model=vea", "autoencoder, cvae, cvae_plain, vae"]),
    ("train", "model/network=foo", ["model/network=foo", "conv, mlp"]),
    ("train", "model.network.channels=[8]", ["model.network.channels", "model/network=conv"]),
    ("train", "model.defaults=1", ["there is no key model.defaults;"]),
    ("train", "callbacks.early_stopping.patience=3", ["it exists with callbacks=early_stopping"]),
    ("train", "model.condition.num_classes=3", ["takes its value from data.condition.num_classes"]),
    ("train", "model.latent_dim=0", ["model.latent_dim=0", "from 1 to 65536"]),
    ("train", "~optimizer.lr", ["optimizer.lr: missing", "a number above 0"]),
    ("train", "model.latent_dim=abc", ["model.latent_dim=abc", "an integer"]),
    ("train", "data.batch_size=0", ["data.batch_size=0", "from 1 to"]),
    ("train", "trainer.devices=1000", ["trainer.devices=1000", "this machine has"]),
    ("train", "experiment=none", ["experiment=none", "quick"]),
    ("train", "model.latent_dim=[1", ["model.latent_dim=[1", "key=value"]),
    ("train", "latent", ["latent", "key=value"]),
    ("train", "model=null", ["model=null", "cannot be left out"]),
    ("train", "trainer.num_nodes=2", ["trainer.num_nodes=2", "torchrun"]),
    ("train", "model._target_=paper.Net", ["model._target_=paper.Net: No module named 'paper'"]),
    ("train", "scheduler=none", ["did you mean scheduler=null?"]),
    ("train", "logger=false", ["logger=false", "csv, tensorboard, wandb or null"]),
    ("train", "network=conv", ["network=conv", "did you mean model/network=conv?"]),
    ("train", "early_stopping=true", ["did you mean callbacks=early_stopping?"]),
    ("train", "wandb=offline", ["did you mean logger.wandb.mode?"]),
    ("train", "hidden_dim=64", ["did you mean model.network.hidden_dim?"]),
    ("train", "trainer.foo=1", ["there is no key trainer.foo; --help"]),
    ("train", "+trainer.foo=1", ["Trainer has no such key; remove this override"]),
    ("train", "+model.network.latent_dim=3", ["model.network.latent_dim: the code sets it"]),
    ("train", "model.network.hidden_dim=${model.laten_dim}", ["did you mean model.latent_dim?"]),
    ("train", "~name", ["~name: name is null already"]),
    ("train", "+callbacks.ema._partial_=true", ["_partial_=true: must be false"]),
    ("train", "model._target_=src.cvae.models.CVAE", ["must be cvae.models.CVAE, without src."]),
    (
        "train",
        "+callbacks.x={_target_:lightning.pytorch.callbacks.Timer,duration:1h}",
        ["callbacks.x.duration=1h: must be text of the form DD:HH:MM:SS"],
    ),
    (
        "train",
        "+callbacks.x={_target_:lightning.pytorch.callbacks.StochasticWeightAveraging,swa_lrs:0}",
        ["callbacks.x.swa_lrs=0: must be a number above 0"],
    ),
    ("train", "data.image_shape=[32,32]", ["must be a list of 3, each an integer"]),
    ("train", "optimizer._target_=torch.nn.Relu", ["did you mean torch.nn.ReLU?"]),
    ("generate", "device=gpu", ["device=gpu: there is no key device; --help"]),
    ("generate", "-m", ["-m", "train.py"]),
    ("generate", "run=", ["run=", "not empty"]),
    ("train", "--quiet", ["--quiet", "--help"]),
    ("generate", "label=-1", ["label=-1", "at least 0"]),
    ("generate", "label=3,3", ["label=[3, 3]", "no duplicates"]),
    ("generate", "label=3,x", ["label=[3, 'x']", "an integer"]),
    ("generate", "run=/no/such/run", ["run=/no/such/run", "no such folder"]),
    ("generate", "num_samples=0", ["num_samples=0", "from 1 to"]),
    ("generate", "tempereture=2", ["tempereture=2", "temperature?"]),
    ("embed", "split=tset", ["split=tset", "train", "validation", "test"]),
    ("embed", "run=/no/such/run", ["run=/no/such/run", "no such folder"]),
    ("compare", "runs=/no/such/folder", ["runs=/no/such/folder", "no run folder"]),
]


@pytest.mark.parametrize("typed", ["name=12e4567", "data.condition=3"])
def test_a_wrong_value_is_reported_once(typed: str, no_torch: str) -> None:
    """Interpolations such as logger.wandb.name take the value of another setting."""
    done = run_light("train", typed, PYTHONPATH=no_torch)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {typed}: must be ")


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("slurm", "submitit"), ("submitit_local", "submitit"), ("ray_local", "ray")],
)
def test_a_missing_launcher_names_its_extra(launcher: str, extra: str) -> None:
    if find_spec(f"hydra_plugins.hydra_{extra}_launcher"):
        pytest.skip(f"{extra} is installed")
    done = run_script("train", "-m", f"hydra/launcher={launcher}", "seed=1,2")
    assert done.returncode == 2
    assert done.stderr.endswith(f"pip install -e '.[{extra}]'\n")


def test_hydra_full_error_shows_the_traceback() -> None:
    done = run_light("train", "latent", HYDRA_FULL_ERROR="1")
    assert "Traceback" in done.stderr


def test_a_sweep_is_checked_before_its_first_job(no_torch: str, tmp_path: Path) -> None:
    sweep_dir = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    done = run_light(
        "train", "-m", "model.latent_dim=2,0", "seed=1,2", sweep_dir, PYTHONPATH=no_torch
    )
    assert done.returncode == 2
    assert "model.latent_dim=0 seed=1" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_an_override_may_belong_to_a_swept_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra applies fixed overrides without the swept group, where their key does not exist."""
    overrides = [
        "model=vae",
        "model/penalty=adversary,labelwise_adversary",
        "model.penalty.weight=2",
    ]
    sweep_dir = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    monkeypatch.setattr(jobs, "run_jobs", lambda run_dirs, *_: [0.0] * len(run_dirs))
    monkeypatch.setattr(jobs, "print_report", lambda *_: True)
    monkeypatch.setattr(
        sys, "argv", ["train.py", "-m", *overrides, "model.penalty.hidden_dim=8", sweep_dir]
    )
    entry_point("train")(lambda cfg: None)()
    for number, group in enumerate(("adversary", "labelwise_adversary")):
        penalty = reading.load_config(tmp_path / "sweep" / str(number)).model.penalty
        assert (penalty.weight, penalty.hidden_dim) == (2, 8)
        summary = reading.read_summary(tmp_path / "sweep" / str(number))
        assert summary["swept"] == [f"model/penalty={group}"]
        assert "model.penalty.weight=2" in summary["overrides"]


def test_a_search_is_checked_once_per_combination_of_groups() -> None:
    typed = ["model=vae,cvae", "model.latent_dim=range(2,9)", "optimizer.lr=interval(0,1)"]
    overrides = parse_overrides([*typed, "model.beta=choice(2)", "~logger"])
    sampled = ["model.latent_dim=2", "optimizer.lr=0.5", "model.beta=2", "~logger"]
    assert hooks._sample_jobs(overrides) == [["model=vae", *sampled], ["model=cvae", *sampled]]
    plugin = import_module("harness.sweeps.optuna_sweeper")
    fixed = [plugin._fixed_override(override) for override in overrides]
    assert fixed == [None, None, None, "model.beta=2", "~logger"]


NOT_IN_EVERY_JOB = [
    (["model/penalty=adversary,none"], "model.penalty.weight=2", "job 1 (model/penalty=none): "),
    (["model/penalty=adversary,none"], "model.penalty.wieght=2", ""),
    (["seed=1,2"], "model.penalty.weight=2", ""),
]


@pytest.mark.parametrize(("swept", "override", "job"), NOT_IN_EVERY_JOB)
def test_an_override_that_a_job_lacks_is_rejected(
    swept: list[str], override: str, job: str, no_torch: str, tmp_path: Path
) -> None:
    sweep_dir = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    done = run_light("train", "-m", "model=vae", *swept, override, sweep_dir, PYTHONPATH=no_torch)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {job}{override}: there is no key {override.split('=')[0]}"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


def test_a_folder_with_a_run_is_rejected(finished_run: Path, data_dir: Path, no_torch: str) -> None:
    before = (finished_run / "config.yaml").read_bytes()
    done = run_light("train", *tiny(data_dir, finished_run), PYTHONPATH=no_torch)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert (finished_run / "config.yaml").read_bytes() == before


SPECIAL_NAMES = [
    "a b",
    "a,b",
    "a=b",
    "[a]",
    "{a}",
    "ä é 数字",
    "it's",
    "a\\b",
    "a'b\\",
    "(x)",
    "a:b",
    "#x",
]


@pytest.mark.parametrize("name", SPECIAL_NAMES)
def test_special_characters_in_paths_are_quoted(name: str, tmp_path: Path) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (quoted,) = quote_paths([f"data.data_dir={name}"], tmp_path)
    (parsed,) = OverridesParser.create().parse_overrides([quoted])
    assert parsed.value() == str(tmp_path / name)
    assert not parsed.is_sweep_override()


def test_arguments_are_converted_to_hydra_syntax() -> None:
    assert rewrite_for_hydra(["seed=1", "-m", "model=vae"]) == ["-m", "seed=1", "model=vae"]
    assert rewrite_for_hydra(["logger=null", "debug=null", "callbacks=null"]) == [
        "~logger",
        "~callbacks",
    ]


def test_a_run_path_may_be_relative_to_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.command_line.overrides.ROOT", tmp_path / "project")
    (tmp_path / "project" / "logs" / "latest").mkdir(parents=True)
    here = tmp_path / "elsewhere"
    assert quote_paths(["run=logs/latest"], here) == [f"run='{tmp_path}/project/logs/latest'"]
    (here / "logs" / "latest").mkdir(parents=True)
    assert quote_paths(["run=logs/latest"], here) == [f"run='{here}/logs/latest'"]


def test_only_paths_are_quoted(tmp_path: Path) -> None:
    typed = ["model.latent_dim=2,8", "-m", "output=null", "run_dir=x", "~logger"]
    assert quote_paths(typed, tmp_path) == typed
    assert quote_paths(["run='a b'"], tmp_path) == [f"run='{tmp_path}/a b'"]
    assert quote_paths(["+run=/x"], tmp_path) == ["+run='/x'"]
    assert quote_paths(["hydra.run.dir=${project_root:}/x"], tmp_path) == [
        "hydra.run.dir='${project_root:}/x'"
    ]


def test_weights_resolve_links_when_the_command_starts(tmp_path: Path) -> None:
    """All jobs start from the same weights, although logs/latest moves to the first job."""
    for name in ("a run", "b,c", "d"):
        (tmp_path / name).mkdir()
    (tmp_path / "latest").symlink_to("a run")
    for typed, named in (
        ("latest", ["a run"]),
        ("'a run'", ["a run"]),
        ("b,c", ["b,c"]),
        ("latest,d", ["a run", "d"]),
    ):
        expected = ",".join(f"'{tmp_path / name}'" for name in named)
        assert quote_paths([f"weights={typed}"], tmp_path) == [f"weights={expected}"]
    for typed in ("weights=null", "weights=", "weights=nothing", "weights=latest,nothing"):
        assert quote_paths([typed], tmp_path) == [typed]
    assert quote_paths(["weights=conf"], tmp_path) == [f"weights='{ROOT / 'conf'}'"]


def test_suggested_commands_are_quoted_for_the_shell(finished_run: Path) -> None:
    assert (
        f"pictures: {finished_run / 'figures'}" in RunFolder(finished_run).next_steps().splitlines()
    )
    lines = [line for line in RunFolder(finished_run).next_steps().splitlines() if "python" in line]
    assert lines
    for line in lines:
        assert f"run={finished_run}" in shlex.split(line)


def test_a_finished_run_lists_its_pictures(finished_run: Path, tmp_path: Path) -> None:
    shutil.copy(finished_run / "config.yaml", tmp_path)
    folder = tmp_path / "figures"
    assert "pictures" not in RunFolder(tmp_path).next_steps()
    folder.mkdir()
    names = ["a_grid", "curves", *(f"samples_of_attribute_{i}" for i in range(5))]
    for name in names:
        (folder / f"{name}.png").touch()
    lines = RunFolder(tmp_path).next_steps().splitlines()
    start = lines.index(f"pictures: {folder}") + 1
    shown = lines[start : lines.index("next:")]
    assert max(len(line) for line in shown) <= 80
    assert len(shown) == 2
    assert [name.strip() for name in " ".join(shown).split(",")] == names


def make_memory_errors() -> Iterator[Exception]:
    """Yield the errors that running out of memory raises."""
    for allocate in (lambda: torch.empty(10**14), lambda: np.empty(10**15)):
        try:
            allocate()
        except (RuntimeError, MemoryError) as error:
            yield error
    yield torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")
    wrapped = InstantiationException("Error in call to target 'torch.nn.Linear'")
    wrapped.__cause__ = MemoryError()
    yield wrapped


@pytest.mark.fault(Promise.INPUT, "out of memory")
def test_out_of_memory_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], survived: Survived
) -> None:
    reading.update_summary(tmp_path, status="running")
    run_folder = RunFolder(tmp_path)
    for error in make_memory_errors():
        with (
            pytest.raises(SystemExit) as exited,
            report_errors("generate", less_memory="num_samples"),
        ):
            raise error
        assert exited.value.code == 1
        error_text = capsys.readouterr().err
        assert error_text.count("\n") == 1
        assert error_text.startswith("failed: out of memory")
        assert "lower num_samples" in error_text
        run_folder.config = OmegaConf.create({"data": {"_target_": "cvae.data.MNISTDataModule"}})
        raises_run_failed = pytest.raises(RunFailed, match=r"lower data.batch_size")
        with raises_run_failed, record_outcome(run_folder, 0):
            raise error
        survived(1)
    with pytest.raises(RuntimeError, match="another"), report_errors("generate"):
        raise RuntimeError("another")


def test_the_peak_memory_is_unknown_without_posix_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (run._peak_memory() or 0) > 2**20
    monkeypatch.setitem(sys.modules, "resource", None)
    spec = spec_from_file_location("training_on_windows", run.__file__)
    assert spec is not None
    assert spec.loader is not None
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    assert loaded._peak_memory() is None


WRONG_CLASSES: list[tuple[str, str, dict[str, Any], str | None]] = [
    ("optimizer", "torch.optim.SGD", {"betas": [0, 0]}, "has no such key; .* ~optimizer.betas"),
    ("model.network", "torch.nn.Linear", {"in_features": 2}, "out_features: missing"),
    ("model.network", "torch.nn.ReLU", {"_partial_": True}, None),  # for a model of your own
    ("callbacks.x", "lightning.pytorch.callbacks.Timer", {"durations": 1}, "did you mean"),
    ("scheduler", "torch.optim.lr_scheduler.Nothing", {}, "Nothing: .*Nothing"),
    ("data", "torch.optim", {}, "must be a class or a function"),
    ("data", "torch.nn.Identity", {}, None),  # takes anything
    ("data.augmentation", "torch.nn.ReLU", {"_partial_": True}, "must take the argument seed"),
]


@pytest.mark.fault(Promise.INPUT, "classes that do not exist or do not take the given arguments")
def test_wrong_arguments_of_a_class_are_rejected(survived: Survived) -> None:
    for key, target, arguments, pattern in WRONG_CLASSES:
        cfg: Any = {"_target_": target, **arguments}
        for name in reversed(key.split(".")):
            cfg = {name: cfg}
        if key == "data.augmentation":
            cfg["data"]["_target_"] = "cvae.data.MNISTDataModule"
            cfg["data"]["data_dir"] = "data"
        problems = list(checks.check_arguments(cfg))
        if pattern is None:
            assert problems == []
            instantiation.check_classes(cfg)
        elif problems:
            assert any(re.search(pattern, problem) for problem in problems), problems
            survived(1)
        else:
            with pytest.raises(ConfigError, match=pattern):
                instantiation.check_classes(cfg)
            survived(1)


def test_a_network_must_accept_the_arguments_of_its_model() -> None:
    network = {"_target_": "torch.nn.ReLU", "_partial_": True}
    model = {"_target_": "cvae.models.CVAE", "latent_dim": 2, "network": network}
    (problem,) = checks.check_arguments({"model": model})
    assert re.match(r"model.network._target_=.*: must take .* image_shape", problem)


def test_wrong_values_of_a_factory_are_reported_with_its_target() -> None:
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1.0, "nesterov": True}
    factory = build._build_factory("optimizer", node)
    assert "params" in signature(factory).parameters
    with pytest.raises(ConfigError, match=r"optimizer._target_=torch.optim.SGD: Nesterov"):
        factory([torch.nn.Parameter(torch.zeros(()))])


@pytest.mark.fault(Promise.INPUT, "an unsupported Python version")
def test_an_unsupported_python_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "python"
    fake.write_text("""#!/usr/bin/env python3
import sys
sys.version_info = (3, 14, 0)
exec(sys.argv[2])
""")
    fake.chmod(0o755)
    (tmp_path / "good").symlink_to(sys.executable)  # a path without spaces
    for python, code in ((fake, 2), (tmp_path / "good", 0)):
        command = ["make", "--eval", "check: ; @$(CHECK_PYTHON)", "check", f"PYTHON={python}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == code
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    main = entry_point("train")(lambda cfg: None)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "version_info", (3, 14, 0, "final", 0))
        with pytest.raises(SystemExit) as exited:
            main()
    assert exited.value.code == 2
    message = "error: Python 3.14: this project needs Python 3.11 to 3.13\n"
    assert capsys.readouterr().err == message
