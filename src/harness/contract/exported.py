"""Exported folders: the weights of a model and the config of its run, without pickle.

``model.safetensors`` holds the weights, ``config.json`` the config, and ``SHA256SUMS`` the digests
of the files, in the format of ``sha256sum --check``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.contract.files import write_json, write_text

CONFIG, WEIGHTS, DIGESTS = "config.json", "model.safetensors", "SHA256SUMS"
# increase it when older code could misread the files; 1 had no SHA256SUMS, only a model's settings
FORMAT = 2


def save(
    weights: Mapping[str, Any], config: Mapping[str, Any], folder: Path, half: bool = False
) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``SHA256SUMS``.

    Args:
        weights: the ``state_dict`` of the model.
        config: the config of the run, without paths of this machine.
        folder: an existing folder to write into.
        half: whether to store weights as float16; loading converts them to float32.
    """
    from safetensors.torch import save_file

    # clones, because layers may share a weight
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).clone().contiguous()
        for name, value in weights.items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, {"format": FORMAT, **config})
    write_digests(folder, (CONFIG, WEIGHTS))


def write_digests(folder: Path, names: Sequence[str]) -> None:
    """Write the SHA-256 of these files of a folder to ``SHA256SUMS``."""
    lines = (f"{sha256((folder / name).read_bytes())}  {name}\n" for name in names)
    write_text(folder / DIGESTS, "".join(lines))


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
