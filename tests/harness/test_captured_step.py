"""Replayed steps equal eager steps, checked on a CPU with tests/replay.py."""

import functools
import logging
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cvae.lightning_module import VAEModule
from harness.contract.errors import Stopped
from harness.training import captured_step, optimization
from harness.training.build import Parts
from harness.training.captured_step import CapturedStep
from harness.training.resume import LastCheckpoint
from harness.training.run import train
from tests import replay
from tests.harness import test_optimization
from tests.harness.test_speed import READS, Counts


class BranchingModule(VAEModule):
    """Reads the step in Python."""

    def training_step(self, batch: Any, batch_idx: int | Tensor) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss if self.trainer.global_step < 3 else 2 * loss


class LookingUpModule(VAEModule):
    """Looks up the epoch in a set."""

    def training_step(self, batch: Any, batch_idx: int | Tensor) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return 2 * loss if self.current_epoch in {1, 3} else loss


class DrawingModule(VAEModule):
    """Samples a random number in Python."""

    def training_step(self, batch: Any, batch_idx: int | Tensor) -> Tensor:
        return float(np.random.rand()) * super().training_step(batch, batch_idx)


class RebindingModule(VAEModule):
    """Replaces a tensor in each step."""

    baseline: Tensor | float = 1.0

    def training_step(self, batch: Any, batch_idx: int | Tensor) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.baseline = 0.9 * self.baseline + 0.001 * loss.detach()
        return loss * self.baseline


class LoggingModule(VAEModule):
    """Logs in its training step."""

    def training_step(self, batch: Any, batch_idx: int | Tensor) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


class BetaByEpoch(Callback):
    """Changes an attribute of the model that is not a tensor between epochs."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.model.beta = 1.0 + trainer.current_epoch // 3


class CountOperators(Callback):
    """Counts the operators of a full step, from the start of a batch to the start of the next."""

    def __init__(self) -> None:
        self.mode = Counts()

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 21:
            self.mode.__enter__()
        elif trainer.global_step == 22:
            self.mode.__exit__(None, None, None)


class FreezeEncoder(Callback):
    """Stops training the encoder after a few epochs."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.model.network.encoder.requires_grad_(trainer.current_epoch < 3)


