"""Going on exactly where a run was: what is saved between two steps, and when.

Every random draw is a function of (seed, epoch, row), so a state between two steps needs no
generator: weights, their average, optimizer, schedule, the counts of the loops, and the sums of the
metrics not yet logged. A run that goes on from it takes the same steps as one that never stopped.
"""

import functools
import logging
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from harness.contract.data import ExactDataModule
from harness.contract.errors import Stopped
from harness.contract.module import ExactModule
from harness.run_folder import checkpoints
from harness.training.processes import listening

log = logging.getLogger(__name__)

_LATENCY = 0.5  # seconds within which ranks should agree to stop
_STALLED = 3.0  # seconds without a batch after which the data workers count as stalled
_PATIENCE = 5.0  # seconds for all ranks to notice; torch kills ranks that take 10 to exit


def best_checkpoint(trainer: lightning.Trainer) -> Path | None:
    """Return the file that the trainer's first ModelCheckpoint calls best, if it has saved one."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return Path(path) if path else None


class LastCheckpoint(Callback):
    """Saves last.ckpt between steps, and ends a run in order when it is told to stop.

    It must come before a callback that replaces the weights by their average when training ends.
    SIGTERM, SIGINT and SIGUSR1, to any rank or to all, save and raise
    :class:`~harness.contract.errors.Stopped` before the next step; a second SIGINT does not wait.

    Args:
        dirpath: folder of the checkpoint.
        every_minutes: of training; None for never.
        every_n_epochs: epochs between saves; None for never.
        every_n_steps: optimizer steps between saves; None for never.
    """

    def __init__(
        self,
        dirpath: str | Path,
        every_minutes: float | None = 1.0,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        self.path = Path(dirpath) / checkpoints.LAST
        self.every_minutes = every_minutes
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self._position: tuple[int, int] | None = None  # epoch and batch, while this saves
        self._batches_that_stepped: int | None = None  # of a run that goes on, until it does
        self._signal = 0  # that has been received
        self._listening = ExitStack()  # while it trains
        self._saved_step = -1
        self._saved_time = self._asked_time = 0.0
        self._steps_between = 1
        self._next_question = 0  # the step at which ranks ask each other again

    # between two steps

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._batches_that_stepped is not None:  # Lightning is off by one where it goes on
            self._loop._batches_that_stepped = self._batches_that_stepped
            self._batches_that_stepped = None
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients are underway
        number, is_late = self._agree(trainer, is_sure=False)
        step, epoch = trainer.global_step, trainer.current_epoch
        is_due = is_late or bool(self.every_n_steps and step % self.every_n_steps == 0)
        is_due |= bool(self.every_n_epochs and batch_idx == 0 and epoch % self.every_n_epochs == 0)
        if number or (is_due and step not in (0, self._saved_step)):
            self._save(trainer, pl_module, (epoch, batch_idx))
        if number:
            raise Stopped(number)

    def _agree(self, trainer: lightning.Trainer, is_sure: bool) -> tuple[int, bool]:
        """A signal that any rank has received, or 0; and whether a save is due by the clock.

        Several ranks ask each other every so many steps, or now where they must be sure.
        """
        now = time.monotonic()
        is_late = (
            self.every_minutes is not None and now - self._saved_time > 60 * self.every_minutes
        )
        if trainer.world_size == 1:
            return self._signal, is_late
        step = trainer.global_step
        if step < self._next_question and not is_sure:
            return 0, False
        taken = (now - self._asked_time) / max(1, step - self._next_question + self._steps_between)
        mine = torch.tensor(
            [float(self._signal), float(is_late), taken], device=trainer.strategy.root_device
        )
        answer = trainer.strategy.reduce(mine, reduce_op="max")
        assert isinstance(answer, torch.Tensor)
        number, late, seconds = answer.tolist()
        self._steps_between = int(min(50, max(1, _LATENCY / max(seconds, 1e-9))))
        self._next_question = step + self._steps_between
        self._asked_time = now
        return int(number), bool(late)

    def _save(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        position: tuple[int, int],
    ) -> None:
        if isinstance(module, ExactModule):
            module.check_finite()  # what is not finite is never saved
        self._position = position
        try:
            trainer.save_checkpoint(self.path)
        finally:
            self._position = None
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """The end of training is the start of an epoch that max_epochs does not allow, yet."""
        self._save(trainer, pl_module, (trainer.fit_loop.epoch_progress.current.processed, 0))  # type: ignore[attr-defined]
        number, _ = self._agree(trainer, is_sure=True)
        self._listening.close()
        if number := number or self._signal:  # what follows can be done again
            raise Stopped(number)

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Write the counts of the loops as they are between two steps."""
        if self._position is None:
            return
        epoch, batch = self._position
        loops = checkpoint["loops"]["fit_loop"]
        for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
            counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
        batches = loops["epoch_loop.batch_progress"]
        batches["is_last_batch"] = False
        for counts, done in (
            (batches["total"], batches["total"]["completed"]),
            (batches["current"], batch),
        ):
            counts.update(ready=done, started=done, processed=done, completed=done)
        checkpoint["epoch"] = epoch
        checkpoint["position"] = self._position
        if (best := best_checkpoint(trainer)) is not None:
            checkpoint["best"] = os.path.relpath(best, self.path.parent.resolve())

    def on_load_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Say where the run lies now, and where its epoch goes on.

        That is before any loader is made: with workers it would have read ahead from the wrong
        place.
        """
        for callback in trainer.checkpoint_callbacks:
            if (
                isinstance(callback, ModelCheckpoint)
                and callback.state_key in checkpoint["callbacks"]
            ):
                _move(checkpoint["callbacks"][callback.state_key], str(callback.dirpath))
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(datamodule, ExactDataModule) and "position" in checkpoint:
            datamodule.goes_on_at = checkpoint["position"]

    def state_dict(self) -> dict[str, Any]:
        return {"batches_that_stepped": int(self._loop._batches_that_stepped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches_that_stepped = state_dict["batches_that_stepped"]

    # signals

    def stop_without_batch(self, trainer: lightning.Trainer, seconds: float) -> None:
        """Save and stop, if a signal requested it, while the data workers deliver no batch.

        The waiting loader calls this. Several ranks stop only once all of them wait, because a rank
        that has its batch cannot answer. Nothing is saved within a validation or between
        accumulated gradients.

        Args:
            seconds: time without a batch so far.

        Raises:
            Stopped: a stop was requested.
        """
        several = trainer.world_size > 1
        if several and (seconds < _STALLED or not self._all_ranks_wait(trainer)):
            return
        if not (several or self._signal):
            return
        batch = self._loop.batch_progress.current.ready
        is_between_steps = batch % trainer.accumulate_grad_batches == 0
        number, _ = self._agree(trainer, is_sure=True)
        if not trainer.validating and is_between_steps:
            self._save(trainer, trainer.lightning_module, (trainer.current_epoch, batch))
        elif seconds < _STALLED:
            return
        raise Stopped(number)

    def _all_ranks_wait(self, trainer: lightning.Trainer) -> bool:
        """Return whether a stop was requested and all ranks wait for the same batch.

        Raises:
            Stopped: a stop was requested, but other ranks do not wait.
        """
        store = torch.distributed.distributed_c10d._get_default_store()
        loops = self._loop, self._loop.val_loop
        key = f"ranks that wait for batch {[loop.batch_progress.total.ready for loop in loops]}"
        if not self._signal and store.add(key, 0) == 0:
            return False
        waiting, deadline = store.add(key, 1), time.monotonic() + _PATIENCE
        while waiting < trainer.world_size:
            if time.monotonic() > deadline:
                raise Stopped(self._signal or signal.SIGTERM)
            time.sleep(0.1)
            waiting = store.add(key, 0)
        return True

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        self._loop = trainer.fit_loop.epoch_loop  # type: ignore[attr-defined]
        self._saved_time = self._asked_time = time.monotonic()

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._signal = 0
        self._next_question = trainer.global_step
        self._listening.enter_context(listening(self._note))
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(datamodule, ExactDataModule):
            datamodule.while_waiting = functools.partial(self.stop_without_batch, trainer)
            self._listening.callback(setattr, datamodule, "while_waiting", lambda seconds: None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        self._listening.close()

    def teardown(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        self._listening.close()


def _move(state: dict[str, Any], dirpath: str) -> None:
    """Let the state of a checkpoint callback speak of the folder where the run lies now.

    Of another folder Lightning takes over no best score, and a worse epoch becomes the best.
    """

    def here(path: str) -> str:
        return path and str(Path(dirpath, Path(path).name))

    paths = ("best_model_path", "last_model_path", "kth_best_model_path")
    state.update({key: here(state[key]) for key in paths if key in state}, dirpath=dirpath)
    state["best_k_models"] = {here(p): score for p, score in state["best_k_models"].items()}
