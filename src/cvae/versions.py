"""Conversion of run configs archived by an earlier version."""

from collections.abc import Mapping
from typing import Any

_RENAMED_TARGETS = {  # targets of version 0.1
    "resume.LastCheckpoint": "harness.training.resume.LastCheckpoint",
    "callbacks.Progress": "harness.training.callbacks.Progress",
    "callbacks.Pruning": "harness.sweeps.pruning.Pruning",
    "loggers.wandb_logger": "harness.tracking.wandb.wandb_logger",
}
# defaults of constructors in version 0.1 that differ from the current ones
_DEFAULTS: dict[str, dict[str, Any]] = {
    "networks.Conv": {"patch_size": 1, "latent_blocks": 0},
    "networks.MLP": {"latent_skips": False},
    "models.VAE": {"warmup_steps": 0, "path_gradient": False},
    "models.CVAE": {"warmup_steps": 0, "path_gradient": False},
    "callbacks.EMA": {"every_n_steps": 1},
}


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a run of version 0.1, converted to this version."""

    is_earlier = "module" not in config and "trainer" in config

    def convert(node: Any) -> Any:
        if isinstance(node, Mapping):
            _, _, name = str(node.get("_target_")).partition(".")
            defaults = _DEFAULTS.get(name, {}) if is_earlier else {}
            return {**defaults, **{key: convert(child) for key, child in node.items()}}
        package, _, name = str(node).partition(".")
        return _RENAMED_TARGETS.get(name, node) if package == __package__ else node

    groups = ("model", "callbacks", "logger")
    config = {k: convert(node) if k in groups else node for k, node in config.items()}
    if is_earlier:
        config["module"] = {"_target_": f"{__package__}.lightning_module.VAEModule"}
    return config
