"""Samplers that give each process its rows of every batch, by (seed, epoch, rank)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler

from harness.contract.seeds import ORDER, derive_seed


class Rows(NamedTuple):
    """The rows of one global batch that one process takes."""

    epoch: int
    indices: Int64[Tensor, " batch"]  # positions in the split
    global_size: int  # rows of the batch over all processes


class GlobalBatchSampler(Sampler[Rows]):
    """Splits an epoch into global batches and yields this process's rows of each.

    The order is a function of (seed, epoch). No row is dropped, padded or seen twice. Every process
    gets the same number of batches. Its share of a batch may be one row smaller than another's, and
    empty in the last batch.

    Args:
        num_rows: rows in the split.
        batch_size: rows in a global batch, over all processes.
        shuffle_seed: seed of the order, or None for the order of the split.
        rank: index of this process.
        world_size: number of processes.
        epoch: the first epoch to yield.
        first_batch: the first batch of that epoch, above 0 on resume within an epoch.
        device: device of the indices. The order is drawn on the CPU, so it is the same everywhere.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        first_batch: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = epoch
        self.first_batch = first_batch
        self.device = device

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls it before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Rows]:
        if self.shuffle_seed is None:
            order = torch.arange(self.num_rows)
        else:
            seed = derive_seed(self.shuffle_seed, ORDER, self.epoch)
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(self.num_rows, generator=generator)
        order = order.to(self.device)  # one transfer per epoch
        first, self.first_batch = self.first_batch, 0
        for start in range(first * self.batch_size, self.num_rows, self.batch_size):
            global_batch = order[start : start + self.batch_size]
            yield Rows(self.epoch, global_batch[self.rank :: self.world_size], len(global_batch))


class FixedOrderSampler(GlobalBatchSampler, SequentialSampler):  # type: ignore[misc]
    """GlobalBatchSampler in a fixed order, for trainer.overfit_batches.

    Lightning would replace a sampler that is not a SequentialSampler.
    """
