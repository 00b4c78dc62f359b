"""Runs each script in a fork of a process that has imported the large libraries.

A fork starts several seconds sooner than an interpreter that imports the libraries itself.

``python tests/warm.py LIBRARY ...`` imports the libraries and reads one JSON request per line:
script, arguments, working directory, environment, output files and time limit in seconds. It
answers with the exit code. A request without a limit is answered at once with the process id, and
a later request waits for that process. No module of this project is imported before the fork, so
apart from the large libraries a script sees a fresh interpreter.

Jobs and ranks that a script starts are forks too. Their parent is a ``ForkServer``, which forks off
before the script runs, so they have not imported the project either. They become children of the
script, with their own process id, process group and exit code.
"""

import atexit
import contextlib
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

LAUNCH = "harness.training.launch"  # the module that jobs and ranks run
MODULES = (LAUNCH, "harness.sweeps.fork_server")
_POPEN_PARAMETERS = list(inspect.signature(subprocess.Popen._execute_child).parameters)  # type: ignore[attr-defined]


def set_environment(environment: Mapping[str, str], first: str) -> None:
    """Set the variables, and the state that the interpreter and libraries derive from them."""
    os.environ.clear()
    os.environ.update(environment)
    python_path = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [first, *filter(None, python_path)]  # replaces the folder of this file
    if encoding := environment.get("PYTHONIOENCODING"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    if "lightning" in sys.modules:
        rank_zero = importlib.import_module("lightning.fabric.utilities.rank_zero")
        rank_zero.rank_zero_only.rank = int(environment.get("RANK", 0))
    if "wandb" in sys.modules:
        # importing W&B makes a folder for pictures, and the first fork to exit removes it
        media = importlib.import_module("wandb.sdk.data_types._private").MEDIA_TMP
        os.makedirs(media.name, exist_ok=True)  # noqa: PTH103 - a name


class ForkServer:
    """Child process without threads or project code; its forks become children of this process."""

    def __init__(self) -> None:
        set_child_subreaper = 36
        ctypes = importlib.import_module("ctypes")
        ctypes.CDLL(None).prctl(set_child_subreaper, 1)
        self.parent = os.getpid()
        self.socket, server_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.job: dict[str, Any] | None = None
        if os.fork() == 0:
            self.socket.close()
            self.job = self._serve(server_socket)
        server_socket.close()

    def _serve(self, server_socket: socket.socket) -> dict[str, Any]:
        """Fork for each request, and return the request in the fork; the server never returns."""
        while True:
            message, fds, _, _ = socket.recv_fds(server_socket, 2**20, 3)
            if not message:
                os._exit(0)
            reading, writing = os.pipe()
            if intermediate := os.fork():
                os.waitpid(intermediate, 0)
                server_socket.send(os.read(reading, 64))
                for fd in (reading, writing, *fds):
                    os.close(fd)
                continue
            if child := os.fork():  # its parent exits, so the script adopts it
                os.write(writing, str(child).encode())
                os._exit(0)
            server_socket.close()
            os.close(reading)
            os.close(writing)
            while os.getppid() != self.parent:
                time.sleep(0.001)
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
                os.close(fd)
            return dict(json.loads(message))

    def start(self, job: Mapping[str, Any], fds: Sequence[int]) -> int:
        """Return the process id of a fork with this standard input, output and error."""
        socket.send_fds(self.socket, [json.dumps(job).encode()], fds)
        return int(self.socket.recv(64))


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts jobs and ranks as forks, and everything else as usual."""

    fork_server: ForkServer

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        if list(args[:2]) != [sys.executable, "-m"] or args[2] not in MODULES:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        parameters = dict(zip(_POPEN_PARAMETERS[2:], rest, strict=True))
        job = {
            "module": args[2],
            "arguments": list(args[3:]),
            "environment": dict(os.environ if parameters["env"] is None else parameters["env"]),
            "cores": sorted(os.sched_getaffinity(0)),
        }
        streams = (parameters[name] for name in ("p2cread", "c2pwrite", "errwrite"))
        fds = [number if fd == -1 else fd for number, fd in enumerate(streams)]
        self.pid = self.fork_server.start(job, fds)
        self._child_created = True


def run_requested_script(request: Mapping[str, Any]) -> None:
    """Run the requested script in this process."""
    if request["limit"] is None:
        os.setsid()  # so that the test finds this process and its children
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
    os.chdir(request["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "error")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    fork_server = ForkServer() if request["forks"] else None
    if fork_server is not None and fork_server.job is not None:
        become_job(fork_server.job)
        return
    set_environment(request["environment"], request["first"])
    if fork_server is not None:
        fork_jobs(fork_server)
    sys.argv = [request["script"], *request["arguments"]]
    runpy.run_path(request["script"], run_name="__main__")


def become_job(job: Mapping[str, Any]) -> None:
    """Turn this process into a job or a rank."""
    os.setpgid(0, 0)
    os.sched_setaffinity(0, job["cores"])
    if job["module"] == LAUNCH:  # a fork server starts jobs with os.fork instead
        fork_server = ForkServer()
        if fork_server.job is not None:
            become_job(fork_server.job)
            return
        fork_jobs(fork_server)
    set_environment(job["environment"], os.getcwd())  # noqa: PTH109
    sys.argv = [job["module"], *job["arguments"]]
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


def fork_jobs(fork_server: ForkServer) -> None:
    """Make this process start its jobs and ranks as forks."""
    Popen.fork_server = fork_server
    subprocess.Popen = Popen  # type: ignore[misc]


def wait_for_child(child: int, limit: float) -> int:
    """Return the exit code of a child, negative for a signal; kill it after the limit."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def exit_process(code: int) -> NoReturn:
    """Exit as an interpreter does, but without freeing all objects, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run_and_exit(request: Mapping[str, Any]) -> NoReturn:
    """Run the requested script in this process, and exit with its exit code."""
    code = 0
    try:
        run_requested_script(request)
    except SystemExit as error:
        if isinstance(error.code, int):
            code = error.code
        elif error.code is not None:
            print(error.code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    exit_process(code)


def main() -> None:
    for library in sys.argv[1:]:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()  # garbage collection in a fork would copy all pages with objects
    for line in sys.stdin:
        request = json.loads(line)
        if "wait_for" in request:
            print(wait_for_child(request["wait_for"], request["limit"]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            run_and_exit(request)
        is_started = request["limit"] is None
        print(child if is_started else wait_for_child(child, request["limit"]), flush=True)


if __name__ == "__main__":
    main()
