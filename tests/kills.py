"""Trains a run in forked processes that are killed, again and again, and then once to its end.

``python tests/kills.py RUN_DIR PLAN``, with the plan a JSON list of kills: a number is so many
seconds after the start, ``["os:replace", 3, "before"]`` is the third call of a function. Importing
once and forking each time makes a kill cost less than a second. It prints how each attempt ended.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def die_at(name: str, count: int, when: str) -> None:
    """Kill this process before or after the ``count``-th call of ``module:attribute``."""
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, last), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls[0] == count and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, counted)


def attempt(run_dir: Path, kill: Any) -> int:
    """Train in a child; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        from cvae.launch import launch
        from cvae.processes import exit_codes

        code = 0
        try:
            if isinstance(kill, list):
                die_at(*kill)
            output = os.open(run_dir / "attempts.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            with exit_codes(run_dir):
                launch(run_dir)
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            code = 99
        os._exit(code)
    if isinstance(kill, float):
        time.sleep(kill)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def main(run_dir: Path, plan: list[Any]) -> None:
    import cvae.callbacks
    import cvae.training  # noqa: F401 - once, before the forks

    assert threading.active_count() == 1
    ended: list[int] = []
    for kill in [*plan, None]:
        start = time.monotonic()
        ended.append(attempt(run_dir, kill))
        if ended[-1] == 0:
            break
    print(json.dumps({"ended": ended, "seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
