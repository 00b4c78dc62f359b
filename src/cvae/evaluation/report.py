"""The test metrics of one model, and the table that shows them."""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from cvae.evaluation.likelihood import score_batch
from cvae.models import Autoencoder, bits_per_dimension
from cvae.types import Batch, Nats


class Scored(Protocol):
    """What is scored: anything that gives batches of test images."""

    def prepare_data(self) -> None: ...
    def setup(self) -> None: ...
    def test_dataloader(self) -> DataLoader[Batch]: ...


def score(model: Autoencoder, data: Scored, num_samples: int) -> dict[str, dict[str, float]]:
    """Mean and standard error over the test images of every metric, in nats per image.

    Args:
        num_samples: K of the importance-weighted bound.
    """
    data.prepare_data()
    data.setup()
    parts: dict[str, list[Nats]] = {}
    for batch in data.test_dataloader():
        for name, value in score_batch(model, batch, num_samples).items():
            parts.setdefault(f"test/{name}", []).append(value)
    scores = {name: _mean(torch.cat(part)) for name, part in parts.items()}
    if (nll := scores.get(f"test/nll_k{num_samples}")) is not None:
        num_pixels = math.prod(model.image_shape)
        scores["test/bits_per_dim"] = {k: bits_per_dimension(v, num_pixels) for k, v in nll.items()}
    return scores


def _mean(values: Nats) -> dict[str, float]:
    values = values.double()
    return {
        "mean": float(values.mean()),
        "standard_error": float(values.std() / len(values) ** 0.5),
    }


def print_table(scores: Mapping[str, Mapping[str, float]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("s.e.", justify="right")
    table.add_column("unit")
    for name, value in scores.items():
        digits, unit = (4, "bits/pixel") if name.endswith("bits_per_dim") else (2, "nats/image")
        mean, error = f"{value['mean']:.{digits}f}", f"{value['standard_error']:.{digits}f}"
        table.add_row(name, mean, error, unit)
    Console().print(table)
