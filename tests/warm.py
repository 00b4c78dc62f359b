"""Runs scripts in forks of a process that has imported the large libraries: seconds less for each.

``python tests/warm.py`` reads a request a line, as JSON: the script, its arguments, the folder to
run it in, the environment, the files for its output, a limit in seconds. It answers with the exit
code. Nothing of this project is imported before the fork, so a script finds everything as it would
in a fresh interpreter, large libraries aside.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import time
from typing import Any

LIBRARIES = (
    "hydra",
    "lightning",
    "matplotlib.pyplot",
    "torch._dynamo",
    "torch.distributed.launcher.api",
    "wandb",
)


def become(request: dict[str, Any]) -> None:
    """Turn this process into the one that was asked for."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "error")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [request["script"], *request["arguments"]]
    # W&B makes a folder for pictures as it is imported, which the first fork to end takes with it
    media = importlib.import_module("wandb.sdk.data_types._private").MEDIA_TMP
    os.makedirs(media.name, exist_ok=True)  # noqa: PTH103 - a name
    sys.path[0] = os.path.dirname(request["script"])  # noqa: PTH120 - as the interpreter does
    runpy.run_path(request["script"], run_name="__main__")


def wait(child: int, limit: float) -> int:
    """The exit code of a child, or minus the signal that ended it."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    for library in LIBRARIES:
        importlib.import_module(library)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            return become(request)
        print(wait(child, request["limit"]), flush=True)
    return None


if __name__ == "__main__":
    main()
