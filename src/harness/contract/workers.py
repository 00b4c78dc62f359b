"""DataLoader that stops waiting for workers that stall or die.

torch waits forever for a worker that is stuck, or whose batch was lost because /dev/shm was full,
and handles nothing else while it waits.
"""

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

T_co = TypeVar("T_co", covariant=True)
_POLL = 0.5  # seconds
_MAX_TRANSFER = 20.0  # seconds to receive a batch that is ready; usually milliseconds


class StalledError(RuntimeError):
    """The data workers delivered no batch within the timeout, or a worker died."""


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
        self._polling_since: float | None = None
        super().__init__(loader)
        _workers.update(self._workers)
        limit = min(_MAX_TRANSFER, 0.7 * self._timeout or _MAX_TRANSFER)
        threading.Thread(
            target=_kill_hung_workers, args=(weakref.ref(self), limit), daemon=True
        ).start()

    def _try_get_data(self, timeout: float = _POLL) -> tuple[bool, Any]:
        start = time.monotonic()
        while True:
            result = self._poll(min(_POLL, timeout))
            waited = time.monotonic() - start
            if isinstance(result, tuple):
                return result
            try:
                if self._while_waiting is not None:
                    self._while_waiting(waited)
                if result is not None:
                    raise StalledError(f"a data worker is gone or stuck ({result})") from result
                if 0 < self._timeout <= waited:
                    raise StalledError(f"no batch from the data workers for {waited:.0f} s")
            except BaseException:
                self._is_stuck = True
                raise
            if waited >= timeout:
                return False, None

    def _poll(self, timeout: float) -> tuple[bool, Any] | Exception | None:
        """Return (True, batch), None while there is no batch, or the error of a failed transfer."""
        self._polling_since = time.monotonic()
        try:
            has_batch, batch = super()._try_get_data(timeout)
        except (OSError, EOFError) as error:
            return error
        except RuntimeError as error:
            if self._is_stuck:  # killed by _kill_hung_workers
                return error
            raise
        finally:
            self._polling_since = None
        return (True, batch) if has_batch else None

    def kill_workers(self) -> None:
        """Kill the workers with SIGKILL, because they ignore SIGTERM."""
        self._is_stuck = True
        if self._worker_pids_set:
            _remove_worker_pids(id(self))  # else torch reports their exit as a failure
            self._worker_pids_set = False
        for worker in self._workers:
            worker.kill()

    def _shutdown_workers(self) -> None:
        if self._is_stuck and not self._shutdown:
            self.kill_workers()
        super()._shutdown_workers()
        for worker in getattr(self, "_workers", []):
            if worker.is_alive():
                worker.kill()


_workers: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _kill_left_over_workers() -> None:
    """Kill workers that outlived their loader: multiprocessing would wait for them forever."""
    for worker in list(_workers):
        if worker.is_alive():
            worker.kill()


def _kill_hung_workers(reference: "weakref.ref[_WatchedIterator]", limit: float) -> None:
    """Kill the workers if one hangs while it sends a batch, because that read has no timeout."""
    while (iterator := reference()) is not None and not iterator._shutdown:
        since = iterator._polling_since
        if since is not None and time.monotonic() - since > limit + _POLL:
            iterator.kill_workers()
            return
        del iterator
        time.sleep(_POLL)


def explain_failure(error: BaseException, num_workers: int) -> str | None:
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
