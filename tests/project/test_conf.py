"""The configuration files compose, and each key is an argument of its class."""

import ast
import functools
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import lightning
import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from harness.config import composition, instantiation, libraries, paths
from harness.config.checks import validate
from harness.config.hydra_versions import INITIALIZE_OPTIONS
from harness.config.paths import CONF
from harness.config.run_settings import SCHEDULER_SETTINGS
from harness.config.signatures import COMPUTED, REQUIRED, signature
from harness.run_folder.trust import untrusted_targets
from tests import PACKAGE

GROUPS = ["data", "model", "model/network", "optimizer", "scheduler", "trainer", "device", "logger"]
GROUPS += [
    "data/augmentation",
    "data/condition",
    "model/likelihood",
    "model/prior",
    "model/penalty",
    "callbacks",
    "experiment",
    "debug",
    "sweep",
    "hydra/launcher",
    "hydra/sweeper",
]
LIBRARY_TARGETS = [
    "torch.optim.AdamW",
    "torch.optim.SGD",
    "torch.optim.lr_scheduler.OneCycleLR",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.Trainer",
]
EXTRAS = {"slurm": "submitit", "slurm_rehearsal": "submitit", "ray_local": "ray"}  # by launcher
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((CONF / g).glob("*.yaml"))]
DEVICE_KEYS = {"accelerator", "devices", "strategy", "precision", "num_nodes"}


def compose(*overrides: str, config: str = "train") -> DictConfig:
    composition.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), **INITIALIZE_OPTIONS):
        return hydra.compose(config, list(overrides))


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


@functools.cache
def compose_option(*overrides: str) -> DictConfig:
    """Compose once for all tests, which do not change the config."""
    return compose(*overrides)


def find_problems(*overrides: str) -> list[str]:
    return validate(composition.settings_to_validate(compose_option(*overrides)))


