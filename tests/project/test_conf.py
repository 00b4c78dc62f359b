"""The configuration files: each composes, and each key is an argument of what it configures."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import hydra
import lightning
import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from harness.config import composition, instantiation, paths, science
from harness.config.checks import validate
from harness.config.fields import LIBRARIES, PROFILERS, STRATEGIES, Trainer
from harness.config.paths import CONF
from harness.contract.settings import SCHEDULER_SETTINGS, Scheduler
from harness.run_folder.trust import foreign_targets

GROUPS = ["data", "model", "model/network", "optimizer", "scheduler", "trainer", "device", "logger"]
GROUPS += [
    "data/augmentation",
    "model/prior",
    "model/penalty",
    "callbacks",
    "experiment",
    "debug",
    "sweep",
    "hydra/launcher",
    "hydra/sweeper",
]
KNOWN = {**LIBRARIES, **science.targets_of("cvae")}
EXTRAS = {"slurm": "submitit", "slurm_rehearsal": "submitit", "ray_local": "ray"}  # of launchers
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((CONF / g).glob("*.yaml"))]
DEVICE_KEYS = {"accelerator", "devices", "strategy", "precision", "num_nodes"}
FILLED_IN = {"run_dir": "/nowhere", "run_id": "x", "sweep": "s", "name": "n", "monitor": "val/elbo"}


def compose(*overrides: str, config: str = "train") -> DictConfig:
    composition.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config, list(overrides))


def plain(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_file_composes_into_a_valid_config(group: str, option: str) -> None:
    if group == "hydra/launcher" and option in EXTRAS:
        pytest.importorskip(f"hydra_plugins.hydra_{EXTRAS[option]}_launcher")
    cfg = compose(f"{group}={option}")
    problems = validate(plain(cfg))
    elsewhere = option in ("gpu", "gpus", "slurm", "cpu_pair", "mps")
    assert problems == [] or (elsewhere and "this machine" in problems[0])
    assert foreign_targets(plain(cfg)) == []  # else no folder of such a run could be read


def targets(node: Any) -> list[dict[str, Any]]:
    found = []
    if isinstance(node, dict):
        found += [node] if "_target_" in node else []
        for child in node.values():
            found += targets(child)
    return found


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_key_is_an_argument_of_its_target(group: str, option: str) -> None:
    if group == "hydra/launcher" and option in EXTRAS:
        pytest.importorskip(f"hydra_plugins.hydra_{EXTRAS[option]}_launcher")
    for node in targets(plain(compose(f"{group}={option}"))):
        target = get_object(node["_target_"])
        known = set(inspect.signature(target).parameters)
        keys = set(node) - {"_target_", "_partial_"}
        keys -= set(SCHEDULER_SETTINGS) if group == "scheduler" else set()
        assert keys <= known, f"{node['_target_']} does not know {keys - known}"


def test_every_argument_of_the_trainer_can_be_set() -> None:
    """With Lightning's own value, or one that the file explains: none needs a plus sign."""
    arguments = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    assert set(compose().trainer) == arguments - {"logger", "callbacks"}


@pytest.mark.parametrize("option", sorted(p.stem for p in (CONF / "device").glob("*.yaml")))
def test_a_device_file_fills_its_five_keys_and_nothing_else(option: str) -> None:
    assert set(OmegaConf.load(CONF / "device" / f"{option}.yaml")) == DEVICE_KEYS


def test_a_value_is_written_in_one_file() -> None:
    """A file that builds on another changes what it repeats."""
    for group, option in OPTIONS:
        content = OmegaConf.load(CONF / group / f"{option}.yaml")
        assert isinstance(content, DictConfig)
        for entry in content.get("defaults", []):
            if isinstance(entry, str) and (CONF / group / f"{entry}.yaml").is_file():
                base = OmegaConf.load(CONF / group / f"{entry}.yaml")
                assert isinstance(base, DictConfig)
                repeated = [str(k) for k in content if k != "defaults"]
                repeated = [k for k in repeated if base.get(k) == content[k]]
                assert repeated == [], f"{group}/{option}.yaml repeats {repeated} of {entry}.yaml"


