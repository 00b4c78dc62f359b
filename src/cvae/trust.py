"""What a run folder from somebody else may ask for: plain data, known classes, its own paths.

A configuration names the code to run. While training it is your own and may name anything; read
back from a folder it is a stranger's, and may name what is listed here, and what you trust by
name. Nothing in the folder can add to that.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cvae.schema import ConfigError

MAX_CONFIG_BYTES = 256 * 1024
_MAX_DEPTH = 32  # of a config
_OPTIMIZERS = "Adadelta Adagrad Adam AdamW Adamax ASGD NAdam RAdam RMSprop Rprop SGD"
_SCHEDULERS = (
    "ConstantLR LinearLR StepLR MultiStepLR ExponentialLR PolynomialLR CosineAnnealingLR "
    "CosineAnnealingWarmRestarts OneCycleLR CyclicLR ReduceLROnPlateau"
)
_LAYERS = "CELU Dropout ELU GELU Hardswish Identity LeakyReLU Mish ReLU SELU SiLU Sigmoid Softplus "
_PRUNERS = (
    "HyperbandPruner MedianPruner NopPruner PatientPruner PercentilePruner "
    "SuccessiveHalvingPruner ThresholdPruner WilcoxonPruner"
)
_CALLBACKS = (
    "DeviceStatsMonitor EarlyStopping GradientAccumulationScheduler LearningRateMonitor "
    "ModelCheckpoint ModelSummary RichModelSummary RichProgressBar TQDMProgressBar Timer"
)
_OURS = (
    "data.MNISTDataModule data.ImagesDataModule models.Autoencoder models.VAE models.CVAE "
    "networks.MLP networks.Conv penalties.Adversary penalties.LabelwiseAdversary "
    "augmentation.Warp priors.StandardNormal priors.Flow lightning_module.warmup_cosine "
    "callbacks.EMA callbacks.Figures callbacks.Progress callbacks.Pruning resume.LastCheckpoint "
    "loggers.wandb_logger"
)
# exact names: "cvae.data.np.load" and "torch.hub.load" are somebody's code, too
KNOWN_TARGETS = frozenset(
    f"{module}.{name}"
    for module, names in (
        ("cvae", _OURS),
        ("torch.optim", _OPTIMIZERS),
        ("torch.optim.lr_scheduler", _SCHEDULERS),
        ("torch.nn", _LAYERS),
        ("lightning.pytorch.callbacks", _CALLBACKS),
        ("lightning.pytorch.loggers", "CSVLogger TensorBoardLogger"),
        ("optuna.pruners", _PRUNERS),
    )
    for name in names.split()
)
_LIBRARIES = {"cvae", "torch", "lightning", "hydra", "omegaconf", "wandb", "numpy", "builtins"}
_FOLDER_KEYS = {"dirpath", "folder", "save_dir", "root_dir", "default_root_dir"}

Trust = str | Sequence[str] | None  # packages whose code the reader agrees to run


def _walk(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config with its dotted key, inner nodes and keys themselves included."""
    yield key, node
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield f"{key}._key_", name
            yield from _walk(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from _walk(child, f"{key}[{i}]")


def foreign_targets(node: Any, trust: Trust = None) -> list[tuple[str, str]]:
    """The dotted key and the target of all code that a config names and that is not known."""
    trusted = [trust] if isinstance(trust, str) else list(trust or ())
    return [
        (key, str(target))
        for key, target in _walk(node)
        if key.rpartition(".")[2] == "_target_"
        and not (isinstance(target, str) and target in KNOWN_TARGETS)
        and not any(str(target).startswith(f"{package}.") for package in trusted)
    ]


def packages(node: Any) -> list[str]:
    """The packages that a reader must trust to use a config."""
    return sorted({target.partition(".")[0] for _, target in foreign_targets(node)})


def check_targets(node: Any, trust: Trust, get_object: Callable[[str], Any]) -> None:
    """Refuse a config that names code which is neither known nor trusted.

    Args:
        trust: packages of the reader's choice. Of these, what they define may be named, not what
            they import: ``my_package.os.system`` is not theirs.
        get_object: imports what a dotted name stands for.

    Raises:
        ConfigError: it does.
    """
    for key, target in foreign_targets(node, trust):
        package = target.partition(".")[0]
        if not target.isprintable() or package in sys.stdlib_module_names | _LIBRARIES:
            hint = "which no run folder may name"
        else:
            hint = f"which is not ours; if you trust that code: trust={package}"
        raise ConfigError(f"{key}={target[:80]!r}: asks to run it, {hint}")
    for key, target in foreign_targets(node):
        try:
            found = get_object(target)
        except Exception as error:  # whatever an import raises
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"{key}={target}: cannot be imported ({reason})") from None
        home = getattr(found, "__module__", None) or ""
        if not (inspect.isclass(found) or inspect.isfunction(found)) or not any(
            f"{home}.".startswith(f"{package}.")
            for package in ([trust] if isinstance(trust, str) else trust or ())
        ):
            raise ConfigError(f"{key}={target}: refused, defined in {home or 'another package'}")


