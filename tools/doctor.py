"""Print the facts about this machine and environment that a bug report needs: ``make doctor``.

Needs only the standard library of Python 3.8, so that it also works in a broken environment. It
opens no connection and prints no keys.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
WIDTH, INDENT = 80, 10  # columns
GIB = 2**30
TIMEOUT = float(os.environ.get("DOCTOR_TIMEOUT", 8))  # seconds for torch and W&B together
# variables that hold no secrets, and prefixes of those that are listed without their values
SHOWN_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WANDB_MODE")
NAMED_PREFIXES = (
    *("CUDA_", "HYDRA_", "LOCAL_RANK", "NCCL_"),
    *("PYTHON", "SLURM_JOB_ID", "TORCH_", "WANDB_"),
)

# imports run in processes of their own, because they can hang or crash
TORCH_SCRIPT = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
gpus += ["Apple MPS"] * torch.backends.mps.is_available()
print(json.dumps({"cuda": torch.version.cuda, "gpus": gpus}))
"""
# without a prompt or a connection, as in harness/tracking/wandb.py
WANDB_SCRIPT = """
import contextlib, io, json, wandb
with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
    settings = wandb.sdk.wandb_setup.singleton().settings
    answer = {"mode": settings.mode, "server": settings.base_url, "entity": settings.entity}
    answer["account"] = bool(wandb.login(prompt=False, verify=False))
print(json.dumps(answer))
"""


def print_fact(label: str, fact: Callable[[], str]) -> None:
    """Print a labeled fact, wrapped to the width of a terminal, or why it is unknown."""
    try:
        text = fact()
    except Exception as error:  # print the other facts anyway
        text = f"unknown ({type(error).__name__}: {error})"
    indent = " " * INDENT
    wrapped = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False) or [""]
    print(f"{label:{INDENT}}" + f"\n{indent}".join(wrapped))


