"""Checks of untrusted run folders: plain data, known classes, no paths outside of the folder.

A config names the code to run. The config of a new run is your own and may name anything; a config
from a run folder may be someone else's. It may name only the targets in conf/ of this checkout,
classes that your files in src/ define, the library classes listed here, and packages that you
trust by name. Nothing in the folder can extend this list.
"""

import ast
import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.config import science
from harness.config.paths import CONF, SOURCE, path_exists
from harness.contract.errors import ConfigError

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
_HARNESS_TARGETS = (
    "sweeps.pruning.Pruning tracking.wandb.wandb_logger training.callbacks.Progress "
    "training.resume.LastCheckpoint"
)
_TARGET_IN_YAML = re.compile(r"""_target_["']?[ \t]*:[ \t]*["']?([\w.]+)""")
_HARNESS_PACKAGES = (__name__.partition(".")[0], "hydra_plugins")  # in src/, but not your own code
# exact names, because "mine.data.np.load" and "torch.hub.load" can run any code
BUILT_IN_TARGETS = frozenset(
    f"{module}.{name}"
    for module, names in (
        (_HARNESS_PACKAGES[0], _HARNESS_TARGETS),
        ("torch.optim", _OPTIMIZERS),
        ("torch.optim.lr_scheduler", _SCHEDULERS),
        ("torch.nn", _LAYERS),
        ("lightning.pytorch.callbacks", _CALLBACKS),
        ("lightning.pytorch.loggers", "CSVLogger TensorBoardLogger"),
        ("optuna.pruners", _PRUNERS),
    )
    for name in names.split()
)
_LIBRARIES = {"torch", "lightning", "hydra", "omegaconf", "wandb", "numpy", "builtins"}
_FOLDER_KEYS = {"dirpath", "folder", "save_dir", "root_dir", "default_root_dir"}

Trust = str | Sequence[str] | None  # packages whose code the user agrees to run


