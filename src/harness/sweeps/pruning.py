"""Callback that prunes runs of a search that fall behind."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from harness.contract.errors import RunPruned


class Pruning(Callback):
    """Reports each validation to the study of a search, and ends a run that falls behind in it.

    Runs are compared validation by validation, whatever their batch size.

    Args:
        journal: file of the study.
        study: its name.
        trial: number of this run in it.
        monitor: the metric that selects a run.
        pruner: Optuna's, that decides.
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
        from harness.sweeps.search import is_behind  # needs the extra "search"

        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        number, self._num_validations = self._num_validations, self._num_validations + 1
        ends = False
        if trainer.is_global_zero:
            value = float(trainer.callback_metrics[self.monitor])
            ends = is_behind(self.journal, self.study, self.trial, value, number, self.pruner)
        if trainer.strategy.broadcast(ends):
            raise RunPruned(f"{self.monitor} fell behind that of other trials")
