"""Start a run from the weights of another: ``weights=RUN``."""

import logging
from pathlib import Path

from torch import Tensor, nn

from harness.contract.errors import ConfigError
from harness.run_folder import loading

log = logging.getLogger(__name__)
_MAX_SHOWN = 5  # names in a message


def read_weights(model: nn.Module, path: str | Path, allow_partial: bool) -> dict[str, Tensor]:
    """Return the weights of a run that fit a model, by name.

    Args:
        path: the run folder or checkpoint.
        allow_partial: whether to leave out weights that do not fit, instead of raising.

    Raises:
        ConfigError: the run is missing, no weight fits, or some do not and ``allow_partial`` is
            false.
    """
    weights = loading.model_weights(loading.load_checkpoint(loading.find_weights(path)))
    expected = model.state_dict()
    misfits = [f"{name} (not in the run)" for name in expected if name not in weights]
    misfits += [f"{name} (not in the model)" for name in weights if name not in expected]
    misfits += [
        f"{name} ({_shape(value)}, not {_shape(expected[name])})"
        for name, value in weights.items()
        if name in expected and value.shape != expected[name].shape
    ]
    fitting = {k: v for k, v in weights.items() if k in expected and v.shape == expected[k].shape}
    if not misfits:
        return fitting
    more = f" and {len(misfits) - _MAX_SHOWN} more" if len(misfits) > _MAX_SHOWN else ""
    misfit_text = ", ".join(misfits[:_MAX_SHOWN]) + more
    if not allow_partial:
        raise ConfigError(
            f"weights={path}: do not fit the model: {misfit_text}; weights_partial=true leaves "
            "them out"
        )
    if not fitting:
        raise ConfigError(
            f"weights={path}: no weight fits the model; use the model settings of that run"
        )
    log.info(
        "%d of %d weights from %s; left out: %s", len(fitting), len(expected), path, misfit_text
    )
    return fitting


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
