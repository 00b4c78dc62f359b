"""Conditional variational autoencoders on MNIST: a PyTorch Lightning project template."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvae.runs import load_run as load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    # late, so that the command line answers --help and bad input without importing torch
    if name == "load_run":
        return import_module("cvae.runs").load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
