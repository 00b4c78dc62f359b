"""Long runs: what a process holds at the end is what it held at the start."""

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
EVERY = 0.5  # seconds between two looks


class Look(NamedTuple):
    """What a process holds at a moment."""

    memory: int  # bytes, resident
    files: int  # open ones
    threads: int


def look(pid: int) -> Look | None:
    """What a process holds; None where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a file may be closed meanwhile
        threads = len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    except (OSError, IndexError):
        return None
    return Look(pages * os.sysconf("SC_PAGE_SIZE"), files, threads)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("logger", ["csv", "wandb"])
def test_twenty_thousand_steps_hold_no_more_than_a_thousand(
    logger: str, data_dir: Path, tmp_path: Path, measured: dict[str, Any]
) -> None:
    run_dir = tmp_path / "run"
    more = ["data.batch_size=16", "trainer.max_epochs=-1", f"trainer.max_steps={STEPS}"]
    more += [
        "scheduler=constant",
        "trainer.log_every_n_steps=50",
        "callbacks.last.every_n_steps=100",
    ]
    more += ["trainer.check_val_every_n_epoch=10", "callbacks.figures.every_n_epochs=100"]
    more += [f"logger={logger}"]
    tiny_but = [word for word in tiny(data_dir, run_dir) if "batch_size=32" not in word]
    tiny_but = [word for word in tiny_but if not word.startswith(("trainer.", "test_"))]
    command = [sys.executable, str(ROOT / "src/train.py"), *tiny_but, *more]
    looks: list[Look] = []
    with (tmp_path / "shown").open("w") as shown:
        process = subprocess.Popen(command, env=clean_environment(), stdout=shown, stderr=shown)
        try:
            while process.poll() is None:
                if (run_dir / "checkpoints" / "last.ckpt").exists() and (seen := look(process.pid)):
                    looks.append(seen)
                time.sleep(EVERY)
        finally:
            process.kill()
    assert process.returncode == 0, (tmp_path / "shown").read_text()
    assert reading.read_summary(run_dir)["steps"] == STEPS
    early, late = looks[len(looks) // 20 : len(looks) // 5], looks[-len(looks) // 5 : -2]
    memory = [median(x.memory for x in part) / 1e6 for part in (early, late)]
    files = [median(x.files for x in part) for part in (early, late)]  # some are open for a moment
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
