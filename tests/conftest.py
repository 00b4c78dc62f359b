"""What tests share. Shapes in signatures are checked while they run."""

from jaxtyping import install_import_hook

from tests import shapes  # noqa: F401 - named below

TENSOR_ROOMS = (
    *("noise", "augmentation", "data"),
    *("networks", "models", "figures", "sampling"),
)
# before anything of ours is imported
install_import_hook([f"cvae.{room}" for room in TENSOR_ROOMS], "tests.shapes.typechecker")

import atexit  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

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
NUM_TRAIN, NUM_TEST = 260, 33  # neither divides by two ranks and the batch sizes used

Cli = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, so that two processes end at about the same time."""
    first = ("test_training", "test_readme", "test_faults", "test_loggers")
    items.sort(key=lambda i: first.index(i.path.stem) if i.path.stem in first else len(first))
    shuffle(config, items)


def write_digits(folder: Path, prefixes: tuple[str, str] = ("train", "t10k")) -> None:
    """Four small IDX files: every label present, pictures that tell the labels apart."""
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
    """A folder with a small set in the place of KMNIST, which has no published digests."""
    folder = tmp_path_factory.mktemp("data with space")
    write_digits(folder / "KMNIST" / "raw")
    return folder


def clean_environment() -> dict[str, str]:
    """The environment without what would make a run use an account or another's settings."""
    dropped = (
        "WANDB_",
        "HYDRA_",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "MASTER_",
        "TORCHELASTIC_",
        "SLURM_",
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    # a thread a process: tests run side by side, and threads that wait for each other's cores crawl
    kept["OMP_NUM_THREADS"] = "1"
    return {
        **kept,
        "PYTHONPATH": str(ROOT / "src"),  # test this checkout, not an installed one
        "WANDB_MODE": "offline",
        "COLUMNS": "100",
        "PYTHONWARNINGS": "default",
    }


def run_script(
    name: str, *arguments: str, cwd: Path = ROOT, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an entry point as a person does; in a fresh interpreter if the environment is another."""
    script = ROOT / "src" / f"{name}.py"
    if not environment and hasattr(os, "fork"):
        return run_warm(script, arguments, cwd, timeout)
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


def run_warm(
    script: Path, arguments: Sequence[str], cwd: Path, timeout: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that has the large libraries already (tests/warm.py)."""
    server = _warm_server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder) / "out", Path(folder) / "error"
        request = {
            "script": str(script),
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": {**clean_environment(), **environment},
            "out": str(out),
            "error": str(error),
            "limit": timeout,
        }
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(
            [str(script), *arguments], code, out.read_text(), error.read_text()
        )


@functools.cache
def _warm_server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-P", str(ROOT / "tests" / "warm.py")],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # the end of its input is its end
    return server


def tiny(data_dir: Path, run_dir: Path | None = None) -> list[str]:
    """Overrides that make a whole run last a second or two of training."""
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
    """The folder of one finished run of a small CVAE, its path full of awkward characters."""
    run_dir = tmp_path_factory.mktemp("runs") / "a run, with=odd [letters] é"
    done = run_script("train", *tiny(data_dir, run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run={_quoted(run_dir)}" in done.stdout
    return run_dir


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
