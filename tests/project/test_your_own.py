"""Tests that a checkout with a user's own files, or without optional ones, passes and runs."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment, run_warm, write_digits

TINY = [
    "data.batch_size=32",
    "data.eval_batch_size=16",
    "data.validation_size=45",
    "model.latent_dim=3",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "test_num_samples=4",
    "logger=csv",
]

# files like a researcher's: without annotations, and long
PADDING = "\n\n\n".join(
    f"def unused_{i}(x, y=None):\n    return x if y is None else y" for i in range(40)
)
FILES = {
    "src/my_network.py": """
        import torch
        from torch import nn


        class Linear(nn.Module):
            def __init__(self, image_shape, latent_dim, num_statistics, num_classes, scale=1.0):
                super().__init__()
                self.image_shape = image_shape
                self.scale = scale
                self.to_latent = nn.Linear(784 + num_classes, num_statistics * latent_dim)
                self.to_image = nn.Linear(latent_dim + num_classes, 784)

            def encode(self, x, y):
                return self.to_latent(torch.cat([x.flatten(1)] + ([] if y is None else [y]), dim=1))

            def decode(self, z, y):
                h = torch.cat([z] + ([] if y is None else [y]), dim=1)
                return self.scale * self.to_image(h).view(-1, *self.image_shape)
        """,
    "src/cvae/my_prior.py": """
        import torch
        from torch import nn


        class Scaled(nn.Module):
            def __init__(self, latent_dim):
                super().__init__()
                self.log_scale = nn.Parameter(torch.zeros(latent_dim))

            def to_base(self, z):
                return z / self.log_scale.exp(), -self.log_scale.sum().expand(len(z))

            def from_base(self, w):
                return w * self.log_scale.exp()
        """,
    "src/my_data.py": """
        import numpy as np

        from cvae.data import MNISTDataModule


        class Bars(MNISTDataModule):
            def load_arrays(self):
                labels = np.arange(300) % self.num_classes
                images = np.zeros((300, 28, 28), dtype=np.uint8)
                for image, label in zip(images, labels, strict=True):
                    image[4:24, 2 * label : 2 * label + 6] = 255
                return images[:260], labels[:260], images[260:], labels[260:]
        """,
    "src/my_callback.py": """
        from lightning.pytorch.callbacks import Callback


        class Largest(Callback):
            def on_validation_epoch_end(self, trainer, pl_module):
                largest = max(float(p.abs().max()) for p in pl_module.parameters())
                pl_module.log("val/largest_weight", largest)
        """,
    "src/my_script.py": """
        import sys

        from cvae import load_run


        def main():
            model = load_run(sys.argv[1])
            print("mean pixel", float(model.sample(y=7, num_samples=4).mean()))


        if __name__ == "__main__":
            main()
        """,
    "conf/model/network/linear.yaml": """
        _target_: my_network.Linear
        _partial_: true
        scale: 1.0
        """,
    "conf/model/prior/scaled.yaml": """
        _target_: cvae.my_prior.Scaled
        _partial_: true
        """,
    "conf/data/bars.yaml": """
        defaults:
          - mnist
        _target_: my_data.Bars
        name: bars
        """,
    "conf/callbacks/mine.yaml": """
        defaults:
          - default
        largest:
          _target_: my_callback.Largest
        """,
}
CHOSEN = ["model/network=linear", "model/prior=scaled", "data=bars", "callbacks=mine"]


def copy_of(project: Path, *names: str) -> Path:
    """Copy these files and folders into a new checkout without runs."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
    (project / "logs").mkdir(parents=True)
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, project / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, project / name)
    return project


def run(project: Path, script: str, *words: str) -> "subprocess.CompletedProcess[str]":
    source = str(project / "src")
    done = run_warm(project / "src" / f"{script}.py", words, project, 300, PYTHONPATH=source)
    assert done.returncode == 0, f"{script} {words}\n{done.stdout}\n{done.stderr}"
    return done


