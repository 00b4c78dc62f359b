"""Reads the module ``settings`` of a science, with defaults for missing names.

A science is a package next to ``harness`` that has a module ``settings``. The science of a config
is the package of its model, or else of its module or data. docs/design/harness.md lists the names
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

_ENTRY_POINT_GROUP = "harness.science"  # group of entry points in pyproject.toml
Config = Mapping[str, Any]


class Science:
    """Settings of a science: the names in its module ``settings``, and defaults for missing ones.

    Args:
        module: the module ``settings`` of a science; None to use the defaults.
    """

    def __init__(self, module: ModuleType | None) -> None:
        self._module = module
        self.package = module.__package__ if module else ""

    def _setting(self, name: str, default: Any) -> Any:
        return getattr(self._module, name, default)

    @property
    def free(self) -> Sequence[str]:
        """Further keys that do not affect the training trajectory."""
        keys: Sequence[str] = self._setting("FREE", ())
        return keys

    @property
    def functions(self) -> Sequence[str]:
        """Functions that a run folder may name, by dotted name within the package."""
        names: Sequence[str] = self._setting("FUNCTIONS", ())
        return names

    def run_name(self, cfg: Config) -> str:
        """Return a readable name; by default the classes of the model and the seed."""
        name: Callable[[Config], str] = self._setting("run_name", _name_of_classes)
        return name(cfg)

    def monitor(self, cfg: Config) -> str | None:
        """Return the metric that selects the best checkpoint if monitor is null."""
        return str(metric) if (metric := self._setting("monitor", lambda cfg: None)(cfg)) else None

    def validation_metrics(self, cfg: Config) -> Sequence[str]:
        """Return the names of the validation metrics; empty if they are not known."""
        metrics: Sequence[str] = self._setting("validation_metrics", lambda cfg: ())(cfg)
        return metrics

    def problems(self, cfg: Config) -> Iterator[str]:
        """Yield one line for each contradiction in a config with valid types and ranges."""
        yield from self._setting("problems", lambda cfg: ())(cfg)

    def next_commands(self, cfg: Config) -> Mapping[str, str]:
        """Return the overrides to suggest after a run, besides ``run=``, by script."""
        commands: Mapping[str, str] = self._setting("next_commands", lambda cfg: {})(cfg)
        return commands

    def has_data(self, data: Config) -> bool:
        """Return whether the data exist on this machine."""
        has_data: Callable[[Config], bool] = self._setting("has_data", _has_folder)
        return has_data(data)

    def bytes_per_row(self, data: Config) -> int:
        """Return the bytes of one row of a batch; 0 if they are not known."""
        return int(self._setting("bytes_per_row", lambda data: 0)(data))

    @property
    def less_memory(self) -> str | None:
        """Settings to lower when memory runs out, as text."""
        settings: str | None = self._setting("LESS_MEMORY", None)
        return settings

    def upgraded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a config archived by an earlier version, converted to this one."""
        converted: dict[str, Any] = self._setting("upgraded", lambda config: config)(config)
        return converted


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
    """Return the names of all sciences: those in src/, or else the installed entry points."""
    if CONF.is_dir():
        return tuple(sorted(path.parent.name for path in SOURCE.glob("*/settings.py")))
    return tuple(sorted(point.name for point in entry_points(group=_ENTRY_POINT_GROUP)))


@functools.cache
def _load_science(package: str) -> Science | None:
    if package not in packages():
        return None
    return Science(import_module(f"{package}.settings"))


def of_config(cfg: Config) -> Science:
    """Return the science of a config, or a science with the defaults if it has none."""
    for key in ("model", "module", "data"):
        node = cfg.get(key)
        target = node.get("_target_") if isinstance(node, Mapping) else None
        if target and (science := _load_science(str(target).partition(".")[0])):
            return science
    return Science(None)


@functools.cache
def functions() -> frozenset[str]:
    """Return the functions of all sciences that a run folder may name, by dotted name."""
    sciences = (_load_science(package) for package in packages())
    return frozenset(
        f"{science.package}.{n}" for science in sciences if science for n in science.functions
    )
