"""A checkout with a user's own files, or without optional ones, runs and passes tests."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment, run_fork, run_warm, write_digits

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

# files as a researcher writes them: long and without annotations
PADDING = "\n\n\n".join(
    f"def unused_{i}(x, y=None):\n    return x if y is None else y" for i in range(40)
)
USER_FILES = {
    "src/my_network.py": """
        import torch
        from torch import nn


        class Linear(nn.Module):
            def __init__(
                self,
                image_shape,
                latent_dim,
                num_statistics,
                condition_size,
                num_parameters,
                scale=1.0,
            ):
                super().__init__()
                self.image_shape = image_shape
                self.scale = scale
                self.to_latent = nn.Linear(784 + condition_size, num_statistics * latent_dim)
                self.to_image = nn.Linear(latent_dim + condition_size, 784)

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
            def __init__(self, latent_dim, condition_size):
                super().__init__()
                self.log_scale = nn.Parameter(torch.zeros(latent_dim))

            def to_base(self, z, y):
                return z / self.log_scale.exp(), -self.log_scale.sum().expand(len(z))

            def from_base(self, w, y):
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
USER_OVERRIDES = ["model/network=linear", "model/prior=scaled", "data=bars", "callbacks=mine"]


def copy_project(project: Path, *names: str) -> Path:
    """Copy files and folders, if they exist, into a new checkout without runs."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
    (project / "logs").mkdir(parents=True)
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, project / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, project / name)
    return project


def run_project_script(
    project: Path, script: str, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    source = str(project / "src")
    done = run_warm(project / "src" / f"{script}.py", arguments, project, 300, PYTHONPATH=source)
    assert done.returncode == 0, f"{script} {arguments}\n{done.stdout}\n{done.stderr}"
    return done


def run_module(project: Path, *command: str) -> None:
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


def run_pytest(project: Path, *arguments: str, before: str = "") -> None:
    """Run statements and then pytest in the project, with libraries already imported."""
    script = project / "logs" / "run_pytest.py"
    script.write_text(f"import sys\nimport pytest\n{before}\nsys.exit(pytest.main(sys.argv[1:]))")
    environment = {"PYTHONPATH": str(project / "src")}
    # pytest cannot rewrite the assertions of a plugin that is imported already
    options = ("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
    done = run_fork(script, (*options, *arguments), environment, project, 600, first=project)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def user_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout with a network, prior, data, callback and script of a user."""
    names = ("src", "conf", "tests", "docs", "benchmarks", "locks", "README.md", "logs/README.md")
    more = ("pyproject.toml", "Makefile", "constraints.txt", "CHANGELOG.md")
    project = copy_project(tmp_path_factory.mktemp("mine") / "a copy", *names, *more)
    if (ROOT / ".mypy_cache").is_dir():  # the cache of make lint saves mypy a minute
        shutil.copytree(ROOT / ".mypy_cache", project / ".mypy_cache")
    for name, content in USER_FILES.items():
        text = textwrap.dedent(content).lstrip()
        if name.endswith(".py"):
            text = f"{text}\n\n{PADDING}\n"
            assert len(text.splitlines()) > 150
        (project / name).write_text(text)
    return project


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_your_own_code_passes_lint(user_project: Path, command: str) -> None:
    run_module(user_project, *command.split())


def test_your_own_code_passes_the_tests_of_all_files(user_project: Path) -> None:
    """Run the tests that check every file of src/ and conf/, including those that users add."""
    files = ["tests/project/test_architecture.py", "tests/project/test_conf.py"]
    # skip tests of shipped files and values; keep those of the user's files
    ours = ("own_checkout", "bad_values", "good_overrides", "suit_every_model")
    each = "not every_file_composes and not every_key_is or linear or scaled or bars or mine"
    chosen = " and ".join([*(f"not {name}" for name in ours), f"({each})"])
    options = ["-q", "-p", "no:cacheprovider", "-k", chosen]
    run_pytest(user_project, *files, *options)


def test_your_own_code_trains_resumes_and_evaluates(user_project: Path) -> None:
    run_dir = user_project / "logs" / "train" / "mine"
    run_project_script(user_project, "train", *USER_OVERRIDES, *TINY, f"hydra.run.dir={run_dir}")
    assert "val/largest_weight" in (run_dir / "metrics.csv").read_text()
    run_project_script(user_project, "train", f"resume={run_dir}", "trainer.max_epochs=3")
    run_project_script(user_project, "generate", "run=logs/latest", "label=1", "num_samples=2")
    run_project_script(user_project, "evaluate", "run=logs/latest", "claims=bound", "num_samples=2")
    run_project_script(user_project, "compare", "runs=logs/train")
    done = run_project_script(user_project, "my_script", str(run_dir))
    assert re.search(r"mean pixel 0\.\d", done.stdout)


@pytest.mark.engines
def test_your_own_code_is_exported(user_project: Path) -> None:
    run_dir = user_project / "logs" / "train" / "exported"
    run_project_script(user_project, "train", *USER_OVERRIDES, *TINY, f"hydra.run.dir={run_dir}")
    run_project_script(user_project, "export", f"run={run_dir}")
    assert (run_dir / "export" / "decoder.onnx").is_file()


def test_evaluation_and_benchmarks_can_be_deleted(tmp_path: Path) -> None:
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
    project = copy_project(tmp_path / "pruned", *names)
    for name in ("src/cvae/evaluation", "tests/science/evaluation"):
        shutil.rmtree(project / name)
    of_evaluation = ("src/evaluate.py", "conf/evaluate.yaml", "conf/hydra/help/evaluate.yaml")
    tests = ("test_benchmarks.py", "test_gpu_benchmark.py", "test_evaluate.py")
    for name in (*of_evaluation, *(f"tests/project/{test}" for test in tests)):
        (project / name).unlink(missing_ok=True)
    modules = [
        ".".join(path.relative_to(project / "src").with_suffix("").parts)
        for path in sorted((project / "src").rglob("*.py"))
        if path.name not in ("__init__.py", "dashboard.py", "search.py", "optuna_sweeper.py")
    ]
    write_digits(project / "data" / "KMNIST" / "raw")
    done = run_project_script(project, "train", "data=kmnist", *TINY, "callbacks.figures=null")
    assert "src/generate.py run=" in done.stdout
    assert "evaluate" not in done.stdout
    imports = "\n".join(f"import {name}" for name in modules)
    run_pytest(project, "-q", "-p", "no:cacheprovider", "--co", before=imports)