def tool(project: Path, *command: str) -> None:
    environment = {**clean_environment(), "PYTHONPATH": str(project / "src")}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a network, a prior, data, a callback and a script of a user."""
    names = ("src", "conf", "tests", "docs", "benchmarks", "locks", "README.md", "logs/README.md")
    more = ("pyproject.toml", "Makefile", "constraints.txt", "CHANGELOG.md")
    project = copy_of(tmp_path_factory.mktemp("mine") / "a copy", *names, *more)
    for name, content in FILES.items():
        text = textwrap.dedent(content).lstrip()
        if name.endswith(".py"):
            text = f"{text}\n\n{PADDING}\n"
            assert len(text.splitlines()) > 150
        (project / name).write_text(text)
    return project


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_your_own_code_leaves_lint_green(mine: Path, command: str) -> None:
    tool(mine, *command.split())


def test_your_own_code_leaves_the_tests_of_files_green(mine: Path) -> None:
    """Run the tests that check every file of src/ and conf/, including those that users add."""
    files = ["tests/project/test_architecture.py", "tests/project/test_conf.py"]
    options = ["-q", "-p", "no:cacheprovider", "-k", "not another_checkout and not checkout_that"]
    tool(mine, "pytest", *files, *options)


def test_your_own_code_trains_resumes_and_is_read(mine: Path) -> None:
    run_dir = mine / "logs" / "train" / "mine"
    run(mine, "train", *CHOSEN, *TINY, f"hydra.run.dir={run_dir}")
    assert "val/largest_weight" in (run_dir / "metrics.csv").read_text()
    run(mine, "train", f"resume={run_dir}", "trainer.max_epochs=3")
    run(mine, "generate", "run=logs/latest", "label=1", "num_samples=2")
    run(mine, "evaluate", "run=logs/latest", "claims=bound", "num_samples=2")
    run(mine, "compare", "runs=logs/train")
    done = run(mine, "my_script", str(run_dir))
    assert re.search(r"mean pixel 0\.\d", done.stdout)


@pytest.mark.engines
def test_your_own_code_is_exported(mine: Path) -> None:
    run_dir = mine / "logs" / "train" / "exported"
    run(mine, "train", *CHOSEN, *TINY, f"hydra.run.dir={run_dir}")
    run(mine, "export", f"run={run_dir}")
    assert (run_dir / "export" / "decoder.onnx").is_file()


def renamed(text: str) -> str:
    """Replace the name of the package in a text."""
    return re.sub(r"\bcvae(?=[.\s])(?!\.yaml)", "letters", text)


def test_the_package_has_another_name(tmp_path: Path) -> None:
    """After the name is replaced in imports and targets, all scripts still run."""
    project = copy_of(tmp_path / "renamed", "src", "conf", "pyproject.toml")
    (project / "src" / "cvae").rename(project / "src" / "letters")
    for path in [*(project / "src").rglob("*.py"), *(project / "conf").rglob("*.yaml")]:
        lines = path.read_text().splitlines(keepends=True)
        names_it = re.compile(r"^\s*(from|import) |_target_:|settings:|:(class|func|mod|data):`")
        path.write_text("".join(renamed(x) if names_it.search(x) else x for x in lines))
    write_digits(project / "data" / "KMNIST" / "raw")
    run_dir = project / "logs" / "train" / "one"
    network = ["model.network.hidden_dim=16", "model.network.encoder_blocks=1"]
    done = run(project, "train", "data=kmnist", *network, *TINY, f"hydra.run.dir={run_dir}")
    assert "epoch 2/2  val/elbo" in done.stdout
    assert "epoch 2/2  val/elbo" in (run_dir / "train.log").read_text()
    assert "run cvae-mlp-adversary-z3-kmnist-s1" in done.stdout
    run(project, "generate", "run=logs/latest", "label=all", "num_samples=2")
    run(project, "evaluate", "run=logs/latest", "claims=bound", "num_samples=2")
    assert os.path.lexists(project / "logs" / "latest")


def test_what_is_not_needed_is_deleted_by_folders(tmp_path: Path) -> None:
    """Without the evaluation and the benchmarks, the rest imports, trains and collects tests."""
    names = (
        "src",
        "conf",
        "tests",
        "docs",
        "locks",
        "README.md",
        "pyproject.toml",
        "constraints.txt",
    )
    project = copy_of(tmp_path / "pruned", *names)
    for name in ("src/cvae/evaluation", "tests/science/evaluation"):
        shutil.rmtree(project / name)
    of_evaluation = ("src/evaluate.py", "conf/evaluate.yaml", "conf/hydra/help/evaluate.yaml")
    for name in (*of_evaluation, "tests/project/test_benchmarks.py"):
        (project / name).unlink()
    modules = [
        ".".join(path.relative_to(project / "src").with_suffix("").parts)
        for path in sorted((project / "src").rglob("*.py"))
        if path.name not in ("__init__.py", "dashboard.py", "search.py", "optuna_sweeper.py")
    ]
    script = f"import importlib\nfor name in {modules}: importlib.import_module(name)\n"
    environment = {**clean_environment(), "PYTHONPATH": str(project / "src")}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    write_digits(project / "data" / "KMNIST" / "raw")
    done = run(project, "train", "data=kmnist", *TINY, "callbacks.figures=null")
    assert "src/generate.py run=" in done.stdout
    assert "evaluate" not in done.stdout
    tool(project, "pytest", "-q", "-p", "no:cacheprovider", "--co")
