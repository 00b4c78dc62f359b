"""Callbacks that time a run, the only addition of the benchmark to it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from cvae.callbacks import Figures
from harness.run_folder import checkpoints


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
            self.times[step] = time.time()
        if step == trainer.max_steps and trainer.is_global_zero:
            self.path.write_text(json.dumps({"times": self.times}), encoding="utf-8")


class Pauses(Callback):
    """Save the seconds of checkpoints, of pictures and of the whole run as JSON.

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

    def _timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[what] += time.perf_counter() - start

        return timed

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.start = time.perf_counter()

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        whole = time.perf_counter() - self.start
        text = json.dumps({**self.seconds, "fit and test": whole})
        self.path.write_text(text, encoding="utf-8")
