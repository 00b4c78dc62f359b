"""Memory, open files and threads do not grow in a long run."""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

from harness.run_folder import reading
from tests.conftest import ROOT, clean_environment, tiny

STEPS = 20_000
SECONDS_BETWEEN = 0.5  # seconds between measurements


class Usage(NamedTuple):
    """Memory, open files and threads of a process."""

    memory: int  # resident bytes
    files: int  # open files
    threads: int


def measure_usage(pid: int) -> Usage | None:
    """Measure a process; return None if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a file may be closed meanwhile
        threads = len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    except (OSError, IndexError):
        return None
    return Usage(pages * os.sysconf("SC_PAGE_SIZE"), files, threads)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("logger", ["csv", "wandb"])
def test_memory_and_open_files_do_not_grow(
    logger: str, data_dir: Path, tmp_path: Path, measured: dict[str, Any]
) -> None:
    run_dir = tmp_path / "run"
    overrides = ["data.batch_size=16", "trainer.max_epochs=-1", f"trainer.max_steps={STEPS}"]
    overrides += [
        "scheduler=constant",
        "trainer.log_every_n_steps=50",
        "callbacks.last.every_n_steps=100",
    ]
    overrides += ["trainer.check_val_every_n_epoch=10", "callbacks.figures.every_n_epochs=100"]
    overrides += [f"logger={logger}"]
    base = [word for word in tiny(data_dir, run_dir) if "batch_size=32" not in word]
    base = [word for word in base if not word.startswith(("trainer.", "test_"))]
    command = [sys.executable, str(ROOT / "src/train.py"), *base, *overrides]
    usages: list[Usage] = []
    with (tmp_path / "shown").open("w") as output:
        process = subprocess.Popen(command, env=clean_environment(), stdout=output, stderr=output)
        try:
            while process.poll() is None:
                if (run_dir / "checkpoints" / "last.ckpt").exists() and (
                    usage := measure_usage(process.pid)
                ):
                    usages.append(usage)
                time.sleep(SECONDS_BETWEEN)
        finally:
            process.kill()
    assert process.returncode == 0, (tmp_path / "shown").read_text()
    assert reading.read_summary(run_dir)["steps"] == STEPS
    early, late = usages[len(usages) // 20 : len(usages) // 5], usages[-len(usages) // 5 : -2]
    memory = [median(x.memory for x in part) / 1e6 for part in (early, late)]
    files = [median(x.files for x in part) for part in (early, late)]  # some are open briefly
    log_bytes = sum(p.stat().st_size for p in run_dir.glob("*.*"))
    measured[f"soak of {STEPS} steps, {logger}"] = {
        "memory_mb": [round(m, 1) for m in memory],
        "open_files": files,
        "logs_mb": round(log_bytes / 1e6, 2),
    }
    assert memory[1] < memory[0] + 10
    assert files[1] <= files[0]
    assert max(x.threads for x in late) <= max(x.threads for x in early)
    assert log_bytes < 2e6
