"""Folder of the explorer page: the page itself, its runtime, and the model as ONNX files."""

import importlib.util
import json
import shutil
from importlib import resources
from pathlib import Path

from cvae.data import MNISTDataModule
from cvae.explorer.description import describe
from cvae.explorer.runtime import copy_runtime
from cvae.given_pixels import Quadrants
from cvae.models import Autoencoder
from cvae.onnx_export import save_onnx
from harness.contract.errors import ConfigError
from harness.contract.files import atomic_write_files

_PAGE = resources.files(__package__) / "page"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # in the extra "explore"


def check_supported(model: Autoencoder) -> None:
    """Raise ConfigError if the page cannot show the model, or if packages are missing."""
    if model.conditional and isinstance(model.condition, Quadrants):
        raise ConfigError(
            "data/condition=quadrants: the page does not support images as conditions; "
            "use a run with labels or attributes"
        )
    if not all(importlib.util.find_spec(name) for name in _PACKAGES):
        raise ConfigError("the page needs more packages: pip install -e '.[explore]'")


def write_folder(model: Autoencoder, data: MNISTDataModule, name: str, folder: Path) -> int:
    """Write the page with a trained model.

    Example::

        model, data = load_run("logs/latest"), MNISTDataModule("data")
        write_folder(model, data, "my run", Path("page"))

    Args:
        data: the data of the run, which this function sets up. Examples and ranges come from
            its validation images.
        name: name of the run, shown on the page.
        folder: folder to write. Files of the same names are replaced.

    Returns:
        The total size of the written files in bytes.

    Raises:
        ConfigError: the page does not support the model, the model cannot be exported, packages
            are missing, or the folder cannot be written.
    """
    check_supported(model)
    data.prepare_data()
    data.setup()
    with atomic_write_files(folder) as temporary:
        copy_runtime(temporary / "runtime")
        (temporary / "model").mkdir()
        save_onnx(model, temporary / "model")
        text = json.dumps(describe(model, data, name), allow_nan=False)
        (temporary / "model" / "model.json").write_text(text + "\n", encoding="utf-8")
        with resources.as_file(_PAGE) as page:
            shutil.copytree(page, temporary, dirs_exist_ok=True)
        return sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
