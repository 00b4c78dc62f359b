"""Trains a run in forked processes: one attempt per planned kill, then one to the end.

Run ``python tests/kills.py RUN_DIR PLAN [RANKS]``. PLAN is a JSON list with an entry per attempt:

- ``["os:replace", 3, "before"]``: SIGKILL before the third call of ``os.replace``
- ``["os:replace", 3, "before", "SIGTERM", 1]``: SIGTERM to rank 1 only
- ``{"after": 0.7, "signal": "SIGTERM", "rank": 1}``: the same, 0.7 seconds after the start
- ``"leave"``: stop here and leave the run unfinished

It prints the exit codes of each attempt and the seconds of the last one. The libraries are imported
once, before the forks, so a kill costs less than a second.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

LIMIT = 60  # seconds for the other ranks to exit after one has


def send_signal_at(
    name: str, count: int, when: str, signal_name: str = "SIGKILL", rank: int | None = None
) -> None:
    """Signal this process, or one rank, before or after the n-th call of ``module:attribute``."""
    if rank not in (None, int(os.environ.get("RANK", 0))):
        return
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, last), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == count and when == "before":
            os.kill(os.getpid(), getattr(signal, signal_name))
        result = original(*args, **kwargs)
        if calls[0] == count and when == "after":
            os.kill(os.getpid(), getattr(signal, signal_name))
        return result

    setattr(owner, last, counted)


def train(run_dir: Path, kill: Any, rank_variables: dict[str, str]) -> int:
    """Train as a fresh process would, and return the exit code."""
    from harness.run_folder.folder import RunFolder
    from harness.training.launch import launch
    from harness.training.processes import exit_with_code
    from harness.training.ranks import connect_ranks

    try:
        output = os.open(run_dir / "attempts.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(rank_variables)
        if isinstance(kill, list):
            send_signal_at(*kill)
        folder = RunFolder(run_dir)
        with exit_with_code(folder):
            if rank_variables:
                connect_ranks(run_dir, "", timeout=LIMIT / 3)
            launch(folder)
    except SystemExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        return 99
    return 0


def make_rank_variables(rank: int, count: int) -> dict[str, str]:
    """Return the variables that torchrun would set for a rank; none for a single rank."""
    if count == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {
        **{key: str(number) for key, number in numbers.items()},
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "kills",
        "MASTER_ADDR": "127.0.0.1",
    }


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def run_attempt(run_dir: Path, kill: Any, num_ranks: int = 1) -> list[int]:
    """Train in forked children; return their exit codes, negative for a signal."""
    port = {"MASTER_PORT": str(find_free_port())} if num_ranks > 1 else {}
    children = []
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
            os._exit(train(run_dir, kill, {**make_rank_variables(rank, num_ranks), **port}))
        children.append(child)
    if isinstance(kill, dict):
        time.sleep(kill["after"])
        number = getattr(signal, kill.get("signal", "SIGKILL"))
        os.kill(children[kill.get("rank", 0)], number)
    exit_codes: dict[int, int] = {}
    deadline = None
    while len(exit_codes) < num_ranks:
        for child in children:
            if child not in exit_codes:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    exit_codes[child] = os.waitstatus_to_exitcode(status)
                    deadline = deadline or time.monotonic() + LIMIT
        if deadline is not None and time.monotonic() > deadline:
            for child in set(children) - set(exit_codes):
                os.kill(child, signal.SIGKILL)
            raise TimeoutError(f"a rank did not exit within {LIMIT} s")
        time.sleep(0.005)
    return [exit_codes[child] for child in children]


def main(run_dir: Path, plan: list[Any], num_ranks: int = 1) -> None:
    import harness.training.run  # noqa: F401 - once, before the forks

    assert threading.active_count() == 1
    gc.freeze()  # garbage collection in a fork would copy all pages with objects
    exit_codes: list[list[int]] = []
    start = time.monotonic()
    for kill in [*plan, None]:
        if kill == "leave":
            break
        start = time.monotonic()
        exit_codes.append(run_attempt(run_dir, kill, num_ranks))
        if not any(exit_codes[-1]):
            break
    print(json.dumps({"exit_codes": exit_codes, "seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), *map(int, sys.argv[3:]))
