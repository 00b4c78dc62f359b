"""Fork server: imports torch and Lightning once, then forks a process for each job of a sweep.

The server takes no training step, uses no GPU and imports no module that a config names. A job that
is a fork of it trains as in a fresh interpreter, and starts seconds earlier. The server starts with
the environment of the jobs and with as many cores as a job, because libraries read both on import.
A job becomes a child of the sweep: its exit code and its end do not depend on the server.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.config.machine import Share, divide_machine, restrict_to_share
from harness.contract.terminal import accept_any_text
from harness.training.forks import Fork, can_fork, fork, run_and_exit, stop
from harness.training.launch import child_environment, run_process
from harness.training.processes import PARENT_VARIABLE

_MAX_BYTES = 2**16  # of a request
_EXIT_TIMEOUT = 3  # seconds
# a library that reads these binds its threads to cores on import, before the job has its cores
_BINDING_VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


class ForkServer:
    """Starts jobs as forks of a process that has imported the large libraries.

    The server process imports the libraries in the background and ends when this process ends.

    Args:
        sweep_dir: the folder of the sweep; shown in the command line of the server and its forks.
        num_parallel: jobs at a time.
        environment: variables to set for the jobs.
    """

    def __init__(
        self, sweep_dir: Path, num_parallel: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        self._socket: socket.socket | None = None
        variables = child_environment(environment)
        binds_threads = num_parallel > 1 and any(name in variables for name in _BINDING_VARIABLES)
        if sys.platform != "linux" or binds_threads:
            return
        self._socket, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        variables.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as for ranks
        with server_end, restrict_to_share(divide_machine(num_parallel)[0]):
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(sweep_dir)],
                env=variables,
                stdin=server_end.fileno(),
                process_group=0,  # Ctrl-C ends the jobs, not the server
            )
        atexit.register(self.close)

    def start(self, run_dir: Path, share: Share, output: int | None = None) -> Fork | None:
        """Start a job in its own process group, once the libraries are imported.

        Args:
            run_dir: the folder of its run.
            share: the cores and GPUs that it may use.
            output: file descriptor for its stdout and stderr; None for those of this process.

        Returns:
            Its process; None if this machine cannot fork safely or the server has ended.
        """
        if self._socket is None:
            return None
        with restrict_to_share(share) as variables:
            request = {"run_dir": str(run_dir), "cores": share.cores, "variables": variables}
        fds = [1, 2] if output is None else [output, output]
        reply = b""
        with contextlib.suppress(OSError), _adopt_orphans():
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            reply = self._socket.recv(_MAX_BYTES)
        if reply:
            return Fork(int(reply))
        print("the fork server has ended: jobs start in fresh interpreters", file=sys.stderr)
        self.close()
        return None

    def close(self) -> None:
        """End the server; its jobs continue."""
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        stop([self._process], signal.SIGTERM, _EXIT_TIMEOUT)


@contextlib.contextmanager
def _adopt_orphans() -> Iterator[None]:
    """Adopt descendants whose parents end within this block."""
    set_child_subreaper, get_child_subreaper = 36, 37
    libc, before = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(get_child_subreaper, ctypes.byref(before))
    libc.prctl(set_child_subreaper, 1)
    try:
        yield
    finally:
        libc.prctl(set_child_subreaper, before)


def _serve(connection: socket.socket) -> None:
    """Start a job for each request, until the sweep closes the connection or ends."""
    while True:
        message, fds, _, _ = socket.recv_fds(connection, _MAX_BYTES, 2)
        if not message:
            return
        job = functools.partial(_run_job, connection, json.loads(message), fds)
        # fork twice: the first fork ends at once, so that the sweep adopts the job
        Fork(fork(functools.partial(_start_orphan, job))).wait()
        for fd in fds:
            os.close(fd)


def _start_orphan(job: functools.partial[None]) -> None:
    fork(functools.partial(job, os.getpid()))
    os._exit(0)  # without the finalizers of the server


def _run_job(
    connection: socket.socket, request: Mapping[str, Any], fds: list[int], first_fork: int
) -> None:
    """Run the job of a request, once the sweep has adopted this process from ``first_fork``."""
    os.setpgid(0, 0)
    while os.getppid() == first_fork:
        time.sleep(0.001)
    is_adopted = str(os.getppid()) == os.environ[PARENT_VARIABLE]
    with contextlib.suppress(OSError):  # the sweep may have ended
        connection.send(str(os.getpid()).encode() if is_adopted else b"")
    connection.close()
    if not is_adopted:
        return
    fds = [os.open(os.devnull, os.O_RDONLY), *fds]
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.environ.update(request["variables"])
    os.sched_setaffinity(0, request["cores"])
    from harness.tracking.wandb import make_temporary_folders  # late: it imports torch

    make_temporary_folders()
    sys.argv = [str(Path(run_process.__code__.co_filename)), request["run_dir"]]
    run_process(request["run_dir"], fork_ranks=True)


def main() -> None:
    """Import the large libraries, then serve the socket that is this process's stdin."""
    accept_any_text()
    gc.disable()  # the imports make little garbage, and collections take a fifth of their time
    import torch.distributed.elastic.multiprocessing.errors

    import harness.training.run  # noqa: F401
    from harness.tracking.wandb import import_for_runs

    # end only when the sweep disconnects, because only a normal exit removes W&B's temporary folder
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import_for_runs()
    gc.freeze()  # garbage collection in a fork would copy all pages with objects
    gc.enable()
    if can_fork() and not torch.cuda.is_initialized():
        with socket.socket(fileno=os.dup(0)) as connection:
            _serve(connection)


if __name__ == "__main__":
    run_and_exit(main)
