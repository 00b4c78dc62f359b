"""Start a run from the weights of another: ``weights=RUN``."""

import logging
from pathlib import Path

from torch import Tensor, nn

from harness.contract.errors import ConfigError
from harness.run_folder import loading

log = logging.getLogger(__name__)
_MAX_SHOWN = 5  # names in a message


def read_weights(model: nn.Module, path: str | Path, leave_out: bool) -> dict[str, Tensor]:
    """Return the weights of a run that fit a model, by name.

    Args:
        path: the run folder or checkpoint.
        leave_out: whether to leave out weights that do not fit, instead of raising.

    Raises:
        ConfigError: the run is missing, no weight fits, or some do not and ``leave_out`` is false.
    """
    found = loading.model_weights(loading.load_checkpoint(loading.find_weights(path)))
    own = model.state_dict()
    misfits = [f"{name} (not in the run)" for name in own if name not in found]
    misfits += [f"{name} (not in the model)" for name in found if name not in own]
    misfits += [
        f"{name} ({_shape(value)}, not {_shape(own[name])})"
        for name, value in found.items()
        if name in own and value.shape != own[name].shape
    ]
    fitting = {k: v for k, v in found.items() if k in own and v.shape == own[k].shape}
    if not misfits:
        return fitting
    more = f" and {len(misfits) - _MAX_SHOWN} more" if len(misfits) > _MAX_SHOWN else ""
    named = ", ".join(misfits[:_MAX_SHOWN]) + more
    if not leave_out:
        raise ConfigError(
            f"weights={path}: do not fit the model: {named}; weights_partial=true leaves them out"
        )
    if not fitting:
        raise ConfigError(
            f"weights={path}: no weight fits the model; use the model settings of that run"
        )
    log.info("%d of %d weights from %s; left out: %s", len(fitting), len(own), path, named)
    return fitting


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
