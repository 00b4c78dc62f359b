"""Ranks of a run on this machine: one process per device, watched by the process that starts them.

They use the protocol of torchrun: its environment variables, a store through which the ranks
connect, and one file per rank in which it reports its error.
"""

import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.contract.errors import Stopped
from harness.training.forks import Process, stop

_HOST = "127.0.0.1"
_POLL = 0.05  # seconds
_STOP_TIMEOUT = 10  # seconds between the stop signal to a rank and SIGKILL


def run_ranks(count: int, name: str, start: Callable[[Mapping[str, str]], Process]) -> None:
    """Start ranks and wait until they end. If a rank fails, stop the others.

    Args:
        count: number of ranks.
        name: name of the run.
        start: starts a rank with these environment variables.

    Raises:
        ChildFailedError: a rank failed.
        Stopped: this process got a stop signal.
    """
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    error_files = [folder / f"{rank}.json" for rank in range(count)]
    ranks: list[Process] = []
    stop_signal = signal.SIGTERM
    try:
        with socket.create_server((_HOST, 0), backlog=2 * count) as listener:
            port = listener.getsockname()[1]
            for rank, error_file in enumerate(error_files):
                ranks.append(start(_variables(rank, count, port, name, error_file)))
            # after the ranks: the store starts threads, and a process with threads must not fork
            store = dist.TCPStore(
                _HOST,
                port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        failed = _wait_for_failures(ranks)
        stop(ranks, stop_signal, _STOP_TIMEOUT)
        del store
        if failures := {
            rank: ProcessFailure(rank, ranks[rank].pid, code, str(error_files[rank]))
            for rank, code in failed.items()
        }:
            raise ChildFailedError(name, failures)
    except Stopped as error:
        stop_signal = signal.Signals(error.exit_code - 128)
        raise
    finally:
        stop(ranks, stop_signal, _STOP_TIMEOUT)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_failures(ranks: Sequence[Process]) -> dict[int, int]:
    """Wait until a rank fails or all have ended; return the exit code of each that failed."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = {rank: code for rank, code in enumerate(codes) if code}
        if failed or None not in codes:
            return failed
        time.sleep(_POLL)


def _variables(rank: int, count: int, port: int, name: str, error_file: Path) -> dict[str, str]:
    """Return the environment variables that torchrun sets for a rank on one machine."""
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": name,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the store is in the process that starts the ranks
        "TORCHELASTIC_ERROR_FILE": error_file,
    }
    return {variable: str(value) for variable, value in values.items()}
