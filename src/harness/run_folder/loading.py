"""Loads models, data and checkpoints from run folders and exported folders."""

import contextlib
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config.checks import check_arguments
from harness.config.instantiation import explained, instantiate
from harness.config.paths import ROOT, exists, expanded
from harness.contract import exported
from harness.contract.errors import ConfigError
from harness.run_folder import trust
from harness.run_folder.reading import BEST, LAST, data_dir, plain_config, read_summary


def instantiate_read(
    cfg: DictConfig, key: str, trusted: trust.Trust = None, **arguments: Any
) -> Any:
    """Instantiate a node of a config that was read from a run folder.

    Args:
        cfg: the config.
        key: key of the node.
        trusted: packages whose classes the node may also name.
        **arguments: further arguments of the class.

    Raises:
        ConfigError: the node names code that is not trusted, or cannot be instantiated.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_object

    node = {key: OmegaConf.to_container(cfg[key])}
    trust.check_targets(node, trusted, get_object)
    if problems := list(check_arguments(node)):
        raise ConfigError(problems[0])
    try:
        return instantiate(cfg[key], **arguments)
    except InstantiationException as error:
        raise ConfigError(explained(error)) from None


def load_data(cfg: DictConfig, trusted: trust.Trust = None) -> Any:
    """Return the data module of a config that was read from a run folder.

    Raises:
        ConfigError: the config names code that is not trusted.
    """
    cfg = copy.deepcopy(cfg)
    if "data_dir" in cfg.data:
        cfg.data.data_dir = data_dir(cfg)
    if "num_workers" in cfg.data:
        cfg.data.num_workers = 0
    return instantiate_read(cfg, "data", trusted, seed=cfg.seed)


def _checkpoint_of(run_dir: Path, typed: str | Path) -> Path | None:
    """Return the best checkpoint of a run, by the name that the run recorded, or the last.

    A finished run records the name in its summary, an unfinished one in its last checkpoint.
    """
    recorded = read_summary(run_dir).get("checkpoint")
    if isinstance(recorded, str):
        checkpoint = trust.inside(run_dir, recorded)
        if not checkpoint.is_file():
            hint = f"; to use the last: run={typed}/{LAST}" if recorded != LAST else ""
            raise ConfigError(f"run={typed}: {recorded} is gone{hint}")
        return checkpoint
    last, candidates = trust.inside(run_dir, LAST), [BEST, LAST]
    if last.is_file():
        with contextlib.suppress(ConfigError):  # a damaged one is reported if it has to be read
            if isinstance(best := load_checkpoint(last).get("best"), str):
                candidates = [str(last.parent / best), LAST]
    there = (trust.inside(run_dir, name) for name in candidates)
    return next((path for path in there if path.is_file()), None)


def find_run(path: str | Path) -> tuple[Path, Path]:
    """Return the run folder and the checkpoint of a path to either of them.

    A relative path starts at the current directory, or else at the project root.

    Raises:
        ConfigError: there is no such run, or no checkpoint in it.
    """
    given = expanded(path)
    given = given if exists(given) else ROOT / given
    if not exists(given):
        hint = "; train first, or name a folder under logs/" if given.name == "latest" else ""
        raise ConfigError(f"run={path}: no such folder or checkpoint{hint}")
    given = given.resolve()
    if given.is_dir():
        checkpoint = _checkpoint_of(given, path)
        if checkpoint is None:
            status = read_summary(given).get("status")
            known = f" (its status: {status})" if status else ""
            raise ConfigError(f"run={path}: no checkpoint in {given / 'checkpoints'}{known}")
        return given, checkpoint
    if not given.is_file():
        raise ConfigError(f"run={path}: neither a folder nor a file")
    in_its_place = given.parent.name == Path(BEST).parent.name
    return given.parent.parent if in_its_place else given.parent, given


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint after checking its digest; reads no pickled objects.

    Raises:
        ConfigError: the file is damaged, or not a checkpoint of this project.
    """
    from harness.run_folder import checkpoints

    try:
        return checkpoints.load(path)
    except ConfigError as error:
        raise ConfigError(f"run={error}") from None


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of the model in a checkpoint; averaged, if the run averaged them."""
    return {
        name.removeprefix("model."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }


def load_run(path: str | Path, trusted: trust.Trust = None) -> Any:
    """Return the trained model of a run folder, a checkpoint or an exported folder.

    The model is on the CPU, in evaluation mode::

        model = load_run("logs/latest")

    Args:
        path: the run folder, the checkpoint or the exported folder.
        trusted: further packages whose classes the run may name, such as "my_network".

    Raises:
        ConfigError: the path holds no model, or one that names code which is not trusted.
    """
    if (expanded(path) / exported.CONFIG).is_file():
        return _load_exported(expanded(path), trusted)
    return load_model(find_run(path)[1], trusted)[0]


def _load_exported(folder: Path, trusted: trust.Trust) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads(trust.read_text(folder, exported.CONFIG))
        weights = load_file(folder / exported.WEIGHTS)
    except (OSError, ValueError, RecursionError, SafetensorError, ConfigError) as error:
        raise ConfigError(f"{folder}: no exported model ({error})") from None
    if not isinstance(config, dict) or config.get("format") != exported.FORMAT:
        raise ConfigError(f"{folder / exported.CONFIG}: not of format {exported.FORMAT}")
    return model_with_weights(config, weights, str(folder), trusted)[0]


def load_model(
    checkpoint_path: Path, trusted: trust.Trust = None, kind: type | None = None
) -> tuple[Any, DictConfig]:
    """Return the model in a checkpoint, and the config of its run.

    Args:
        kind: class that the model must be of; None for any.

    Raises:
        ConfigError: the file is damaged, its weights do not fit its config, the config names code
            that is not trusted, or the model is of another class.
    """
    where = f"run={checkpoint_path}"
    checkpoint = load_checkpoint(checkpoint_path)
    cfg = plain_config(checkpoint["config"], f"{where}: its config")
    model, cfg = model_with_weights(cfg, model_weights(checkpoint), where, trusted)
    if kind is not None and not isinstance(model, kind):
        raise ConfigError(f"{where}: its model is a {type(model).__name__}, not a {kind.__name__}")
    return model, cfg


def model_with_weights(
    config: Any, weights: Mapping[str, Any], where: str, trusted: trust.Trust = None
) -> tuple[Any, DictConfig]:
    """Return the model of an untrusted config with these weights, and the checked config.

    Raises:
        ConfigError: the weights do not fit the model, or the config names code that is not trusted.
    """
    cfg = plain_config(config, f"{where}: its config", parts=("model",))
    try:
        model = instantiate_read(cfg, "model", trusted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    from torch import nn  # late: this module is imported before torch is needed

    if not isinstance(model, nn.Module):
        raise ConfigError(f"{where}: {type(model).__name__} is no torch.nn.Module")
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{where}: weights of another model ({reason})") from None
    return model.eval(), cfg
