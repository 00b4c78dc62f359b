"""Pruning of runs in a search."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from harness.contract.errors import RunPruned


class Pruning(Callback):
    """Callback that reports each validation to a study, and ends the run if the pruner says so.

    Runs are compared at the same number of validations, because steps depend on the batch size.

    Args:
        journal: journal file of the study.
        study: name of the study.
        trial: number of this run in the study.
        monitor: metric that is reported.
        pruner: an optuna.pruners object.
    """

    def __init__(self, journal: str, study: str, trial: int, monitor: str, pruner: Any) -> None:
        self.journal, self.study, self.trial = Path(journal), study, trial
        self.monitor, self.pruner = monitor, pruner
        self._num_validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_validations = state_dict["num_validations"]

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        from harness.sweeps.search import should_prune  # needs the extra "search"

        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        number, self._num_validations = self._num_validations, self._num_validations + 1
        is_pruned = False
        if trainer.is_global_zero:
            value = float(trainer.callback_metrics[self.monitor])
            is_pruned = should_prune(
                self.journal, self.study, self.trial, value, number, self.pruner
            )
        if trainer.strategy.broadcast(is_pruned):
            raise RunPruned(f"{self.monitor} is worse than in other trials")
