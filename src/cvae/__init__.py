"""Conditional variational autoencoders on MNIST: a PyTorch Lightning project template."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning

    from cvae.lightning_module import VAEModule
    from cvae.models import Autoencoder

__all__ = ["load_pretrained", "load_run", "train"]


def load_run(path: str | Path, trusted: str | Sequence[str] | None = None) -> "Autoencoder":
    """Load the trained model of a run folder, a checkpoint or an exported folder.

    Example::

        model = load_run("logs/latest")
        images = model.sample(y=7, num_samples=10)  # (10, 1, 28, 28), in [0, 1]

    Args:
        path: the run folder, checkpoint or exported folder.
        trusted: further packages whose classes the run may name, such as "my_network".

    Raises:
        ConfigError: the path holds no model that can be loaded.
    """
    from harness.run_folder import loading  # imported here: models need only harness.contract

    return loading.load_run(path, trusted)


def load_pretrained() -> "Autoencoder":
    """Load the model in the folder ``pretrained/`` of this project, on the CPU.

    Example::

        model = load_pretrained()
        images = model.sample(y=7, num_samples=10)  # (10, 1, 28, 28), in [0, 1]

    Raises:
        ConfigError: the project has no such folder, or its files are damaged.
    """
    return load_run(Path(__file__).resolve().parents[2] / "pretrained")


def train(
    module: "VAEModule",
    datamodule: "lightning.LightningDataModule",
    trainer: "lightning.Trainer",
) -> dict[str, float]:
    """Train objects of your own without a config, and test the best weights.

    The best weights are those of the trainer's first ModelCheckpoint, else the last ones.
    ``module.model`` holds them afterwards, in evaluation mode.

    Example::

        module = VAEModule(model, functools.partial(torch.optim.AdamW, lr=1e-3))
        metrics = train(module, MNISTDataModule("data"), lightning.Trainer(max_epochs=5))

    Args:
        module: the module to train.
        datamodule: its data; batches are :class:`cvae.types.Batch` or (x, y).
        trainer: the trainer.

    Returns:
        The validation and test metrics of the best weights, by name.

    Raises:
        FloatingPointError: a metric is not finite.
    """
    from harness.training import run  # imported here: models need only harness.contract

    return run.train(module, datamodule, trainer)
