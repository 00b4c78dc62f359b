"""Untrusted run folders: none of their code runs, and nothing is written outside of them."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from cvae import load_run
from harness.config import machine, paths
from harness.contract import files
from harness.contract.errors import ConfigError, RunFailed
from harness.run_folder import checkpoints, loading, reading, trust
from harness.run_folder.folder import LOG, RunFolder
from harness.sweeps import jobs
from harness.training.log import log_to_folder
from tests.conftest import run_script
from tests.tally import Promise

TARGETS = "code, commands and files as `_target_` in a config"

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """Return a copy of a run that a test makes hostile."""
    copy = tmp_path / "theirs"
    shutil.copytree(finished_run, copy, ignore=shutil.ignore_patterns("wandb", "figures"))
    return copy


@pytest.fixture
def installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an installed package that leaves a file when imported."""
    package = tmp_path / "installed" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import os, pathlib\n"
        "from cvae.networks import MLP\n"
        f"pathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
        "class MyNet(MLP):\n    pass\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    return package


def tamper(run_dir: Path, change: Change) -> None:
    """Change config.yaml and the config in the checkpoint, with valid checksums."""
    for name in (reading.BEST, reading.LAST):
        checkpoint = checkpoints.load(run_dir / name)
        change(checkpoint["config"])
        checkpoints.save(checkpoint, run_dir / name)
    plain = OmegaConf.to_container(OmegaConf.load(run_dir / reading.CONFIG))
    assert isinstance(plain, dict)
    change(plain)  # type: ignore[arg-type]
    (run_dir / reading.CONFIG).write_text(OmegaConf.to_yaml(plain))


def set_key(dotted: str, value: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        *parents, last = dotted.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return change


def make_attacks(marker: str) -> dict[str, Any]:
    """Return targets to reject; most would write or read a marker file if called."""
    touch = f"touch '{marker}'"
    return {
        "os.system": {"_target_": "os.system", "_args_": [touch]},
        "subprocess": {"_target_": "subprocess.run", "args": ["touch", marker]},
        "eval": {"_target_": "builtins.eval", "_args_": [f"open({marker!r}, 'w')"]},
        "exec": {"_target_": "builtins.exec", "_args_": [f"open({marker!r}, 'w')"]},
        "partial": {"_target_": "os.system", "_partial_": True, "command": touch},
        "torch.load": {"_target_": "torch.load", "f": marker, "weights_only": False},
        "torch.save": {"_target_": "torch.save", "obj": 1, "f": marker},
        "torch.hub": {"_target_": "torch.hub.load", "repo_or_dir": marker, "model": "x"},
        "torch's os": {"_target_": "torch.os.system", "_args_": [touch]},
        "torch.nn's": {"_target_": "torch.nn.modules.module.torch.os.system", "_args_": [touch]},
        "numpy": {"_target_": "numpy.save", "file": marker, "arr": 1},
        "our writer": {
            "_target_": "harness.contract.files.write_text",
            "path": marker,
            "text": "x",
        },
        "our os": {"_target_": "harness.run_folder.folder.os.system", "_args_": [touch]},
        "our logger": {"_target_": "harness.run_folder.metrics_file.MetricsFile", "path": marker},
        "our loader": {
            "_target_": "harness.run_folder.loading.load_run",
            "path": ".",
            "trusted": "os",
        },
        "the package's loader": {"_target_": "cvae.load_run", "path": ".", "trusted": ["os"]},
        "our instantiate": {
            "_target_": "harness.config.instantiation.instantiate",
            "node": {"_target_": "os.system", "command": touch},
        },
        "our checks": {"_target_": "harness.command_line.hooks.TrainChecks"},
        "a long name": {"_target_": f"{'a' * 300}.B"},
        "our class": {"_target_": "harness.run_folder.folder.RunFolder", "path": marker},
        "our launcher": {"_target_": "hydra_plugins.harness_sweeps.LocalLauncher"},
        "a script": {"_target_": "train.main"},
        "a function of the science": {"_target_": "cvae.export.save_model", "folder": marker},
        "what the science imports": {"_target_": "cvae.data.np.save", "file": marker, "arr": 1},
        "a class that it imports": {"_target_": "cvae.models.nn.Linear", "in_features": 1},
        "another that it imports": {"_target_": "cvae.lightning_module.ExactModule"},
        "its method": {"_target_": "cvae.models.VAE.sample"},
        "its instance": {"_target_": "cvae.settings.FREE"},
        "nothing": {"_target_": "cvae.models."},
        "above": {"_target_": "..cvae.models.VAE"},
        "method": {"_target_": "hydra.utils.get_method", "path": "os.system"},
        "call": {"_target_": "hydra.utils.call", "config": {"_target_": "os.system", "x": touch}},
        "pathlib": {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "x"}]},
        "runpy": {"_target_": "runpy.run_path", "path_name": marker},
        "theirs": {"_target_": "their_package.Anything"},
        "no text": {"_target_": ["os.system"]},
        "space": {"_target_": " os.system", "_args_": [touch]},
        "in a list": [[{"deep": {"_target_": "os.system", "_args_": [touch]}}]],
        "own, with an attack inside": {
            "_target_": "cvae.types.Batch",
            "x": {"_target_": "cvae.load_run", "path": marker},
        },
        "known, with an attack inside": {
            "_target_": "cvae.networks.MLP",
            "_partial_": True,
            "hidden_dim": 16,
            "encoder_blocks": {"_target_": "os.system", "_args_": [touch]},
        },
    }


