"""Callback that saves last.ckpt between two steps, for an exact resume, and handles stop signals.

A checkpoint holds the weights and their average, optimizer, schedule, loop counters, and the sums
of the metrics that are not logged yet. It holds no random generators, because every random draw is
a function of the seed and of its position: epoch and row, or epoch, batch and rank. A resumed run
takes the same steps as one that never stopped.
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
from harness.contract.settings import Count, Name, Weight
from harness.run_folder import checkpoints
from harness.training.processes import handle_stop_signals

log = logging.getLogger(__name__)

_LATENCY = 0.5  # seconds that ranks may take to agree to stop
_STALLED = 3.0  # seconds without a batch after which the data workers count as stalled
_TIMEOUT = 5.0  # seconds for all ranks to see a stop request; local_ranks.py kills ranks after 10


def best_checkpoint(trainer: lightning.Trainer) -> Path | None:
    """Return the best checkpoint of the trainer's first ModelCheckpoint, if it has saved one."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return Path(path) if path else None


class LastCheckpoint(Callback):
    """Callback that saves last.ckpt between steps, and on a stop signal saves it and ends the run.

    On SIGTERM, SIGINT or SIGUSR1 to any rank, it saves and raises
    :class:`~harness.contract.errors.Stopped` before the next step. A second SIGINT interrupts at
    once. A callback that averages the weights when training ends must come after this one.

    Args:
        dirpath: folder of the checkpoint.
        every_minutes: minutes between saves, with validation; None for never.
        every_n_epochs: epochs between saves; None for never.
        every_n_steps: optimizer steps between saves; None for never.
    """

    def __init__(
        self,
        dirpath: Name | Path,
        every_minutes: Weight | None = 1.0,
        every_n_epochs: Count | None = None,
        every_n_steps: Count | None = None,
    ) -> None:
        self.path = Path(dirpath) / checkpoints.LAST
        self.every_minutes = every_minutes
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self._position: tuple[int, int] | None = None  # epoch and batch, during a save
        self._batches_that_stepped: int | None = None  # to restore at the first step after a resume
        self._signal = 0  # the latest stop signal received; 0 for none
        self._handlers = ExitStack()  # removes the signal handlers
        self._saved_step = -1
        self._saved_time = self._synced_time = 0.0
        self._sync_interval = 1
        self._next_sync = 0  # step of the next exchange among ranks

    # between two steps

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._batches_that_stepped is not None:  # Lightning restores it off by one
            self._loop._batches_that_stepped = self._batches_that_stepped
            self._batches_that_stepped = None
        if batch_idx % trainer.accumulate_grad_batches:
            return  # within accumulated gradients
        number, is_overdue = self._sync_stop_request(trainer, sync_now=False)
        step, epoch = trainer.global_step, trainer.current_epoch
        is_due = is_overdue or bool(self.every_n_steps and step % self.every_n_steps == 0)
        is_due |= bool(self.every_n_epochs and batch_idx == 0 and epoch % self.every_n_epochs == 0)
        if number or (is_due and step not in (0, self._saved_step)):
            self._save(trainer, pl_module, (epoch, batch_idx))
        if number:
            raise Stopped(number)

    def _sync_stop_request(self, trainer: lightning.Trainer, sync_now: bool) -> tuple[int, bool]:
        """Return a stop signal that any rank received, or 0, and whether every_minutes has passed.

        Several ranks exchange both only every few steps, or if ``sync_now``.
        """
        now = time.monotonic()
        is_overdue = (
            self.every_minutes is not None and now - self._saved_time > 60 * self.every_minutes
        )
        if trainer.world_size == 1:
            return self._signal, is_overdue
        step = trainer.global_step
        if step < self._next_sync and not sync_now:
            return 0, False
        seconds_per_step = (now - self._synced_time) / max(
            1, step - self._next_sync + self._sync_interval
        )
        local_state = torch.tensor(
            [float(self._signal), float(is_overdue), seconds_per_step],
            device=trainer.strategy.root_device,
        )
        reduced = trainer.strategy.reduce(local_state, reduce_op="max")
        assert isinstance(reduced, torch.Tensor)
        number, any_overdue, seconds = reduced.tolist()
        self._sync_interval = int(min(50, max(1, _LATENCY / max(seconds, 1e-9))))
        self._next_sync = step + self._sync_interval
        self._synced_time = now
        return int(number), bool(any_overdue)

    def _save(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        position: tuple[int, int],
    ) -> None:
        if isinstance(module, ExactModule):
            module.check_finite()  # before saving weights
        self._position = position
        try:
            trainer.save_checkpoint(self.path)
        finally:
            self._position = None
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Save the start of the next epoch as the position, for a resume with more epochs."""
        self._save(trainer, pl_module, (trainer.fit_loop.epoch_progress.current.processed, 0))  # type: ignore[attr-defined]
        number, _ = self._sync_stop_request(trainer, sync_now=True)
        self._handlers.close()
        if number := number or self._signal:  # resuming repeats what follows, such as the test
            raise Stopped(number)

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Set the loop counters to their values between two steps."""
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
        """Set the current folder of the run, and the batch at which the epoch resumes.

        This runs before loaders are made, because their workers prefetch from that batch.
        """
        for callback in trainer.checkpoint_callbacks:
            if (
                isinstance(callback, ModelCheckpoint)
                and callback.state_key in checkpoint["callbacks"]
            ):
                _move_paths(checkpoint["callbacks"][callback.state_key], str(callback.dirpath))
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(datamodule, ExactDataModule) and "position" in checkpoint:
            datamodule.resume_position = checkpoint["position"]

    def state_dict(self) -> dict[str, Any]:
        return {"batches_that_stepped": int(self._loop._batches_that_stepped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches_that_stepped = state_dict["batches_that_stepped"]

    # signals

    def stop_while_waiting(self, trainer: lightning.Trainer, seconds: float) -> None:
        """Save and stop if a signal arrives while the data workers deliver no batch.

        The waiting loader calls this. Several ranks stop only once all of them wait, because a rank
        that has its batch cannot answer. Nothing is saved within a validation or between
        accumulated gradients.

        Args:
            seconds: time without a batch so far.

        Raises:
            Stopped: a stop was requested.
        """
        has_other_ranks = trainer.world_size > 1
        if has_other_ranks and (seconds < _STALLED or not self._all_ranks_wait(trainer)):
            return
        if not (has_other_ranks or self._signal):
            return
        batch = self._loop.batch_progress.current.ready
        is_between_steps = batch % trainer.accumulate_grad_batches == 0
        number, _ = self._sync_stop_request(trainer, sync_now=True)
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
        waiting, deadline = store.add(key, 1), time.monotonic() + _TIMEOUT
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
        self._saved_time = self._synced_time = time.monotonic()

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._signal = 0
        self._next_sync = trainer.global_step
        self._handlers.enter_context(handle_stop_signals(self._store_signal))
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(datamodule, ExactDataModule):
            datamodule.while_waiting = functools.partial(self.stop_while_waiting, trainer)
            self._handlers.callback(setattr, datamodule, "while_waiting", lambda seconds: None)

    def _store_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        self._handlers.close()

    def teardown(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        self._handlers.close()


def _move_paths(state: dict[str, Any], dirpath: str) -> None:
    """Replace the folder in the state of a ModelCheckpoint by the current one of the run.

    Lightning drops the best score if the folder differs; then a worse epoch would become the best.
    """

    def move(path: str) -> str:
        return path and str(Path(dirpath, Path(path).name))

    paths = ("best_model_path", "last_model_path", "kth_best_model_path")
    state.update({key: move(state[key]) for key in paths if key in state}, dirpath=dirpath)
    state["best_k_models"] = {move(p): score for p, score in state["best_k_models"].items()}