class RateByStep(Callback):
    """Sets the learning rate before each step, as a handwritten warm-up does."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.001 * (1 + trainer.global_step % 5)


class StopAt(Callback):
    """Requests a stop after a step, as a signal does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            last = next(c for c in trainer.callbacks if isinstance(c, LastCheckpoint))
            last._store_signal(signal.SIGTERM, None)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[replay.Graph]:
    """Capture steps on a CPU as on a GPU, and return the graphs."""
    from harness.contract import module as contract

    captured: list[replay.Graph] = []

    def new_graph() -> replay.Graph:
        captured.append(replay.Graph())
        return captured[-1]

    monkeypatch.setattr(captured_step, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(captured_step, "new_graph", new_graph)
    monkeypatch.setattr(captured_step, "record_to", replay.record_to)
    monkeypatch.setattr(captured_step, "raise_on_synchronization", replay.raise_on_synchronization)
    monkeypatch.setattr(contract, "_NO_SYNC_DEVICE", "none of these")
    # the shape checks of the tests use the random generator
    monkeypatch.setattr(random, "getstate", lambda: None)
    monkeypatch.setattr(random, "setstate", lambda state: None)
    return captured


def build_run(folder: Path, data_dir: Path, *overrides: str) -> Parts:
    settings = ("trainer.log_every_n_steps=4", "trainer.gradient_clip_val=20")
    return test_optimization.build_run(
        folder, data_dir, "trainer.max_epochs=6", *settings, *overrides
    )


def train_and_read_state(
    folder: Path, data_dir: Path, *overrides: str, resume_from: Path | None = None
) -> dict[str, Tensor]:
    parts = build_run(folder, data_dir, *overrides)
    train(*parts, test=False, resume_from=resume_from)
    checkpoint = parts.trainer.strategy.checkpoint_io.load_checkpoint(
        folder / "checkpoints" / "last.ckpt"
    )
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    names = rows[0]
    logged = [
        float(value)
        for row in rows[1:]
        for name, value in zip(names, row, strict=True)
        if value and not name.endswith("per_second")
    ]
    optimizer = checkpoint["optimizer_states"][0]
    assert all(type(group["lr"]) is float for group in optimizer["param_groups"])
    moments = {
        f"{number} {name}": value
        for number, state in optimizer["state"].items()
        for name, value in state.items()
    }
    return {**checkpoint["current_model_state"], **moments, "logged": torch.tensor(logged)}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [k for k in expected if not torch.equal(actual[k], expected[k])] == []


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.warmup_steps=17",),
        ("optimizer=sgd", "scheduler=step", "trainer.gradient_clip_algorithm=value"),
        ("model=autoencoder", "monitor=val/reconstruction", "data.num_workers=1"),
        ("scheduler=constant", f"+callbacks.rate._target_={__name__}.RateByStep"),
    ],
)
def test_replayed_steps_equal_eager_steps(
    overrides: tuple[str, ...],
    graphs: list[replay.Graph],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compare runs of six epochs whose last batches are smaller than the others."""
    replayed = train_and_read_state(tmp_path / "replayed", data_dir, *overrides)
    assert len(graphs) == 2  # full batches and last ones
    assert graphs[0].num_replays > 20
    assert graphs[1].num_replays == 3
    monkeypatch.setattr(captured_step, "_MAX_GRAPHS", 0)
    eager = train_and_read_state(tmp_path / "eager", data_dir, *overrides)
    assert len(graphs) == 2
    assert_equal(replayed, eager)


def test_a_resumed_run_replays_the_same_steps(
    graphs: list[replay.Graph], data_dir: Path, tmp_path: Path
) -> None:
    uninterrupted = train_and_read_state(tmp_path / "whole", data_dir)
    first = build_run(tmp_path / "first", data_dir)
    first.trainer.callbacks.append(StopAt(18))  # type: ignore[attr-defined]
    with pytest.raises(Stopped):
        train(*first, test=False)
    path = tmp_path / "first" / "checkpoints" / "last.ckpt"
    num_graphs = len(graphs)
    resumed = train_and_read_state(tmp_path / "resumed", data_dir, resume_from=path)
    assert len(graphs) > num_graphs
    del uninterrupted["logged"], resumed["logged"]
    assert_equal(resumed, uninterrupted)


def test_a_replayed_step_launches_few_operators(
    graphs: list[replay.Graph], data_dir: Path, tmp_path: Path
) -> None:
    """The count includes making a batch; an eager step has about 470 operators (test_speed.py)."""
    parts, counter = build_run(tmp_path / "run", data_dir), CountOperators()
    parts.trainer.callbacks.append(counter)  # type: ignore[attr-defined]
    train(*parts, test=False)
    assert graphs[0].num_replays > 20
    assert 40 < sum(counter.mode.calls.values()) < 90
    assert counter.mode.calls[READS] == 0


@pytest.mark.parametrize("name", ["BetaByEpoch", "FreezeEncoder"])
def test_a_step_is_recorded_again_after_the_model_changes(
    name: str,
    graphs: list[replay.Graph],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = f"+callbacks.change._target_={__name__}.{name}"
    replayed = train_and_read_state(tmp_path / "replayed", data_dir, change)
    assert len(graphs) == 2  # one for full batches before the change, and one after it
    assert all(graph.num_replays > 5 for graph in graphs)
    monkeypatch.setattr(captured_step, "_MAX_GRAPHS", 0)
    assert_equal(replayed, train_and_read_state(tmp_path / "eager", data_dir, change))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (BranchingModule, "synchronizing"),
        (LookingUpModule, "looked up"),
        (DrawingModule, "random generator"),
        (RebindingModule, "changes baseline"),
        (LoggingModule, "logs loss"),
    ],
)
def test_a_step_that_cannot_be_replayed_stays_eager(
    module: type,
    reason: str,
    graphs: list[replay.Graph],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = f"module._target_={module.__module__}.{module.__name__}"
    with caplog.at_level(logging.WARNING):
        weights = train_and_read_state(tmp_path / "captured", data_dir, target)
    warnings = [r.message for r in caplog.records if "without a CUDA graph" in r.message]
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert graphs == []
    # here the learning rate is a float; above, it was a float32 tensor during the first steps
    monkeypatch.setattr(optimization, "can_record", lambda module: False)
    eager = train_and_read_state(tmp_path / "eager", data_dir, target)
    assert weights.keys() == eager.keys()
    for name, value in eager.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


def test_a_schedule_of_momentum_is_not_replayed(
    graphs: list[replay.Graph], data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = build_run(tmp_path / "run", data_dir)
    parts.module._make_scheduler = functools.partial(
        torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01
    )
    with caplog.at_level(logging.WARNING):
        train(*parts, test=False)
    assert "betas has changed" in caplog.text
    assert graphs == []


def test_a_second_fit_steps_its_new_optimizer(
    graphs: list[replay.Graph], data_dir: Path, tmp_path: Path
) -> None:
    module, data, trainer = build_run(tmp_path / "run", data_dir, "callbacks.ema=null")
    train(module, data, trainer, test=False)
    before = [p.detach().clone() for p in module.parameters()]
    trainer.fit_loop.max_epochs = 8  # type: ignore[attr-defined]
    module.train()
    trainer.fit(module, datamodule=data)
    assert all(not torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    assert trainer.global_step == 8 * 7


def test_an_optimizer_that_keeps_values_on_the_cpu_is_not_captured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    module: Any = torch.nn.Linear(1, 1)
    module.device = torch.device("cpu")
    for optimizer, reason in (
        (torch.optim.Adagrad([weight]), "Adagrad keeps values on the CPU"),
        (torch.optim.SGD([weight], lr=0.1), "SGD keeps values on the CPU"),
        (torch.optim.SGD([weight], lr=0.1, fused=True), ""),
        (torch.optim.Adam([weight]), ""),
    ):
        step = CapturedStep(lambda batch, batch_idx: {}, module, optimizer)
        assert step.reason == reason