PLACES = ("model.network", "model.extra", "data.extra", "data", "callbacks.extra", "optimizer")


@pytest.mark.fault(Promise.STRANGERS, TARGETS)
@pytest.mark.parametrize("name", make_attacks(""))
def test_targets_outside_the_trusted_list_are_rejected(name: str, tmp_path: Path) -> None:
    """Test the check itself, with each target in several places of a config."""
    attack = make_attacks(str(tmp_path / "marker"))[name]
    for place in PLACES:
        config: dict[str, Any] = {"model": {"network": {}}, "data": {}, "callbacks": {}}
        set_key(place, attack)(config)
        with pytest.raises(ConfigError, match=r"_target_"):
            trust.check_targets(config, None, get_object)
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault(Promise.STRANGERS, TARGETS)
@pytest.mark.parametrize("place", ["model", "model.network", "data.extra", "callbacks.extra.deep"])
@pytest.mark.parametrize(
    "target",
    ["harness.tracking.wandb.wandb_logger", "lightning.pytorch.loggers.TensorBoardLogger"],
)
def test_loggers_are_not_trusted_in_the_model_the_data_or_within_a_callback(
    target: str, place: str
) -> None:
    """A logger in place of a network could write into any folder that the config names."""
    config: dict[str, Any] = {"model": {"network": {}}, "data": {}, "callbacks": {"extra": {}}}
    set_key(place, {"_target_": target, "save_dir": "/", "name": "x"})(config)
    with pytest.raises(ConfigError, match=r"not trusted"):
        trust.check_targets(config, None, get_object)
    trust.check_targets({"logger": {"x": {"_target_": target}}}, None, get_object)


@pytest.mark.fault(Promise.STRANGERS, TARGETS)
@pytest.mark.parametrize("name", ["os.system", "torch's os", "our os", "partial", "in a list"])
@pytest.mark.parametrize("place", ["model.network", "model.extra", "data.extra"])
def test_loading_a_hostile_run_folder_runs_no_code(name: str, place: str, run_copy: Path) -> None:
    """Test loading from a checkpoint with a valid checksum and a hostile config."""
    marker = run_copy.parent / "marker"
    tamper(run_copy, set_key(place, make_attacks(str(marker))[name]))
    with pytest.raises(ConfigError, match="_target_"):
        loading.load_data(loading.load_model(loading.find_run(run_copy)[1])[1])
    with pytest.raises(ConfigError, match="_target_"):
        reading.load_untrusted_config(run_copy)
    assert not marker.exists()


@pytest.mark.fault(Promise.STRANGERS, "a command as `_target_`, through an entry point")
def test_generate_rejects_a_hostile_folder_with_one_line(run_copy: Path) -> None:
    marker = run_copy.parent / "marker"
    tamper(run_copy, set_key("model", make_attacks(str(marker))["os.system"]))
    done = run_script("generate", f"run={run_copy}", "label=1")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "model._target_='os.system'" in done.stderr
    assert not marker.exists()