REQUIRED_OVERRIDES = {
    ("data", "coloured_mnist"): ("model/likelihood=discretized_logistic",),
    ("data", "image_folder"): ("model/likelihood=discretized_logistic",),
    **{
        ("model/likelihood", name): ("data.binarization=none",)
        for name in ("continuous_bernoulli", "gaussian", "discretized_logistic")
    },
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_file_composes_into_a_valid_config(group: str, option: str) -> None:
    if group == "hydra/launcher" and option in EXTRAS:
        pytest.importorskip(f"hydra_plugins.hydra_{EXTRAS[option]}_launcher")
    problems = find_problems(f"{group}={option}", *REQUIRED_OVERRIDES.get((group, option), ()))
    elsewhere = option in ("gpu", "gpus", "slurm", "cpu_pair", "mps")
    assert problems == [] or (elsewhere and "this machine" in problems[0])
    assert (
        untrusted_targets(to_plain(compose_option(f"{group}={option}"))) == []
    )  # otherwise its run folder could not be loaded


def find_targets(node: Any) -> list[dict[str, Any]]:
    nodes = []
    if isinstance(node, dict):
        nodes += [node] if "_target_" in node else []
        for child in node.values():
            nodes += find_targets(child)
    return nodes


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_key_is_an_argument_of_its_target(group: str, option: str) -> None:
    if group == "hydra/launcher" and option in EXTRAS:
        pytest.importorskip(f"hydra_plugins.hydra_{EXTRAS[option]}_launcher")
    for node in find_targets(to_plain(compose_option(f"{group}={option}"))):
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            continue
        known = set(parameters)
        keys = set(node) - {"_target_", "_partial_"}
        keys -= set(SCHEDULER_SETTINGS) if group == "scheduler" else set()
        assert keys <= known, f"{node['_target_']} does not know {keys - known}"


def test_every_argument_of_the_trainer_can_be_set() -> None:
    """conf/ lists all arguments of the Trainer, so that no override needs a plus sign."""
    arguments = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    assert set(compose().trainer) == arguments - {"logger", "callbacks"}


@pytest.mark.parametrize("option", sorted(p.stem for p in (CONF / "device").glob("*.yaml")))
def test_a_device_file_fills_its_five_keys_and_nothing_else(option: str) -> None:
    assert set(OmegaConf.load(CONF / "device" / f"{option}.yaml")) == DEVICE_KEYS


def test_a_file_does_not_repeat_values_of_its_base() -> None:
    """A file that builds on another contains only values that differ."""
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
    assert find_problems(override) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
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
        (["device=cpu", "trainer.devices=500"], "trainer.devices=500: must be at most"),
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
        (["data.augmentation=warp"], "choose one with a slash: data/augmentation=warp"),
        (["data/augmentation=warp", "data.augmentation.share=2"], "data.augmentation.share=2"),
        (["data/augmentation=warp", "data.augmentation.elastic=-1"], "data.augmentation.elastic"),
        (["optimizer.lr=inf"], "optimizer.lr=inf"),
        (["scheduler=constant", "trainer.max_epochs=-1"], "the run has no end"),
        (["data.image_shape=[1,28]"], "data.image_shape=[1, 28]"),
        (["data.image_shape=[2,32,32]"], "[2, 32, 32]: must have 1 or 3 channels"),
        (["data.image_shape=[3,32,32]"], "must be none, as color images are not binarized"),
        (["data.binarization=none"], "use model/likelihood=discretized_logistic"),
        (["model/likelihood=gaussian"], "data.binarization=dynamic: must be none"),
        (
            ["model=vae", "model/prior=conditional"],
            "model=vae: a prior that depends on y needs",
        ),
        (
            ["model/likelihood=gaussian", "data.binarization=none", "monitor=val/elbo"],
            "val/elbo_density, val/reconstruction_density",
        ),
        (["device=cpu", "trainer.devices=-1"], "trainer.devices=-1"),
        (["trainer.accelerator=foo"], "one of auto, cpu"),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:01:00"], "the schedule needs an end"),
        (["callbacks.ema.decay=1"], "callbacks.ema.decay=1"),
        (["logger.wandb.mode=on"], "logger.wandb.mode"),
    ],
)
def test_bad_values_are_reported(overrides: list[str], message: str) -> None:
    problems = find_problems(*overrides)
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize("model", sorted(p.stem for p in (CONF / "model").glob("*.yaml")))
@pytest.mark.parametrize("option", ["experiment=quick", "debug=one_batch", "debug=overfit"])
def test_general_options_suit_every_model(model: str, option: str) -> None:
    assert find_problems(f"model={model}", option) == []


def list_shipped_targets() -> list[str]:
    """Return the classes and functions of this project that conf/ names."""
    text = "".join(p.read_text() for p in CONF.rglob("*.yaml") if CONF / "hydra" not in p.parents)
    return sorted(set(re.findall(rf"_target_: ((?:{PACKAGE}|harness)[.\w]+)", text)))


@pytest.mark.parametrize("target", [*list_shipped_targets(), *LIBRARY_TARGETS])
def test_signatures_read_from_source_match_inspect(target: str) -> None:
    from_source = signature(target)
    assert from_source is not None
    parameters = inspect.signature(get_object(target)).parameters
    forwards = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    assert forwards or list(from_source.parameters) == list(parameters)
    for name, parameter in from_source.parameters.items():
        if name not in parameters:  # forwarded to a base class
            continue
        default = parameters[name].default
        assert (parameter.default is REQUIRED) == (default is inspect.Parameter.empty), name
        assert parameter.default in (REQUIRED, COMPUTED, default), name


def list_base_files() -> list[tuple[str, str]]:
    """Return the files that build on no other file of their group."""
    base_files = []
    for group, option in OPTIONS:
        content = OmegaConf.load(CONF / group / f"{option}.yaml")
        assert isinstance(content, DictConfig)
        entries = [str(e) for e in content.get("defaults", [])]
        if "_target_" in content and not any(
            (CONF / group / f"{e}.yaml").is_file() for e in entries
        ):
            base_files.append((group, option))
    return base_files


