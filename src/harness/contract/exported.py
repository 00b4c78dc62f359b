"""Export of a model as two files, its weights and its config, which load without Lightning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.contract.files import write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1  # increase it when older code could misread the files


def save(weights: Mapping[str, Any], model: Mapping[str, Any], folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` (extra "export").

    Args:
        weights: the ``state_dict`` of the model.
        model: the node of the config that the model is built from.
        folder: an existing folder to write into.
    """
    from safetensors.torch import save_file

    # clones, because layers may share a weight
    whole = {name: value.clone().contiguous() for name, value in weights.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, {"format": FORMAT, "model": model})
