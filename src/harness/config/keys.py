"""Dotted keys of a config: list them, find the nearest to a misspelt one, show values."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def iterate_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a config, including inner nodes."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from iterate_keys(child, f"{prefix}{key}.")


_SYNONYMS = {  # what users type for the last part of a key
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "n_epochs": "max_epochs",
    "steps": "max_steps",
    "gpu": "devices",
    "gpus": "devices",
    "num_gpus": "devices",
    "learning_rate": "lr",
    "bs": "batch_size",
    "batch": "batch_size",
    "dataset": "data",
    "datamodule": "data",
    "grad_clip": "gradient_clip_val",
    "clip_grad_norm": "gradient_clip_val",
    "workers": "num_workers",
    "random_seed": "seed",
    "run_name": "name",
    "mixed_precision": "precision",
    "fp16": "precision",
    "amp": "precision",
    "wandb": "logger.wandb.mode",
    "ckpt": "resume",
    "ckpt_path": "resume",
    "checkpoint": "resume",
    "resume_from_checkpoint": "resume",
    "pretrained": "weights",
}


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """Return the known key that a user most likely meant, or None."""
    name = key.rpartition(".")[2]
    synonym = _SYNONYMS.get(name.lower())
    if synonyms := [k for k in known if synonym in (k, k.rpartition(".")[2])]:
        return synonyms[0]
    if same := [k for k in known if k.lower() == key.lower()]:
        return same[0]
    if swapped := [k for k in known if sorted(k) == sorted(key)]:  # letters in another order
        return swapped[0]
    parent, _, _ = key.rpartition(".")
    if same_ending := [k for k in known if k.rpartition(".")[2] == name]:
        return same_ending[0]
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(name, list(siblings), n=1, cutoff=0.6):
        return siblings[close[0]]
    if not parent and (close := difflib.get_close_matches(key, known, n=1, cutoff=0.6)):
        return close[0]
    endings = {k.rpartition(".")[2]: k for k in known}
    close = difflib.get_close_matches(name, list(endings), n=1, cutoff=0.7)
    return endings[close[0]] if close else None


def format_value(value: Any) -> str:
    """Return a value as the command line writes it, cut to 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 60 else text[:57] + "..."