@pytest.mark.parametrize(
    "override",
    [
        "trainer.fast_dev_run=true",
        "trainer.limit_train_batches=.1",
        "trainer.profiler=simple",
        "seed=0",
    ],
)
def test_good_overrides_are_accepted(override: str) -> None:
    assert validate(plain(compose(override))) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.latent_dim=0"], "model.latent_dim=0: must be an integer from 1 to 65536"),
        (["model.latent_dim=2.5"], "model.latent_dim=2.5"),
        (["model.latent_dim=true"], "model.latent_dim=true"),
        (["data.batch_size=0"], "data.batch_size=0"),
        (["data.batch_size=null"], "data.batch_size=null"),
        (["data.binarization=static"], "one of dynamic, none"),
        (["data.name=CIFAR10"], "one of MNIST, FashionMNIST"),
        (["optimizer.lr=0"], "optimizer.lr=0: must be a number above 0"),
        (["optimizer.betas=[0.9,1.0]"], "optimizer.betas"),
        (["model.beta=-1"], "model.beta=-1"),
        (["model.beta=nan"], "model.beta=nan"),
        (["seed=-1"], "seed=-1"),
        (["seed=4294967296"], "seed=4294967296"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null: the schedule needs an end"),
        (["trainer.devices=0"], "trainer.devices=0"),
        (["device=cpu", "trainer.devices=500"], "trainer.devices=500: this machine has"),
        (["trainer.devices=2", "data.batch_size=127"], "data.batch_size=127"),
        (["trainer.precision=8"], "trainer.precision=8"),
        (["trainer.use_distributed_sampler=true"], "use_distributed_sampler"),
        (["model/network=conv", "model.network.channels=[]"], "model.network.channels=[]"),
        (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9]"),
        (["model/network=conv", "model.network.patch_size=0"], "model.network.patch_size=0"),
        (
            ["model/network=conv", "model.network.latent_blocks=-1"],
            "model.network.latent_blocks=-1",
        ),
        (["data.augmentation=warp"], "one is chosen with a slash, data/augmentation=warp"),
        (["data/augmentation=warp", "data.augmentation.share=2"], "data.augmentation.share=2"),
        (["data/augmentation=warp", "data.augmentation.elastic=-1"], "data.augmentation.elastic"),
        (["optimizer.lr=inf"], "optimizer.lr=inf"),
        (["scheduler=constant", "trainer.max_epochs=-1"], "the run has no end"),
        (["data.image_shape=[1,28]"], "data.image_shape=[1, 28]"),
        (["data.image_shape=[3,32,32]"], "[3, 32, 32]: must be [1, height, width], colour"),
        (["data.image_shape=[3,32,32]", "data._target_=mine.Data"], "colour is not supported"),
        (["device=cpu", "trainer.devices=-1"], "trainer.devices=-1"),
        (["trainer.accelerator=foo"], "one of auto, cpu"),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:01:00"], "the schedule needs an end"),
        (["callbacks.ema.decay=1"], "callbacks.ema.decay=1"),
        (["logger.wandb.mode=on"], "logger.wandb.mode"),
    ],
)
def test_bad_values_are_named(overrides: list[str], said: str) -> None:
    problems = validate(plain(compose(*overrides)))
    assert len(problems) == 1
    assert said in problems[0]


@pytest.mark.parametrize("model", sorted(p.stem for p in (CONF / "model").glob("*.yaml")))
@pytest.mark.parametrize("chosen", ["experiment=quick", "debug=one_batch", "debug=overfit"])
def test_what_is_for_any_model_suits_every_one(model: str, chosen: str) -> None:
    assert validate(plain(compose(f"model={model}", chosen))) == []


@pytest.mark.parametrize("target", sorted(KNOWN))
def test_the_schema_of_a_target_knows_its_arguments(target: str) -> None:
    schema = KNOWN[target]
    fields = set(get_type_hints(schema)) - {"_partial_"}
    arguments = set(inspect.signature(get_object(target)).parameters)
    given_by_us = {"seed", "latent_dim", "image_shape", "num_statistics", "num_classes"}
    given_by_us |= {"params", "optimizer", "total_steps", "resume", "model", "scheduler"}
    given_by_us |= {"scheduler_settings", "test_num_samples", "compile"}
    of_lightning = set(SCHEDULER_SETTINGS) if issubclass(schema, Scheduler) else set()
    assert fields - of_lightning <= arguments
    assert arguments - fields <= given_by_us


