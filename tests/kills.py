"""Trains a run in forked processes that are killed, again and again, and then once to its end.

``python tests/kills.py RUN_DIR PLAN [RANKS]``, with the plan a JSON list of ends:
``["os:replace", 3, "before"]`` is a SIGKILL at the third call of a function, ``["os:replace", 3,
"before", "SIGTERM", 1]`` a signal to rank 1 alone, ``{"after": 0.7, "signal": "SIGTERM",
"rank": 1}`` one so many seconds after the start. Importing once and forking each time makes a kill
cost less than a second. It prints how each attempt ended.
"""

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

LIMIT = 60  # seconds after which a rank must have left, once another is gone


def die_at(
    name: str, count: int, when: str, number: str = "SIGKILL", rank: int | None = None
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
            os.kill(os.getpid(), getattr(signal, number))
        result = original(*args, **kwargs)
        if calls[0] == count and when == "after":
            os.kill(os.getpid(), getattr(signal, number))
        return result

    setattr(owner, last, counted)


def train(run_dir: Path, end: Any, ranks: dict[str, str]) -> int:
    """Train as a fresh process would; its exit code."""
    from harness.run_folder.folder import RunFolder
    from harness.training.launch import launch
    from harness.training.processes import exit_codes
    from harness.training.ranks import join

    try:
        output = os.open(run_dir / "attempts.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(ranks)
        if isinstance(end, list):
            die_at(*end)
        folder = RunFolder(run_dir)
        with exit_codes(folder):
            if ranks:
                join(run_dir, "", timeout=LIMIT / 3)
            launch(folder)
    except SystemExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        return 99
    return 0


def as_rank(rank: int, count: int) -> dict[str, str]:
    """What torchrun would tell one of several ranks; nothing where there is one."""
    if count == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {
        **{key: str(number) for key, number in numbers.items()},
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "kills",
        "MASTER_ADDR": "127.0.0.1",
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def attempt(run_dir: Path, end: Any, num_ranks: int = 1) -> list[int]:
    """Train in forked children; of each, its exit code, or minus the signal that ended it."""
    port = {"MASTER_PORT": str(free_port())} if num_ranks > 1 else {}
    children = []
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
            os._exit(train(run_dir, end, {**as_rank(rank, num_ranks), **port}))
        children.append(child)
    if isinstance(end, dict):
        time.sleep(end["after"])
        number = getattr(signal, end.get("signal", "SIGKILL"))
        os.kill(children[end.get("rank", 0)], number)
    ended: dict[int, int] = {}
    late = None
    while len(ended) < num_ranks:
        for child in children:
            if child not in ended:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    ended[child] = os.waitstatus_to_exitcode(status)
                    late = late or time.monotonic() + LIMIT
        if late is not None and time.monotonic() > late:
            for child in set(children) - set(ended):
                os.kill(child, signal.SIGKILL)
            raise TimeoutError(f"a rank did not leave within {LIMIT} s")
        time.sleep(0.005)
    return [ended[child] for child in children]


def main(run_dir: Path, plan: list[Any], num_ranks: int = 1) -> None:
    import harness.training.run  # noqa: F401 - once, before the forks

    assert threading.active_count() == 1
    ended: list[list[int]] = []
    for end in [*plan, None]:
        start = time.monotonic()
        ended.append(attempt(run_dir, end, num_ranks))
        if not any(ended[-1]):
            break
    print(json.dumps({"ended": ended, "seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), *map(int, sys.argv[3:]))
