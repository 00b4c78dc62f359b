"""Base class of your LightningDataModule: same batches on resume and on any number of devices."""

import signal
from collections.abc import Callable
from typing import Any, Protocol, cast

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from harness.contract.sampler import FixedOrderSampler, GlobalBatchSampler, Rows
from harness.contract.workers import WatchedLoader


class Split(Protocol):
    """One split of the data, read one batch at a time.

    A split may also have ``to(device)``, which returns the same split on that device. The loader
    calls it with the GPU if there are no data workers, otherwise with the CPU; ``__getitem__`` then
    makes batches there.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Rows) -> Any:
        """Return the batch of the rows at ``rows.indices``, which may be empty."""

    def digest(self) -> str:
        """Return a fingerprint of the content: a run resumes only on the same data."""


def _ignore_stop_signals(worker: int) -> None:
    """Ignore stop signals sent to the process group: the run saves first, then ends its workers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class ExactDataModule(lightning.LightningDataModule):
    """A LightningDataModule whose batches are the same after a kill and on any number of devices.

    Override ``setup``, which may be called more than once, to set ``train``, ``validation`` and
    ``test``. The order of an epoch is a function of (seed, epoch), and each process takes its rows
    of every global batch.

    Args:
        batch_size: rows in a global batch; each of n devices takes 1/n of them.
        eval_batch_size: rows in a global batch of validation and test.
        num_workers: DataLoader processes; 0 makes batches in the training process.
        seed: seed of the order of the training rows.
    """

    train: Split | None = None
    validation: Split | None = None
    test: Split | None = None

    def __init__(
        self, batch_size: int, eval_batch_size: int, num_workers: int = 0, seed: int = 1
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.resume_position = (0, 0)  # epoch and batch at which a run resumes
        self.batch_timeout = 0.0  # seconds until a wait for workers fails; 0 for no limit
        self.while_waiting: Callable[[float], None] = lambda seconds: None  # see WatchedLoader

    def setup(self, stage: str | None = None) -> None:
        """Set the three splits. Each process calls it before training; the Trainer calls it too."""

    def train_dataloader(self) -> DataLoader[Any]:
        (epoch, first_batch), self.resume_position = self.resume_position, (0, 0)
        return self._loader(self.train, self.batch_size, self.seed, epoch, first_batch)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.validation, self.eval_batch_size, None)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test, self.eval_batch_size, None)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        # the batch is on the CPU already, and Lightning's search for its tensors takes time
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _loader(
        self,
        split: Split | None,
        batch_size: int,
        seed: int | None,
        epoch: int = 0,
        first_batch: int = 0,
    ) -> DataLoader[Any]:
        assert split is not None, "call setup() first"
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        is_resident = device.type == "cuda" and self.num_workers == 0 and hasattr(split, "to")
        sampler_class, order_seed = GlobalBatchSampler, seed
        if trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined]
            sampler_class, order_seed = FixedOrderSampler, None
        split_device = device if is_resident else torch.device("cpu")
        sampler = sampler_class(
            len(split), batch_size, order_seed, rank, world_size, epoch, first_batch, split_device
        )
        loader: WatchedLoader[Any] = WatchedLoader(
            cast(Dataset[Any], split.to(split_device) if hasattr(split, "to") else split),
            batch_size=None,  # the sampler yields the rows of each batch
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_ignore_stop_signals,
            pin_memory=torch.cuda.is_available() and not is_resident,
            timeout=self.batch_timeout if self.num_workers > 0 else 0,
        )
        loader.while_waiting = lambda seconds: self.while_waiting(seconds)
        return loader