def _walk(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a config with its dotted key, including inner nodes and keys."""
    yield key, node
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield f"{key}._key_", name
            yield from _walk(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from _walk(child, f"{key}[{i}]")


@functools.cache
def known_targets() -> frozenset[str]:
    """Return the targets that any run folder may name: from libraries, sciences and conf/."""
    files = () if not CONF.is_dir() else CONF.rglob("*.yaml")
    texts = (p.read_text(encoding="utf-8") for p in files if CONF / "hydra" not in p.parents)
    named = (name for text in texts for name in _TARGET_IN_YAML.findall(text))
    return BUILT_IN_TARGETS | science.functions() | set(named)


def _file_of(target: str) -> Path:
    """Return the file in src/ that a dotted name of a class would be defined in."""
    path = SOURCE.joinpath(*target.split(".")[:-1])
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def _is_in_source(target: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # for example, a name too long for a file
        return _file_of(target).is_file()
    return False


@functools.cache
def is_own_class(target: str) -> bool:
    """Return whether a dotted name is a class that a file in src/ of this checkout defines.

    The file is parsed and not imported. False for functions, for imported names, for the harness,
    and for files with loops, with, raise, del or bare expressions at module level.
    """
    module, _, name = target.rpartition(".")
    parts = module.split(".")
    if not CONF.is_dir() and parts[0] not in science.packages():  # SOURCE is site-packages
        return False
    if not all(p.isidentifier() for p in parts) or parts[0] in _HARNESS_PACKAGES:
        return False
    try:
        body = ast.parse(_file_of(target).read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return False
    statements = (ast.For, ast.While, ast.With, ast.Raise, ast.Delete)
    has_side_effects = any(
        isinstance(node, statements)
        or (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant))
        for node in body
    )
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    return name in classes and not has_side_effects


def _is_in_packages(target: str, packages: Iterable[str]) -> bool:
    return any(target.startswith(f"{package}.") for package in packages)


# callbacks and loggers can write files, so they may be named only in callbacks and logger
_CALLBACK_PREFIXES = (f"{_HARNESS_PACKAGES[0]}.", "lightning.")
_NODES_WITHOUT_CALLBACKS = ("model", "data", "module", "optimizer", "scheduler", "trainer")


def _is_misplaced(key: str, target: str) -> bool:
    """Return whether a callback or logger is named outside the nodes for callbacks and loggers."""
    group, _, rest = key.removesuffix("._target_").partition(".")
    may_name_it = group not in _NODES_WITHOUT_CALLBACKS and "." not in rest and "[" not in key
    return target.startswith(_CALLBACK_PREFIXES) and not may_name_it


def untrusted_targets(node: Any, trust: Trust = None) -> list[tuple[str, str]]:
    """Return the dotted key and the target of all code that a config names but may not run.

    Args:
        node: the config.
        trust: packages whose code may run.
    """
    trusted = [trust] if isinstance(trust, str) else list(trust or ())
    targets = [(k, v) for k, v in _walk(node) if k.rpartition(".")[2] == "_target_"]
    return [
        (key, str(target))
        for key, target in targets
        if not (
            isinstance(target, str) and target in known_targets() and not _is_misplaced(key, target)
        )
        and not (isinstance(target, str) and is_own_class(target))
        and not _is_in_packages(str(target), trusted)
    ]


def packages_to_trust(node: Any) -> list[str]:
    """Return the packages that a user must trust to use a config."""
    return sorted({target.partition(".")[0] for _, target in untrusted_targets(node)})


def check_targets(node: Any, trust: Trust, get_object: Callable[[str], Any]) -> None:
    """Raise if a config names code that is neither known, nor your own, nor trusted.

    Args:
        node: the config.
        trust: packages that you trust. The config may name what they define, but not what they
            import, such as ``my_package.os.system``.
        get_object: imports the object of a dotted name.

    Raises:
        ConfigError: the config names such code, or code that cannot be imported.
    """
    for key, target in untrusted_targets(node, trust):
        package = target.partition(".")[0]
        is_library = package in sys.stdlib_module_names | _LIBRARIES | set(_HARNESS_PACKAGES)
        if target.isprintable() and _is_in_source(target) and not is_library:
            hint = (
                "it must be a class that its module in src/ defines, without side effects on "
                "import; or name it in conf/"
            )
        elif not target.isprintable() or is_library or path_exists(SOURCE / package):
            hint = "a run folder may not name this code"
        else:
            hint = f"if you trust this code, add trust={package}"
        raise ConfigError(f"{key}={target[:80]!r}: not trusted; {hint}")
    trusted = [trust] if isinstance(trust, str) else list(trust or ())
    for key, target in _walk(node):
        if key.rpartition(".")[2] != "_target_" or target in known_targets():
            continue
        try:
            imported = get_object(target)
        except Exception as error:  # an import can raise anything
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"{key}={target}: cannot be imported ({reason})") from None
        defined_in = getattr(imported, "__module__", None) or ""
        is_class, is_function = inspect.isclass(imported), inspect.isfunction(imported)
        is_own = is_class and defined_in == target.rpartition(".")[0] and is_own_class(target)
        is_trusted = _is_in_packages(f"{defined_in}.", trusted) and (is_class or is_function)
        if not (is_own or is_trusted):
            raise ConfigError(
                f"{key}={target}: rejected, because {defined_in or 'another package'} defines it"
            )


def check_plain(node: Any) -> None:
    """Raise if a config holds objects, interpolations or terminal control characters.

    Raises:
        ConfigError: a value is not plain data; the message names its key.
    """
    for key, value in _walk(node):
        if isinstance(value, str):
            if "${" in value:
                raise ConfigError(f"{key}: holds an interpolation, not plain data")
            if not value.replace("\n", "").replace("\t", "").isprintable():
                raise ConfigError(f"{key}: holds control characters")
        elif not isinstance(value, Mapping | list | tuple | int | float | None):
            raise ConfigError(f"{key}: holds {type(value).__name__}, not plain data")


def read_text(folder: Path, name: str) -> str:
    """Return the text of a YAML file in a run folder, after checking its size, depth and aliases.

    Aliases are rejected because a small file with nested aliases can expand to gigabytes.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or outside of the folder.
    """
    path = resolve_inside(folder, name)
    try:
        if not path.is_file():  # a pipe would block
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
                raise ConfigError(f"run={folder}: {name} holds YAML aliases, which are not allowed")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"run={folder}: no readable {name} in it ({type(error).__name__})"
        ) from None
    return text


def resolve_inside(folder: Path, name: str | Path) -> Path:
    """Return the resolved path of a file in a folder.

    Raises:
        ConfigError: a link or ``..`` leads out of the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(f"run={folder}: {name} leads out of the folder, to {path}")
    return path


def confine_paths(cfg: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return the config of a run with its paths moved into ``run_dir``, its current folder.

    Raises:
        ConfigError: callbacks, loggers or trainer would write outside of the folder.
    """
    old_run_dir = str(cfg.get("run_dir"))

    def move(node: Any, key: str) -> Any:
        if isinstance(node, Mapping):
            return {name: move(child, f"{key}.{name}") for name, child in node.items()}
        if isinstance(node, list):
            return [move(child, key) for child in node]
        if not isinstance(node, str):
            return node
        if node == old_run_dir or node.startswith(f"{old_run_dir}/"):
            node = str(run_dir) + node.removeprefix(old_run_dir)
        if ".." in Path(node).parts:  # each library resolves relative paths in its own way
            raise ConfigError(f"{key}={node}: may lead out of the folder")
        if key.rpartition(".")[2] in _FOLDER_KEYS or node.startswith(("/", "~")):
            try:
                resolve_inside(run_dir, node if Path(node).is_absolute() else Path.cwd() / node)
            except ConfigError as error:
                raise ConfigError(f"{key}={node}: {error}") from None
        return node

    moved = {k: move(cfg[k], k) for k in ("callbacks", "logger", "trainer") if cfg.get(k)}
    return {**cfg, **moved, "run_dir": str(run_dir)}
