"""Timers of steps, and callbacks that time, watch or stop a run."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from cvae.callbacks import Figures
from harness.run_folder import checkpoints


def read_clock() -> float:
    """Wait for the GPU, if there is one, and return the time in seconds."""
    if torch.cuda.is_initialized():  # it may be hundreds of steps behind
        torch.cuda.synchronize()
    return time.time()


class Timer:
    """Record of the times at which steps end."""

    def __init__(self, steps: int, start: int) -> None:
        self.steps, self.start, self.steps_done = steps, start, 0
        self.times: dict[int, float] = {}

    def step(self) -> bool:
        """Record the end of a step; return whether it was the last one."""
        self.steps_done += 1
        if self.steps_done in (1, self.start, self.steps):
            self.times[self.steps_done] = read_clock()
        return self.steps_done == self.steps


class Clock(Callback):
    """Save the times of the first step, of step ``start`` and of the last step as JSON.

    Args:
        path: the file.
        start: step at which the measurement starts, after the warm-up.
    """

    def __init__(self, path: str, start: int) -> None:
        self.path = Path(path)
        self.start = start
        self.times: dict[int, float] = {}

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step in (1, self.start, trainer.max_steps):
            self.times[step] = read_clock()
        if step == trainer.max_steps and trainer.is_global_zero:
            self.path.write_text(json.dumps({"times": self.times}), encoding="utf-8")


class Pauses(Callback):
    """Save the seconds of checkpoints, of pictures, and of fit and test as JSON.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.seconds = {"checkpoints": 0.0, "pictures": 0.0}
        self.start = 0.0

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        if stage == "fit":
            checkpoints.save = self._timed("checkpoints", checkpoints.save)
            Figures._draw = self._timed("pictures", Figures._draw)  # type: ignore[method-assign]

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.start = time.perf_counter()

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        total = time.perf_counter() - self.start
        text = json.dumps({**self.seconds, "fit and test": total})
        self.path.write_text(text, encoding="utf-8")


class StopAfterStep(Callback):
    """Send SIGTERM to this process after an optimizer step.

    Args:
        step: the step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class WatchSynchronizations(Callback):
    """Warn of each synchronization with the GPU, and save the device type of new batches as JSON.

    Args:
        path: the file.
        first: first step to watch, after the warm-up.
        last: last step to watch.
    """

    def __init__(self, path: str, first: int, last: int) -> None:
        self.path = Path(path)
        self.first = first
        self.last = last

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self.first - 1 and torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self.last and torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        device = next(iter(loader)).x.device.type  # before Lightning moves the batch
        self.path.write_text(json.dumps({"batches": device}), encoding="utf-8")
