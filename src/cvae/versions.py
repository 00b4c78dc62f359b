"""Conversion of run configs that an earlier version archived."""

from collections.abc import Mapping
from typing import Any

_MOVED = {  # targets of version 0.1
    "resume.LastCheckpoint": "harness.training.resume.LastCheckpoint",
    "callbacks.Progress": "harness.training.callbacks.Progress",
    "callbacks.Pruning": "harness.sweeps.pruning.Pruning",
    "loggers.wandb_logger": "harness.tracking.wandb.wandb_logger",
}


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a run of version 0.1, converted to this version."""

    def renamed(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: renamed(child) for key, child in node.items()}
        package, _, name = str(node).partition(".")
        return _MOVED.get(name, node) if package == __package__ else node

    config = {**config, **{k: renamed(config[k]) for k in ("callbacks", "logger") if k in config}}
    if "module" not in config and "trainer" in config:
        config["module"] = {"_target_": f"{__package__}.lightning_module.VAEModule"}
    return config