def output_of(*command: str) -> str | None:
    """Return what a command prints, or None if it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=2, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def start_script(script: str) -> subprocess.Popen[str]:
    """Start a script in this interpreter, without W&B variables that are empty."""
    kept = {k: v for k, v in os.environ.items() if v or not k.startswith("WANDB_")}
    quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    return subprocess.Popen(
        [sys.executable, *(["-S"] if sys.flags.no_site else []), "-c", script],
        env={**kept, **quiet},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer_of(process: subprocess.Popen[str], deadline: float) -> dict[str, object] | str:
    """Return the answer of a started script, or one line about why there is none."""
    try:
        out, error = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        return dict(json.loads(out.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        process.kill()
        return f"no answer within {TIMEOUT:g} s (DOCTOR_TIMEOUT=60 waits longer)"
    except (ValueError, IndexError):
        return (error.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:160]


def read_pins() -> dict[str, str]:
    """Return the version of each package in constraints.txt, by normalized name."""
    try:
        text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {normalize_name(name): pin for name, pin in re.findall(r"(?m)^([\w.-]+)==(\S+)", text)}


def normalize_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_requirements() -> tuple[dict[str, object], dict[str, list[str]]]:
    """Return the project table of pyproject.toml, and its packages by extra ("": no extra)."""
    try:
        import tomllib  # needs Python 3.11, like the project

        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (ImportError, OSError, ValueError, KeyError):
        return {}, {}
    groups = {"": project.get("dependencies", []), **project.get("optional-dependencies", {})}
    names = {k: [re.split(r"[^\w.-]", item)[0] for item in v] for k, v in groups.items()}
    return project, names


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def read_first_line(*paths: str) -> str:
    """Return the first line of the first file that exists, such as a limit of a container."""
    for path in paths:
        try:
            return Path(path).read_text(encoding="utf-8").split("\n")[0]
        except OSError:
            continue
    return ""


def describe_cores() -> str:
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quota, _, period = read_first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    container = f", container limit {int(quota) / int(period):g}" if quota.isdigit() else ""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    names = re.findall(r"model name\s*: (.*)", text)
    return f"{usable} of {total} usable{container}, {names[0] if names else platform.machine()}"


def describe_memory() -> str:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    container_limit = read_first_line(
        "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    )
    has_limit = container_limit.isdigit() and int(container_limit) < total
    container = f", container limit {int(container_limit) / GIB:.1f} GiB" if has_limit else ""
    return f"{total / GIB:.1f} GiB{container}; {describe_disk(ROOT)} on the project's disk"


def describe_disk(path: Path) -> str:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return "missing"
    return f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"


def describe_gpus(torch: dict[str, object] | str) -> str:
    driver = output_of("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv")
    shown = "; ".join((driver or "").splitlines()[1:]) or "nvidia-smi finds none"
    if isinstance(torch, str):
        return f"{shown}; torch: {torch}"
    seen = torch["gpus"]
    assert isinstance(seen, list)
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else "the CPU"
    return f"{shown}; torch, built for {build}, sees {', '.join(map(str, seen)) or 'none'}"


def describe_tracking(wandb: dict[str, object] | str) -> str:
    version = installed_version("wandb")
    if version is None or isinstance(wandb, str):
        return "not installed" if version is None else f"{version}: {wandb}"
    account = "account found" if wandb["account"] else "no account (runs are tracked offline)"
    entity = f", entity {wandb['entity']}" if wandb["entity"] else ""
    server = urlsplit(str(wandb["server"]))
    host = f"{server.scheme}://{server.netloc.rpartition('@')[2]}"  # without a password
    return f"{version}, mode {wandb['mode']}, {account}{entity}, server {host}"


def describe_data() -> str:
    folder = ROOT / "data"
    entries = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        files = [f for f in [path, *path.rglob("*")] if f.is_file()]
        size = sum(f.stat().st_size for f in files) / 1e6
        entries.append(f"{path.name} ({len(files)} files, {size:.0f} MB)")
    return ", ".join(entries) or "none yet; the first run makes it"


def describe_variables() -> str:
    names = sorted(k for k in os.environ if k in SHOWN_VARIABLES or k.startswith(NAMED_PREFIXES))
    return ", ".join(f"{k}={os.environ[k]}" if k in SHOWN_VARIABLES else k for k in names) or "none"


def describe_packages(groups: dict[str, list[str]]) -> Iterator[str]:
    """Yield a row for each package that the project needs, then two about the extras."""
    pinned = read_pins()
    for name in groups.get("", []):
        version, pin = installed_version(name), pinned.get(normalize_name(name))
        differs = "  <- differs" if version and pin and version != pin else ""
        yield f"  {name:20}{version or 'not installed':20}{pin or 'not pinned'}{differs}"
    complete = [k for k, names in groups.items() if k and all(map(installed_version, names))]
    missing = [k for k in groups if k and k not in complete]
    yield f"  extras installed: {', '.join(complete) or 'none'}"
    yield f"  extras not installed: {', '.join(missing) or 'none'}"


def describe_revision() -> str:
    commit = output_of("git", "rev-parse", "--short=10", "HEAD")
    changed = (output_of("git", "status", "--porcelain") or "").splitlines()
    return f"commit {commit}, {len(changed)} changed files" if commit else "not a git checkout"


def describe_interpreter() -> str:
    is_ours = Path(sys.prefix) == ROOT / ".venv"
    where = "the project's .venv" if is_ours else "not the project's .venv (make install)"
    is_supported = (3, 11) <= sys.version_info < (3, 14)
    needs = "" if is_supported else "; the project needs 3.11 to 3.13"
    return f"{platform.python_version()}, {where}{needs}"


def main() -> None:
    deadline = time.monotonic() + TIMEOUT
    torch, wandb = start_script(TORCH_SCRIPT), start_script(WANDB_SCRIPT)
    project, groups = read_requirements()
    name, version = project.get("name", ROOT.name), project.get("version", "")
    print_fact("project", lambda: f"{name} {version}, {describe_revision()}")
    print_fact("system", platform.platform)
    print_fact("python", describe_interpreter)
    print_fact("cores", describe_cores)
    print_fact("memory", describe_memory)
    print_fact(
        "/dev/shm", lambda: f"{describe_disk(Path('/dev/shm'))} (for workers of data.num_workers)"
    )
    print_fact("gpu", lambda: describe_gpus(answer_of(torch, deadline)))
    print_fact("W&B", lambda: describe_tracking(answer_of(wandb, deadline)))
    print_fact("data", describe_data)
    print_fact("variables", describe_variables)
    print(f"  {'package':20}{'installed':20}pinned (constraints.txt)")
    print("\n".join(describe_packages(groups)))


if __name__ == "__main__":
    main()
