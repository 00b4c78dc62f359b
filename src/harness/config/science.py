"""Reads the module ``settings`` of a science, with defaults for all that it leaves out.

A science is a package next to ``harness`` that has a module ``settings``. The science of a config
is the package of its model, module or data, whichever is one first. docs/harness.md lists the names
that ``settings`` may define. Imports no torch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.config.paths import CONF, SOURCE

_DECLARED = "harness.science"  # group of entry points in pyproject.toml
Config = Mapping[str, Any]


class Science:
    """The names of a module ``settings``, with the harness's default for each missing one.

    Args:
        module: the module ``settings`` of a science; None to use the defaults.
    """

    def __init__(self, module: ModuleType | None) -> None:
        self._module = module

    def _asked(self, name: str, default: Any) -> Any:
        return getattr(self._module, name, default)

    @property
    def train(self) -> type | None:
        """Types and ranges of the top level of train.yaml; None for those of the harness."""
        found: type | None = self._asked("Train", None)
        return found

    @property
    def targets(self) -> Mapping[str, type]:
        """Types and ranges of constructor arguments, by the class's name within the package."""
        found: Mapping[str, type] = self._asked("TARGETS", {})
        return found

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Arguments that a class passes to a nested node, by the dotted key of the nested node."""
        found: Mapping[str, Sequence[str]] = self._asked("PARTS", {})
        return found

    @property
    def free(self) -> Sequence[str]:
        """Further keys that do not affect the training trajectory."""
        found: Sequence[str] = self._asked("FREE", ())
        return found

    def run_name(self, cfg: Config) -> str:
        """Return a readable name; by default the classes of the model and the seed."""
        make: Callable[[Config], str] = self._asked("run_name", _name_of_classes)
        return make(cfg)

    def monitor(self, cfg: Config) -> str | None:
        """Return the metric that selects the best checkpoint if monitor is null."""
        return str(found) if (found := self._asked("monitor", lambda cfg: None)(cfg)) else None

    def validation_metrics(self, cfg: Config) -> Sequence[str]:
        """Return the names of the validation metrics; empty if they are not known."""
        found: Sequence[str] = self._asked("validation_metrics", lambda cfg: ())(cfg)
        return found

    def problems(self, cfg: Config) -> Iterator[str]:
        """Yield one line for each contradiction in a config with valid types and ranges."""
        yield from self._asked("problems", lambda cfg: ())(cfg)

    def next_commands(self, cfg: Config) -> Mapping[str, str]:
        """Return what to suggest after a run: overrides in addition to ``run=``, by script."""
        found: Mapping[str, str] = self._asked("next_commands", lambda cfg: {})(cfg)
        return found

    def has_data(self, data: Config) -> bool:
        """Return whether the data are where the config node says."""
        there: Callable[[Config], bool] = self._asked("has_data", _has_folder)
        return there(data)

    def bytes_per_row(self, data: Config) -> int:
        """Return the bytes of one row of a batch; 0 if they are not known."""
        return int(self._asked("bytes_per_row", lambda data: 0)(data))

    @property
    def less_memory(self) -> str | None:
        """Settings to lower when memory runs out, as text."""
        found: str | None = self._asked("LESS_MEMORY", None)
        return found

    def upgraded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a config archived by an earlier version, converted to this one."""
        found: dict[str, Any] = self._asked("upgraded", lambda config: config)(config)
        return found


def _has_folder(data: Config) -> bool:
    return Path(str(data.get("data_dir"))).is_dir()


def _name_of_classes(cfg: Config) -> str:
    names = [_class_name(cfg["model"])]
    names += [_class_name(node) for node in cfg["model"].values() if isinstance(node, Mapping)]
    return "-".join([*filter(None, names), f"s{cfg['seed']}"])


def _class_name(node: Config) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2].lower()


@functools.cache
def packages() -> tuple[str, ...]:
    """Return the names of all sciences: in src/, or as entry points if installed without it."""
    if CONF.is_dir():
        return tuple(sorted(path.parent.name for path in SOURCE.glob("*/settings.py")))
    return tuple(sorted(found.name for found in entry_points(group=_DECLARED)))


@functools.cache
def _of_package(package: str) -> Science | None:
    if package not in packages():
        return None
    return Science(import_module(f"{package}.settings"))


def of_config(cfg: Config) -> Science:
    """Return the science of a config, or the defaults if none of its classes has one."""
    for key in ("model", "module", "data"):
        node = cfg.get(key)
        target = node.get("_target_") if isinstance(node, Mapping) else None
        if target and (found := _of_package(str(target).partition(".")[0])):
            return found
    return Science(None)


@functools.cache
def targets_of(package: str) -> Mapping[str, type]:
    """Return the types and ranges of a science's constructor arguments, by dotted class name."""
    found = _of_package(package)
    return {f"{package}.{name}": schema for name, schema in found.targets.items()} if found else {}


def schema_of(target: str) -> type | None:
    """Return the types and ranges of the arguments of a class of a science; None if unknown."""
    return targets_of(target.partition(".")[0]).get(target)
