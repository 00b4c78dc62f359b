"""Shared fixtures and helpers. Tensor shapes in signatures are checked during the tests."""

import os

# one OpenMP thread per worker: threads that wait for a busy core burn CPU time
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

from tests import PACKAGE, shapes  # noqa: F401 - named below

TENSOR_MODULES = (
    *("noise", "augmentation", "data"),
    *("networks", "models", "figures", "sampling", "films"),
)
# before any module of the project is imported
install_import_hook([f"{PACKAGE}.{name}" for name in TENSOR_MODULES], "tests.shapes.typechecker")

import atexit  # noqa: E402
import contextlib  # noqa: E402
import functools  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from cvae.digits import idx_bytes  # noqa: E402
from tests.tally import (  # noqa: E402, F401 - hooks and fixtures
    faults_seed,
    measured,
    pytest_addoption,
    pytest_runtest_logreport,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    pytest_terminal_summary,
    shuffle,
    survived,
)

ROOT = Path(__file__).resolve().parents[1]
NUM_TRAIN, NUM_TEST = 260, 33  # last batches are smaller, and 33 is odd for two ranks


class ProcessEntry(NamedTuple):
    """Ids of a process, of its parent and of its process group."""

    pid: int
    parent: int
    group: int


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the longest files first, so that two test processes end at about the same time.

    The tests of a file share a process, except those with a group of their own.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
        if getattr(config.option, "loadgroup", False) and hasattr(item, "_id"):
            # xdist 3.8 appends the group to _nodeid and schedules by it; pytest 9.2 has _id
            (group,) = {mark.args[0] for mark in item.iter_markers("xdist_group")}
            item._id = type(item._id).parse(f"{item.nodeid}@{group}")
    first = ("test_training", "test_resume", "test_blocks", "test_your_own", "test_sweeps")
    items.sort(key=lambda i: first.index(i.path.stem) if i.path.stem in first else len(first))
    shuffle(config, items)


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which Lightning runs several times."""
    gc.collect()
    gc.freeze()


def write_digits(folder: Path, prefixes: tuple[str, str] = ("train", "t10k")) -> None:
    """Write four small IDX files with ten labels; the position of a bar shows the label."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in zip(prefixes, (NUM_TRAIN, NUM_TEST), strict=True):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 4 + 2 * label : 7 + 2 * label] = 220
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small dataset named KMNIST, which has no published digests."""
    folder = tmp_path_factory.mktemp("data with space")
    write_digits(folder / "KMNIST" / "raw")
    return folder


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that would change the settings of a run."""
    dropped = (
        "WANDB_",
        "HYDRA_",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "MASTER_",
        "TORCHELASTIC_",
        "SLURM_",
        "PYTHONDONTWRITEBYTECODE",  # with it, every process compiles the project again
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    # one thread per process: tests run in parallel, and more threads than cores are slow
    kept["OMP_NUM_THREADS"] = "1"
    return {
        **kept,
        "PYTHONPATH": str(ROOT / "src"),  # test this checkout, not an installed one
        "WANDB_MODE": "offline",
        "COLUMNS": "100",
        "PYTHONWARNINGS": "default",
    }


# variables that a fork can still set, after the large libraries are imported (tests/warm.py)
READ_LATE = (
    *("WANDB_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"),
    *("COLUMNS", "FAULT", "HYDRA_", "PYTHONPATH"),
)
LIGHT_LIBRARIES = (
    *("filelock", "hydra", "importlib.metadata", "importlib.resources.readers", "zipfile"),
    *("pydantic.functional_validators", "pydantic.main", "pydantic.type_adapter"),
    *("rich.console", "rich.table"),
)
LARGE_LIBRARIES = (
    "hydra",
    "lightning",
    "matplotlib.pyplot",
    "skimage.measure",
    "skimage.morphology",
    "sklearn.linear_model",
    "sklearn.mixture",
    "sklearn.pipeline",
    "torch._dynamo",
    "wandb.sdk.launch",  # wandb.init imports it
)


def run_script(
    name: str,
    *arguments: str,
    cwd: Path = ROOT,
    timeout: float = 120,
    forks: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run an entry point as from a shell, in a fresh interpreter or an equivalent fork.

    Args:
        forks: whether jobs and ranks start as forks; else in fresh interpreters.
    """
    script = ROOT / "src" / f"{name}.py"
    if hasattr(os, "fork") and all(key.startswith(READ_LATE) for key in environment):
        return run_fork(script, arguments, environment, cwd, timeout, forks=forks)
    return run_fresh(script, arguments, cwd, timeout, **environment)


def run_fresh(
    script: Path,
    arguments: Sequence[str],
    cwd: Path = ROOT,
    timeout: float = 120,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def run_light(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an entry point in a fork that has imported Hydra, but not torch or Lightning."""
    script = ROOT / "src" / f"{name}.py"
    return run_fork(script, arguments, environment, libraries=LIGHT_LIBRARIES)


def run_warm(
    script: Path, arguments: Sequence[str], cwd: Path, timeout: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that has already imported the large libraries."""
    return run_fork(script, arguments, environment, cwd, timeout)


def run_fork(
    script: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout: float = 120,
    libraries: tuple[str, ...] = LARGE_LIBRARIES,
    forks: bool = True,
    first: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a fork of a process that has imported libraries (tests/warm.py).

    Args:
        environment: variables to add to those of clean_environment.
        libraries: the modules that the process has imported.
        forks: whether jobs and ranks start as such forks too; else in fresh interpreters.
        first: first entry of sys.path; by default the folder of the script.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = _make_request(script, arguments, environment or {}, cwd, Path(folder))
        request |= {"limit": timeout, "forks": forks and sys.platform == "linux"}
        request |= {} if first is None else {"first": str(first)}
        code = _ask_warm_server(libraries, request)
        out, error = (Path(request[name]).read_text() for name in ("out", "error"))
        return subprocess.CompletedProcess([str(script), *arguments], code, out, error)


def _make_request(
    script: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path,
    output_dir: Path,
) -> dict[str, Any]:
    return {
        "script": str(script),
        "arguments": list(arguments),
        "cwd": str(cwd),
        "environment": {**clean_environment(), **environment},
        "out": str(output_dir / "out"),
        "error": str(output_dir / "error"),
        "first": str(script.parent),
    }


def _ask_warm_server(libraries: tuple[str, ...], request: Mapping[str, Any]) -> int:
    server = _warm_server(libraries)
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(request), file=server.stdin, flush=True)
    return int(server.stdout.readline())


class StartedScript:
    """An entry point that runs in a fork of its own session, for tests that signal it.

    It has the methods of ``subprocess.Popen`` that these tests use.
    """

    def __init__(self, name: str, *arguments: str, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        script = ROOT / "src" / f"{name}.py"
        request = _make_request(script, arguments, environment, ROOT, Path(self._folder.name))
        self._outputs = {name: Path(request[name]) for name in ("out", "error")}
        self._texts: dict[str, str] = {}
        self.pid = _ask_warm_server(LARGE_LIBRARIES, {**request, "limit": None, "forks": True})
        self.returncode: int | None = None

    def wait(self, timeout: float) -> int:
        """Return the exit code, negative for a signal; kill the process after the timeout."""
        if self.returncode is None:
            self.returncode = _ask_warm_server(
                LARGE_LIBRARIES, {"wait_for": self.pid, "limit": timeout}
            )
            self._texts = {name: path.read_text() for name, path in self._outputs.items()}
            self._folder.cleanup()
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the process, and return its output and its errors."""
        self.wait(timeout)
        return self._texts["out"], self._texts["error"]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process unless it has ended."""
        self.wait(0)

    def list_processes(self) -> list[ProcessEntry]:
        """Return the live processes of its session: the script, its children and theirs."""
        entries = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # a process that has ended
                state, *numbers = path.read_text().rpartition(")")[2].split()[:4]
                parent, group, session = map(int, numbers)
                if session == self.pid and state != "Z":
                    entries.append(ProcessEntry(int(path.parent.name), parent, group))
        return entries


def wait_for_end(list_processes: Callable[[], list[Any]], timeout: float = 15) -> list[Any]:
    """Wait until no process is listed; return those that remain after the timeout in seconds."""
    deadline = time.monotonic() + timeout
    while (processes := list_processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes


@functools.cache
def _warm_server(libraries: tuple[str, ...]) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-P", str(ROOT / "tests" / "warm.py"), *libraries],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # closes its input, which ends it
    return server


def tiny(data_dir: Path, run_dir: Path | None = None) -> list[str]:
    """Return the overrides of a run that trains for a second or two."""
    overrides = [
        "data=kmnist",
        f"data.data_dir={data_dir}",
        "data.batch_size=32",
        "data.eval_batch_size=16",
        "data.validation_size=45",
        "model.network.hidden_dim=16",
        "model.network.encoder_blocks=1",
        "model.network.decoder_blocks=1",
        "model.latent_dim=3",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "test_num_samples=4",
    ]
    return overrides + ([] if run_dir is None else [f"hydra.run.dir={run_dir}"])


@pytest.fixture(scope="session")
def finished_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of a small CVAE, with special characters in its path."""
    run_dir = tmp_path_factory.mktemp("runs") / "a run, with=odd [letters] é"
    done = run_script("train", *tiny(data_dir, run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run={_quote_path(run_dir)}" in done.stdout
    return run_dir


def _quote_path(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
