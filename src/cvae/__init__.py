"""Conditional variational autoencoders on MNIST: a PyTorch Lightning project template."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cvae.models import Autoencoder

__all__ = ["load_run"]


def load_run(path: str | Path, trusted: str | Sequence[str] | None = None) -> "Autoencoder":
    """The trained model of a run folder, a checkpoint or an exported folder, ready to use.

    Args:
        trusted: further packages whose classes the run may name, such as "my_network".

    Raises:
        ConfigError: nothing there that can be loaded.
    """
    from harness.run_folder import loading  # late: most of this package needs no harness

    return loading.load_run(path, trusted)
