"""Count the calls of Python functions per training step: ``python python_calls.py OVERRIDE ...``.

It runs in its own process, where the shape checks of the tests do not add calls.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback

from harness.config.composition import register_resolvers
from harness.config.hydra_versions import INITIALIZE_OPTIONS
from harness.config.paths import CONF
from harness.run_folder.folder import RunFolder
from harness.training.build import build_parts
from harness.training.run import train

FIRST_STEP, NUM_STEPS = 2, 4


class CountCalls(Callback):
    """Counts calls in a few steps, each from the start of a batch to the start of the next."""

    def __init__(self) -> None:
        self.calls = 0

    def count(self, frame: Any, event: str, argument: Any) -> None:
        self.calls += event == "call"

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == FIRST_STEP:
            sys.setprofile(self.count)
        elif batch_idx == FIRST_STEP + NUM_STEPS:
            sys.setprofile(None)


def main() -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), **INITIALIZE_OPTIONS):
        cfg = compose("train", sys.argv[1:])
    counter = CountCalls()
    with tempfile.TemporaryDirectory() as folder:
        cfg.run_dir = folder
        run = RunFolder(Path(folder))
        run.config = cfg
        module, data, trainer = build_parts(run)
        trainer.callbacks.append(counter)  # type: ignore[attr-defined]
        train(module, data, trainer, test=False)
    print(f"{counter.calls / NUM_STEPS:g} calls per step")


if __name__ == "__main__":
    main()
