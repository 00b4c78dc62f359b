"""Loads models, data and checkpoints from run folders and exported folders."""

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config.checks import check_arguments
from harness.config.instantiation import explain_hydra_error, instantiate
from harness.config.paths import ROOT, expand_home, path_exists
from harness.contract import exported
from harness.contract.errors import ConfigError
from harness.run_folder import exported_folder, trust
from harness.run_folder.reading import BEST, CONFIG, LAST, data_dir, plain_config, read_summary


def instantiate_untrusted(
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
        raise ConfigError(explain_hydra_error(error)) from None


def load_data(cfg: DictConfig, trusted: trust.Trust = None) -> Any:
    """Return the data module of a config that was read from a run folder.

    Raises:
        ConfigError: the config names code that is not trusted, or no data.
    """
    if "data" not in cfg:
        raise ConfigError("data: the config of this export names no data; export the run again")
    cfg = copy.deepcopy(cfg)
    if "data_dir" in cfg.data:
        cfg.data.data_dir = data_dir(cfg)
    if "num_workers" in cfg.data:
        cfg.data.num_workers = 0
    return instantiate_untrusted(cfg, "data", trusted, seed=cfg.seed)


def _best_checkpoint(run_dir: Path, typed_path: str | Path) -> Path | None:
    """Return the best checkpoint of a run, or else the last one.

    A finished run names its best checkpoint in its summary, an unfinished run in its last
    checkpoint.
    """
    recorded = read_summary(run_dir).get("checkpoint")
    if isinstance(recorded, str):
        checkpoint = trust.resolve_inside(run_dir, recorded)
        if not checkpoint.is_file():
            hint = f"; to use the last: run={typed_path}/{LAST}" if recorded != LAST else ""
            raise ConfigError(f"run={typed_path}: {recorded} is gone{hint}")
        return checkpoint
    last, candidates = trust.resolve_inside(run_dir, LAST), [BEST, LAST]
    if last.is_file():
        with contextlib.suppress(ConfigError):  # if it is damaged, loading it later reports that
            if isinstance(best := load_checkpoint(last).get("best"), str):
                candidates = [str(last.parent / best), LAST]
    paths = (trust.resolve_inside(run_dir, name) for name in candidates)
    return next((path for path in paths if path.is_file()), None)


def find_run(path: str | Path) -> tuple[Path, Path]:
    """Return the run folder and the checkpoint; the path names either of them.

    A relative path starts at the current directory, or else at the project root. For an exported
    folder, such as pretrained/, return the folder for outputs, ``logs/NAME``, and the weights.

    Raises:
        ConfigError: there is no such run, or no checkpoint in it.
    """
    location = expand_home(path)
    location = location if path_exists(location) else ROOT / location
    if not path_exists(location):
        hint = "; train first, or name a folder under logs/" if location.name == "latest" else ""
        raise ConfigError(f"run={path}: no such folder or checkpoint{hint}")
    location = location.resolve()
    folder = location.parent if location.name == exported.WEIGHTS else location
    if exported_folder.is_exported(folder):
        return exported_folder.output_dir(folder), folder / exported.WEIGHTS
    if location.is_dir():
        checkpoint = _best_checkpoint(location, path)
        if checkpoint is None:
            if runs := sorted(file.parent for file in location.glob(f"*/{CONFIG}")):
                raise ConfigError(f"run={path}: holds several runs; name one, such as {runs[0]}")
            status = read_summary(location).get("status")
            status_text = f" (its status: {status})" if status else ""
            raise ConfigError(
                f"run={path}: no checkpoint in {location / 'checkpoints'}{status_text}"
            )
        return location, checkpoint
    if not location.is_file():
        raise ConfigError(f"run={path}: neither a folder nor a file")
    is_in_checkpoints = location.parent.name == Path(BEST).parent.name
    return location.parent.parent if is_in_checkpoints else location.parent, location


def find_weights(path: str | Path) -> Path:
    """Return the checkpoint that ``weights=PATH`` names.

    Raises:
        ConfigError: there is no such run, or no checkpoint in it.
    """
    try:
        return find_run(path)[1]
    except ConfigError as error:
        raise ConfigError(str(error).replace("run=", "weights=", 1)) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint after checking its digest; reads no pickled objects.

    For an exported folder, ``path`` is its file of weights.

    Raises:
        ConfigError: the file is damaged, or not a checkpoint of this project.
    """
    from harness.run_folder import checkpoints

    try:
        if path.name == exported.WEIGHTS:
            return exported_folder.load(path.parent)
        return checkpoints.load(path)
    except ConfigError as error:
        raise ConfigError(f"run={error}") from None


def checkpoint_suffix(run_dir: Path, checkpoint: Path) -> str:
    """Return a suffix for names of outputs: the stem of the checkpoint, or '' for the best one."""
    is_exported = checkpoint.name == exported.WEIGHTS
    return "" if is_exported or checkpoint == run_dir / BEST else checkpoint.stem


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
    return load_model(find_run(path)[1], trusted)[0]


def load_model(
    checkpoint_path: Path, trusted: trust.Trust = None, model_class: type | None = None
) -> tuple[Any, DictConfig]:
    """Return the model in a checkpoint, and the config of its run.

    Args:
        model_class: class that the model must be of; None for any.

    Raises:
        ConfigError: the file is damaged, its weights do not fit its config, the config names code
            that is not trusted, or the model is of another class.
    """
    source = f"run={checkpoint_path}"
    checkpoint = load_checkpoint(checkpoint_path)
    cfg = checkpoint["config"]
    if checkpoint_path.name != exported.WEIGHTS:  # an export of format 1 has only the model
        cfg = plain_config(cfg, f"{source}: its config")
    model, cfg = build_model(cfg, model_weights(checkpoint), source, trusted)
    if model_class is not None and not isinstance(model, model_class):
        raise ConfigError(
            f"{source}: its model is a {type(model).__name__}, not a {model_class.__name__}"
        )
    return model, cfg


def build_model(
    config: Any, weights: Mapping[str, Any], source: str, trusted: trust.Trust = None
) -> tuple[Any, DictConfig]:
    """Return the model of an untrusted config with these weights, and the checked config.

    Raises:
        ConfigError: the weights do not fit the model, or the config names code that is not trusted.
    """
    cfg = plain_config(config, f"{source}: its config", required_nodes=("model",))
    try:
        model = instantiate_untrusted(cfg, "model", trusted)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    from torch import nn  # late: this module is imported before torch is needed

    if not isinstance(model, nn.Module):
        raise ConfigError(f"{source}: {type(model).__name__} is not a torch.nn.Module")
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{source}: the weights do not fit the model ({reason})") from None
    return model.eval(), cfg