def check_plain(node: Any) -> None:
    """Refuse what is not plain data, interpolations, and characters that steer a terminal.

    Raises:
        ConfigError: naming the first key that is not plain.
    """
    for key, value in _walk(node):
        if isinstance(value, str):
            if "${" in value:
                raise ConfigError(f"{key}: holds an interpolation, where a run's config has none")
            if not value.replace("\n", "").replace("\t", "").isprintable():
                raise ConfigError(f"{key}: holds control characters")
        elif not isinstance(value, Mapping | list | tuple | int | float | None):
            raise ConfigError(f"{key}: holds {type(value).__name__}, not plain data")


def read_text(folder: Path, name: str) -> str:
    """A small YAML file of a run folder, without the aliases by which a page unfolds to gigabytes.

    Raises:
        ConfigError: it is missing, too large, not YAML, or lies elsewhere.
    """
    path = inside(folder, name)
    try:
        if not path.is_file():  # or a pipe, for which one would wait
            raise ConfigError(f"run={folder}: no {name} in it")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigError(f"run={folder}: {name} has more than {MAX_CONFIG_BYTES:,} bytes")
        text = content.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ConfigError(f"run={folder}: {name} is nested more than {_MAX_DEPTH} deep")
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"run={folder}: {name} holds YAML aliases, a run's has none")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"run={folder}: no readable {name} in it ({type(error).__name__})"
        ) from None
    return text


def inside(folder: Path, name: str | Path) -> Path:
    """A path in a folder, which no link and no ``..`` leads out of.

    Raises:
        ConfigError: one does.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(f"run={folder}: {name} leads out of the folder, to {path}")
    return path


def confined(cfg: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The config of a run folder with its paths in that folder, wherever it has been moved to.

    Raises:
        ConfigError: callbacks, loggers or trainer would write elsewhere.
    """
    former = str(cfg.get("run_dir"))

    def moved(node: Any, key: str) -> Any:
        if isinstance(node, Mapping):
            return {name: moved(child, f"{key}.{name}") for name, child in node.items()}
        if isinstance(node, list):
            return [moved(child, key) for child in node]
        if not isinstance(node, str):
            return node
        if node == former or node.startswith(f"{former}/"):
            node = str(run_dir) + node.removeprefix(former)
        if ".." in Path(node).parts:  # of what folder, the library decides that joins it
            raise ConfigError(f"{key}={node}: may lead out of the folder")
        if key.rpartition(".")[2] in _FOLDER_KEYS or node.startswith(("/", "~")):
            try:
                inside(run_dir, node if Path(node).is_absolute() else Path.cwd() / node)
            except ConfigError as error:
                raise ConfigError(f"{key}={node}: {error}") from None
        return node

    held = {k: moved(cfg[k], k) for k in ("callbacks", "logger", "trainer") if cfg.get(k)}
    return {**cfg, **held, "run_dir": str(run_dir)}
