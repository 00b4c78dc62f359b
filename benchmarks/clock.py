"""A callback that tells when steps end: the only thing that the benchmark adds to a run of ours."""

import json
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


class Clock(Callback):
    """Writes the times of the first step, of step ``start`` and of the last as JSON.

    Args:
        path: the file.
        start: the step from which on steps are counted; those before warm up.
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
            self.path.write_text(json.dumps({"times": self.times}))
