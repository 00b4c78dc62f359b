"""The 8x8 digits of scikit-learn: 1,297 for training, 250 each for validation and test."""

import hashlib
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from harness.contract.data import ExactDataModule
from harness.contract.sampler import Rows
from harness.contract.seeds import derive_seed


class Batch(NamedTuple):
    x: Tensor  # pixels in [0, 1], float32, (B, 64)
    y: Tensor  # labels, int64, (B,)
    global_size: int  # rows over all devices


class Digits:
    """One split. The pixel noise is a function of (seed, epoch, row)."""

    def __init__(self, x: Tensor, y: Tensor, noise: float = 0.0, seed: int = 0) -> None:
        self.x, self.y, self.noise, self.seed = x, y, noise, seed

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Rows) -> Batch:
        x = self.x[rows.indices]  # a copy
        for pixels, row in zip(x, rows.indices.tolist(), strict=True):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, rows.epoch, row))
            pixels += self.noise * torch.randn(64, generator=generator)
        return Batch(x, self.y[rows.indices], rows.global_size)

    def digest(self) -> str:
        content = torch.cat((self.x, self.y[:, None]), 1).numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


class DigitsDataModule(ExactDataModule):
    def __init__(self, batch_size: int, eval_batch_size: int, noise: float, seed: int) -> None:
        super().__init__(batch_size, eval_batch_size, seed=seed)
        self.noise = noise

    def setup(self, stage: str | None = None) -> None:
        pixels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
        x, y = (pixels / 16).float().split([1297, 250, 250]), labels.split([1297, 250, 250])
        self.train = Digits(x[0], y[0], self.noise, self.seed)
        self.validation, self.test = Digits(x[1], y[1]), Digits(x[2], y[2])