@pytest.mark.parametrize(("group", "option"), list_base_files())
def test_defaults_of_constructors_match_conf(group: str, option: str) -> None:
    """A notebook that omits an argument trains with the value in conf/."""
    content = OmegaConf.load(CONF / group / f"{option}.yaml")
    assert isinstance(content, DictConfig)
    from_source = signature(content._target_)
    assert from_source is not None
    if not from_source.target.startswith((f"{PACKAGE}.", "harness.")):
        return
    for name, parameter in from_source.parameters.items():
        value = (
            content.get(name)
            if name in content and not OmegaConf.is_interpolation(content, name)
            else None
        )
        if value is not None and parameter.default not in (REQUIRED, COMPUTED):
            plain_value = tuple(value) if OmegaConf.is_list(value) else value
            assert parameter.default == plain_value, name


def test_defaults_of_callbacks_match_conf() -> None:
    """Arguments of the default callbacks in conf/ equal the defaults of their constructors."""
    for node in compose().callbacks.values():
        from_source = signature(node._target_)
        assert from_source is not None
        if from_source.target.startswith(f"{PACKAGE}."):
            for name, parameter in from_source.parameters.items():
                assert parameter.default in (REQUIRED, node[name]), (node._target_, name)


def test_names_of_strategies_and_profilers_match_lightning() -> None:
    from lightning.pytorch.strategies import StrategyRegistry

    there = set(StrategyRegistry.available_strategies())
    assert set(libraries.STRATEGIES) - {"auto"} <= there
    for name in libraries.PROFILERS:
        lightning.Trainer(profiler=name, logger=False, enable_checkpointing=False)


def test_all_violations_are_found_at_once() -> None:
    bad = ("seed=x", "model.latent_dim=0", "data.batch_size=0", "optimizer.lr=-1")
    assert len(find_problems(*bad)) == 4


def test_your_own_class_may_have_any_argument() -> None:
    mine = ("model.network._target_=my.Net", "+model.network.anything=-3")
    assert find_problems(*mine, "model.network.encoder_blocks=-3") == []


@pytest.mark.parametrize(
    "entry_point", ["generate", "embed", "compare", "export", "explore", "dashboard"]
)
def test_the_other_entry_points_compose(entry_point: str) -> None:
    assert validate(to_plain(compose(config=entry_point)), entry_point) == []


def test_experiment_files_state_their_command() -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        assert f"python src/train.py experiment={path.stem}" in path.read_text()


def test_schema_and_command_line_import_no_torch() -> None:
    """Check the imports of each module; test_cli.py runs the commands without torch."""
    for name in (
        "harness.config.checks",
        "harness.command_line.hooks",
        "harness.run_folder.folder",
        "harness.training.launch",
        f"{PACKAGE}.settings",
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
    cfg = OmegaConf.create(to_plain(compose(f"model={model}", f"model/network={network}")))
    built = instantiation.instantiate(cfg.model)
    y = 3 if built.conditional else None
    assert built.sample(y, num_samples=2).shape == (2, 1, 28, 28)


@pytest.mark.parametrize("path", sorted((CONF / "hydra/help").glob("*.yaml")), ids=lambda p: p.stem)
def test_help_fits_a_terminal(path: Path) -> None:
    """The templates have at most 80 columns; paths in the configuration may be longer."""
    template = str(OmegaConf.select(OmegaConf.load(path), "template"))
    assert max(map(len, template.splitlines())) <= 80


def test_a_run_is_named_by_its_classes() -> None:
    from cvae.settings import run_name

    assert run_name(to_plain(compose())) == "cvae-mlp-adversary-z32-s1"
    overrides = ("model=vae", "model/prior=flow", "data=kmnist", "data/augmentation=warp", "seed=2")
    assert run_name(to_plain(compose(*overrides))) == "vae-mlp-flow-warp-z24-kmnist-s2"
    own = {"model": {"_target_": "mine.Model"}, "data": {"_target_": "mine.Data"}, "seed": 3}
    assert run_name(own) == "model-s3"