def test_resolvers_and_interpolations_are_rejected(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    for value in ("${oc.env:SECRET}", "${now:%Y}", "${.network}", "${project_root:}"):
        tamper(run_copy, set_key("model.latent_dim", value))
        with pytest.raises(ConfigError, match=r"model\.latent_dim: holds an interpolation"):
            load_run(run_copy)
        with pytest.raises(ConfigError, match="interpolation"):
            reading.load_config(run_copy)
    with pytest.raises(ConfigError, match="interpolation"):
        trust.check_plain({"a": {"${oc.env:HOME}": 1}})


def test_control_characters_are_rejected(run_copy: Path) -> None:
    tamper(run_copy, set_key("name", "\x1b]0;owned\x07"))
    with pytest.raises(ConfigError, match="name: holds control characters"):
        load_run(run_copy)


def test_an_installed_package_needs_trust_by_name(run_copy: Path, installed_package: Path) -> None:
    tamper(run_copy, set_key("model.network._target_", "my_package.MyNet"))
    imported = installed_package.parents[1] / "imported"
    with pytest.raises(ConfigError, match="trust=my_package"):
        load_run(run_copy)
    for near in ("my", "my_packag", "my_package.MyNe", "other"):
        with pytest.raises(ConfigError, match="trust=my_package"):
            load_run(run_copy, trusted=near)
    assert not imported.exists()  # the package is not even imported
    assert type(load_run(run_copy, trusted="my_package").network).__name__ == "MyNet"
    assert type(load_run(run_copy, trusted=["other", "my_package"]).network).__name__ == "MyNet"
    reading.load_untrusted_config(run_copy, "my_package")


def test_trust_covers_only_what_the_package_defines(
    run_copy: Path, installed_package: Path
) -> None:
    marker = run_copy.parent / "marker"
    attack = {"_target_": "my_package.os.system", "_args_": [f"touch '{marker}'"]}
    tamper(run_copy, set_key("model.network", attack))
    with pytest.raises(ConfigError, match="rejected"):
        load_run(run_copy, trusted="my_package")
    assert not marker.exists()


def test_a_run_folder_cannot_grant_trust(run_copy: Path, installed_package: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["trust"] = config["trusted"] = "my_package"
        config["model"]["network"]["_target_"] = "my_package.MyNet"

    tamper(run_copy, change)
    (run_copy / "my_package.py").write_text("raise SystemExit")
    with pytest.raises(ConfigError, match="trust=my_package"):
        load_run(run_copy)


def test_trust_can_be_given_on_the_command_line(
    run_copy: Path, installed_package: Path, tmp_path: Path
) -> None:
    tamper(run_copy, set_key("model.network._target_", "my_package.MyNet"))
    overrides = [f"run={run_copy}", "label=1", f"output={tmp_path / 'x.png'}"]
    path = str(installed_package.parent)
    done = run_script("generate", *overrides, "trust=my_package", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "trust=my_package" in RunFolder(run_copy).next_steps()


LIBRARIES = ["harness", "lightning", "torch", pytest.param("optuna", marks=pytest.mark.engines)]


def test_shipped_targets_come_from_four_libraries() -> None:
    assert {t.split(".")[0] for t in trust.BUILT_IN_TARGETS} == {
        "harness",
        "lightning",
        "torch",
        "optuna",
    }


@pytest.mark.parametrize("library", LIBRARIES)
def test_shipped_targets_are_classes_or_known_functions(library: str) -> None:
    """Every name resolves to a class of its library or to a listed function."""
    functions = {"harness.tracking.wandb.wandb_logger"}
    for target in (t for t in trust.BUILT_IN_TARGETS if t.split(".")[0] == library):
        found = get_object(target)
        assert isinstance(found, type) != (target in functions), target
        assert found.__module__.split(".")[0] == library, target


# code in your own files


@pytest.fixture
def own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return src/ of a checkout with files of a user in src/ and conf/."""
    source, conf = tmp_path / "src", tmp_path / "conf"
    source.mkdir()
    conf.mkdir()
    (source / "my_own.py").write_text(
        "import os\n"
        "from torch.nn import Linear\n"
        "class Net(Linear):\n    pass\n"
        "def make():\n    raise SystemExit\n"
        "net = Net(1, 1)\n"
    )
    mark = tmp_path / "acted"
    (source / "my_script.py").write_text(
        f"import pathlib\nclass Net:\n    pass\npathlib.Path({str(mark)!r}).touch()\n"
    )
    (conf / "mine.yaml").write_text("# @package _global_\nx:\n  _target_: my_own.make # as I say\n")
    monkeypatch.setattr(trust, "SOURCE", source)
    monkeypatch.setattr(trust, "CONF", conf)
    monkeypatch.syspath_prepend(source)
    for cached in (trust.known_targets, trust.is_own_class):
        cached.cache_clear()
    yield source
    for cached in (trust.known_targets, trust.is_own_class):
        cached.cache_clear()
    assert not mark.exists()


def check_target(target: str) -> None:
    trust.check_targets({"model": {"_target_": target}}, None, get_object)


@pytest.mark.usefixtures("own_source")
def test_classes_of_your_own_files_need_no_trust() -> None:
    check_target("my_own.Net")
    check_target("my_own.make")  # a function that conf/ names


@pytest.mark.usefixtures("own_source")
@pytest.mark.parametrize(
    "target",
    ["my_own.Linear", "my_own.net", "my_own.os.system", "my_own.Net.forward", "my_script.Net"],
)
def test_other_names_in_your_files_and_classes_of_scripts_are_not_trusted(target: str) -> None:
    with pytest.raises(ConfigError, match="not trusted"):
        check_target(target)


def test_without_conf_only_the_shipped_list_is_trusted(own_source: Path) -> None:
    (own_source.parent / "conf" / "mine.yaml").unlink()
    (own_source.parent / "conf").rmdir()
    for target in ("my_own.Net", "my_own.make"):
        with pytest.raises(ConfigError, match="not trusted"):
            check_target(target)
    check_target("torch.optim.SGD")


# YAML


@pytest.mark.fault(Promise.STRANGERS, "YAML with Python objects, repeated aliases or deep nesting")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.system ['touch marker']", "no readable"),
        ("!!python/name:os.system", "no readable"),
        ("a: &a [x,x,x]\nb: &b [*a,*a,*a]\nmodel: [*b,*b,*b]", "aliases"),
        ("x: " + "[" * 200_000, "nested"),
        ("x: " + "{a: " * 3000 + "}" * 3000, "nested"),
        ("a: 1\n" * 60000, "more than"),
        ("- 1", "not the config of a run"),
        ("model: 3", "not the config of a run"),
        ("a: [", "no readable"),
        ("\x00", "no readable"),
        ("", "not the config of a run"),
    ],
)
def test_malicious_yaml_is_rejected(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / reading.CONFIG).write_text(text)
    with pytest.raises(ConfigError, match=message):
        reading.load_config(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_pipe_as_config_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / reading.CONFIG)
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        reading.load_config(tmp_path)


# paths


@pytest.mark.fault(Promise.STRANGERS, "links and paths that lead out of the folder")
def test_links_out_of_the_folder_are_not_read(run_copy: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    shutil.move(run_copy / reading.CONFIG, secret)
    (run_copy / reading.CONFIG).symlink_to(secret)
    with pytest.raises(ConfigError, match="leads out of the folder"):
        reading.load_config(run_copy)
    shutil.move(run_copy / reading.BEST, tmp_path / "elsewhere.ckpt")
    (run_copy / reading.BEST).symlink_to(tmp_path / "elsewhere.ckpt")
    with pytest.raises(ConfigError, match="leads out of the folder"):
        load_run(run_copy)


@pytest.mark.fault(Promise.STRANGERS, "links and paths that lead out of the folder")
def test_nothing_is_written_through_a_link(run_copy: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run_copy / "evaluation.json").unlink(missing_ok=True)
    (run_copy / "evaluation.json").symlink_to(precious)
    shutil.rmtree(run_copy / "generated", ignore_errors=True)
    (run_copy / "generated").mkdir()
    (run_copy / "generated" / "label-1-seed-0.png").symlink_to(precious)
    done = run_script("generate", f"run={run_copy}", "label=1")
    assert done.returncode == 2
    assert "leads out of the folder" in done.stderr
    files.write_json(run_copy / "evaluation.json", {})
    assert precious.read_text() == "mine"
    assert not (run_copy / "evaluation.json").is_symlink()


@pytest.mark.fault(Promise.STRANGERS, "links and paths that lead out of the folder")
def test_the_data_dir_of_a_foreign_config_is_not_used(run_copy: Path, tmp_path: Path) -> None:
    tamper(run_copy, set_key("data.data_dir", str(tmp_path / "planted")))
    cfg = reading.load_untrusted_config(run_copy)
    assert cfg.data.data_dir == str(paths.ROOT / "data")
    _, cfg = loading.load_model(run_copy / reading.BEST)
    assert loading.load_data(cfg).data_dir == paths.ROOT / "data"
    assert not (tmp_path / "planted").exists()


@pytest.mark.fault(Promise.STRANGERS, "links and paths that lead out of the folder")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("callbacks.best.dirpath", "/tmp/elsewhere"),
        ("callbacks.best.dirpath", "relative"),
        ("callbacks.best.filename", "../../up"),
        ("callbacks.figures.folder", "{run_dir}/../up"),
        ("callbacks.figures.folder", "{run_dir}/link"),
        ("trainer.default_root_dir", "/"),
        ("logger.wandb.save_dir", "~/x"),
    ],
)
def test_paths_out_of_the_run_folder_are_rejected(
    key: str, value: str, run_copy: Path, tmp_path: Path
) -> None:
    (run_copy / "link").symlink_to(tmp_path)
    tamper(run_copy, set_key(key, value.format(run_dir=run_copy)))
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        reading.load_untrusted_config(run_copy)


def test_rerun_trains_in_the_moved_folder(
    run_copy: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rerun= trains in the given folder, not in the folder that its config names."""
    started: list[Any] = []
    monkeypatch.setattr(
        jobs, "run_jobs", lambda dirs, *_, **__: started.extend(map(reading.load_config, dirs))
    )
    reading.update_summary(run_copy, status="interrupted")
    with pytest.raises(RunFailed):
        jobs.run_unfinished(run_copy, 1)
    (cfg,) = started
    assert cfg.callbacks.best.dirpath == str(run_copy / "checkpoints")
    assert str(finished_run) not in OmegaConf.to_yaml(cfg)


def test_paths_follow_a_moved_folder(run_copy: Path, finished_run: Path) -> None:
    cfg = reading.load_untrusted_config(run_copy)
    assert cfg.run_dir == str(run_copy)
    assert cfg.callbacks.best.dirpath == str(run_copy / "checkpoints")
    assert str(finished_run) not in OmegaConf.to_yaml(cfg)


@pytest.mark.fault(Promise.STRANGERS, "a malicious pickle in a checkpoint with a valid checksum")
def test_a_malicious_pickle_is_not_executed(run_copy: Path) -> None:
    marker = run_copy.parent / "marker"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch '{marker}'",)

    torch.save({"state_dict": Evil(), "config": {}}, run_copy / reading.BEST)
    with (run_copy / reading.BEST).open("r+b") as file:
        checkpoints._append_footer(file, 3)
    with pytest.raises(ConfigError, match="more than plain data") as caught:
        load_run(run_copy)
    assert "system" in str(caught.value)
    assert not marker.exists()


@pytest.mark.fault(Promise.STRANGERS, "links and paths that lead out of the folder")
def test_logs_are_not_written_through_a_link(run_copy: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (LOG, jobs.TERMINAL_LOG):
        (run_copy / name).unlink(missing_ok=True)
        (run_copy / name).symlink_to(victim)
    with (
        pytest.raises(ConfigError, match="leads out of the folder"),
        log_to_folder(run_copy, 0),
    ):
        pass
    with pytest.raises(ConfigError, match="leads out of the folder"):
        jobs._start_job(run_copy, machine.Share([0], []), True, {})
    assert victim.read_text() == "mine"


def test_a_model_of_another_class_is_rejected(run_copy: Path) -> None:
    with pytest.raises(ConfigError, match="its model is a CVAE, not a Linear"):
        loading.load_model(run_copy / reading.BEST, None, torch.nn.Linear)
    change = set_key("model", {"_target_": "cvae.data.ImagesDataModule", "data_dir": "/none"})
    tamper(run_copy, change)
    with pytest.raises(ConfigError, match=r"is not a torch.nn.Module|must be"):
        loading.load_model(run_copy / reading.BEST)
