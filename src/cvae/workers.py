"""DataLoader that stops waiting for workers that stall or die.

torch waits forever for a worker that is stuck, or whose batch was lost because /dev/shm was full,
and handles nothing else while it waits.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

T_co = TypeVar("T_co", covariant=True)
_POLL = 0.5  # seconds


class StalledError(RuntimeError):
    """No batch came from the data workers within the timeout."""


class WatchedLoader(DataLoader[T_co]):
    """DataLoader that can stop waiting for its workers.

    With ``timeout``, it raises :class:`StalledError` after that many seconds without a batch.
    """

    while_waiting: Callable[[float], None] | None = None
    """Called twice a second with the seconds waited; an exception ends the wait."""

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return _WatchedIterator(self)


class _WatchedIterator(_MultiProcessingDataLoaderIter):
    def __init__(self, loader: WatchedLoader[Any]) -> None:
        self._while_waiting = loader.while_waiting
        self._is_stuck = False
        super().__init__(loader)

    def _try_get_data(self, timeout: float = _POLL) -> tuple[bool, Any]:
        start = time.monotonic()
        while True:
            has_batch, batch = super()._try_get_data(min(_POLL, timeout))
            waited = time.monotonic() - start
            if has_batch:
                return True, batch
            try:
                if self._while_waiting is not None:
                    self._while_waiting(waited)
                if 0 < self._timeout <= waited:
                    raise StalledError(f"no batch from the data workers for {waited:.0f} s")
            except BaseException:
                self._is_stuck = True
                raise
            if waited >= timeout:
                return False, None

    def _shutdown_workers(self) -> None:
        """Kill stuck workers with SIGKILL, because they ignore SIGTERM."""
        workers = getattr(self, "_workers", [])
        if self._is_stuck and not self._shutdown:
            _remove_worker_pids(id(self))  # or torch reports their end as a failure
            self._worker_pids_set = False
            for worker in workers:
                worker.kill()
        super()._shutdown_workers()
        for worker in workers:
            if worker.is_alive():
                worker.kill()


def explain(error: BaseException, num_workers: int) -> str | None:
    """Return a line with the remedy if a data worker stalled or died, else None."""
    text = " ".join(str(error).split())
    if not isinstance(error, StalledError) and "DataLoader worker (pid" not in text:
        return None
    if num_workers == 0 or "in DataLoader worker process" in text:
        return None  # an exception of the data set, which has a traceback of its own
    reason = text.partition(". It is possible")[0].removesuffix(".").strip()
    return (
        f"data.num_workers={num_workers}: {reason}; use data.num_workers=0, or give the workers "
        "more memory (docker run --shm-size=1g)"
    )