def test_the_schema_of_the_trainer_knows_its_arguments() -> None:
    arguments = set(inspect.signature(lightning.Trainer.__init__).parameters)
    assert set(get_type_hints(Trainer)) == arguments - {"self", "logger", "callbacks"}


def test_names_in_the_schema_are_those_of_lightning() -> None:
    from lightning.pytorch.strategies import StrategyRegistry

    there = set(StrategyRegistry.available_strategies())
    assert set(STRATEGIES) - {"auto"} <= there
    for name in PROFILERS:
        lightning.Trainer(profiler=name, logger=False, enable_checkpointing=False)


def test_all_violations_are_found_at_once() -> None:
    bad = ("seed=x", "model.latent_dim=0", "data.batch_size=0", "optimizer.lr=-1")
    assert len(validate(plain(compose(*bad)))) == 4


def test_a_class_of_ones_own_may_have_any_argument() -> None:
    mine = ("model.network._target_=my.Net", "+model.network.anything=-3")
    assert validate(plain(compose(*mine, "model.network.encoder_blocks=-3"))) == []


@pytest.mark.parametrize("entry_point", ["generate", "compare", "export", "dashboard"])
def test_the_other_entry_points_compose(entry_point: str) -> None:
    name = OmegaConf.load(CONF / f"{entry_point}.yaml").hydra.callbacks.checks.settings
    module, _, settings = name.rpartition(".")
    cfg = plain(compose(config=entry_point))
    assert validate(cfg, getattr(import_module(module), settings)) == []


def test_units_stand_where_values_are() -> None:
    """The command line of an experiment is its first comment."""
    for path in (CONF / "experiment").glob("*.yaml"):
        assert f"python src/train.py experiment={path.stem}" in path.read_text()


def test_recipes_open_with_what_was_measured() -> None:
    """The figures of the README's table: nats of p(x|y), of p(x, y) and of p(x), and K."""
    rows = re.findall(
        r"^\| \*\*(\w+)\*\* (.*)", (paths.ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in rows] == ["quick", "default", "flow", "reference"]
    for name, row in rows:
        path = CONF / ("train.yaml" if name == "default" else f"experiment/{name}.yaml")
        *nats, k = (cell.strip("| ") for cell in row.split(" | ")[:4])
        assert all(found in path.read_text() for found in (*nats, f"K = {k}")), path


def test_schema_and_command_line_import_no_torch() -> None:
    """By their own imports; test_cli.py proves it by running them."""
    for name in (
        "harness.config.checks",
        "harness.command_line.hooks",
        "harness.run_folder.folder",
        "harness.training.launch",
        "cvae.settings",
    ):
        source = inspect.getsource(import_module(name))
        top = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in top if isinstance(n, ast.ImportFrom)}
        assert not {n.split(".")[0] for n in names} & {"torch", "lightning", "wandb"}


def test_the_project_root_is_found() -> None:
    assert Path(paths.ROOT, "pyproject.toml").is_file()


@pytest.mark.parametrize("network", sorted(p.stem for p in (CONF / "model/network").glob("*.yaml")))
@pytest.mark.parametrize("model", ["autoencoder", "vae", "cvae"])
def test_every_model_can_be_built_from_its_file(model: str, network: str) -> None:
    cfg = OmegaConf.create(plain(compose(f"model={model}", f"model/network={network}")))
    built = instantiation.instantiate(cfg.model)
    y = 3 if built.conditional else None
    assert built.sample(y, num_samples=2).shape == (2, 1, 28, 28)


@pytest.mark.parametrize("path", sorted((CONF / "hydra/help").glob("*.yaml")), ids=lambda p: p.stem)
def test_help_fits_a_terminal(path: Path) -> None:
    """80 columns, for what we write: the configuration below it may hold longer paths."""
    template = str(OmegaConf.select(OmegaConf.load(path), "template"))
    assert max(map(len, template.splitlines())) <= 80


def test_a_run_is_named_by_its_classes() -> None:
    from cvae.settings import run_name

    assert run_name(plain(compose())) == "cvae-mlp-adversary-z32-s1"
    typed = ("model=vae", "model/prior=flow", "data=kmnist", "data/augmentation=warp", "seed=2")
    assert run_name(plain(compose(*typed))) == "vae-mlp-flow-warp-z24-kmnist-s2"
    own = {"model": {"_target_": "mine.Model"}, "data": {"_target_": "mine.Data"}, "seed": 3}
    assert run_name(own) == "model-s3"
