"""Cost of a training step in counts that do not depend on the machine: operators and calls."""

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from cvae import noise
from cvae.augmentation import Warp
from cvae.callbacks import EMA
from cvae.data import MNISTDataModule
from harness.contract.sampler import GlobalBatchSampler
from tests.conftest import ROOT, run_warm, tiny
from tests.project.test_conf import compose

READS = "aten._local_scalar_dense.default"  # on a GPU, this call synchronizes


class Counts(TorchDispatchMode):
    """Count the operators that are dispatched in this context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


class CountSteps(Callback):
    """Count the operators of two steps, from the start of a batch."""

    def __init__(self) -> None:
        self.mode = Counts()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 2:
            self.mode.__enter__()
        elif batch_idx == 4:
            self.mode.__exit__(None, None, None)


class Uncounted(EMA):
    """EMA whose operators are not counted: it reads a counter on the CPU (tested below)."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            super().on_train_batch_end(trainer, *args)


@pytest.fixture
def step_operators(
    request: pytest.FixtureRequest, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """Return the operators of two steps of the default run, as on a CPU or a GPU."""
    from harness.contract import module as contract
    from harness.run_folder.folder import RunFolder
    from harness.training.build import build_parts
    from harness.training.run import train

    if request.param == "gpu":
        monkeypatch.setattr(contract, "_NO_SYNC_DEVICE", "none of these")
    cfg = compose(*make_one_epoch_overrides(data_dir))
    cfg.run_dir = str(tmp_path)
    cfg.callbacks.ema._target_ = f"{__name__}.Uncounted"
    folder = RunFolder(tmp_path)
    folder.config = cfg
    module, data, trainer = build_parts(folder)
    counter = CountSteps()
    trainer.callbacks.append(counter)  # type: ignore[attr-defined]
    train(module, data, trainer, test=False)
    return counter.mode.calls


def make_one_epoch_overrides(data_dir: Path) -> list[str]:
    """Return the settings of an epoch with one block in encoder and decoder."""
    settings = [*tiny(data_dir), "device=cpu", "trainer.max_epochs=1", "logger=csv"]
    settings += ["trainer.log_every_n_steps=50", "callbacks.figures=null", "monitor=val/elbo"]
    return settings


def test_a_step_has_few_python_calls(data_dir: Path) -> None:
    """Most calls are in the networks; the limit is 10 % above the current count."""
    script = ROOT / "tests" / "harness" / "python_calls.py"
    done = run_warm(script, make_one_epoch_overrides(data_dir), ROOT, 120)
    calls = re.search(r"([\d.]+) calls per step", done.stdout)
    assert calls, done.stderr
    assert 1000 < float(calls[1]) < 2200


@pytest.mark.parametrize("step_operators", ["gpu"], indirect=True)
def test_steps_do_not_synchronize_with_the_gpu(step_operators: Counter[str]) -> None:
    assert step_operators["aten._fused_adamw_.default"] > 0
    assert step_operators[READS] == 0


def test_the_average_is_on_the_device_and_its_count_on_the_cpu() -> None:
    """On the meta device, reading a value is an error."""
    module = nn.Linear(3, 2)
    average = EMA(0.5)
    average._average_model = AveragedModel(module, multi_avg_fn=average._average)
    module.to("meta")
    module.device = torch.device("meta")  # type: ignore[assignment]
    average.on_fit_start(None, module)  # type: ignore[arg-type]
    assert {p.device.type for p in average._average_model.parameters()} == {"meta"}
    for number in (1, 2, 3):
        average._average_model.update_parameters(module)
        assert int(average._average_model.n_averaged) == number


@pytest.mark.parametrize("step_operators", ["cpu"], indirect=True)
def test_a_step_has_few_operators(step_operators: Counter[str]) -> None:
    """With one block in encoder and decoder; the limits are 10 % above the present counts."""
    assert 0 < step_operators[READS] <= 2 * 2
    assert 100 < sum(step_operators.values()) / 2 < 475


def test_a_batch_has_few_operators(data_dir: Path) -> None:
    data = MNISTDataModule(data_dir, "KMNIST", batch_size=32, validation_size=45)
    data.setup()
    batches = iter(data.train_dataloader())
    next(batches)
    with Counts() as counts:
        next(batches)
    assert sum(counts.calls.values()) < 53


@pytest.mark.parametrize("augmentation", [None, partial(Warp, affine=0.1, elastic=0.5)])
def test_a_resident_batch_is_made_on_its_device(data_dir: Path, augmentation: Any) -> None:
    """On the meta device, copies from the CPU and reading a value are errors."""
    warp = augmentation and partial(augmentation, share=0.5, until=1.0)
    data = MNISTDataModule(data_dir, "KMNIST", batch_size=32, validation_size=45, augmentation=warp)
    data.setup()
    assert data.train is not None
    sampler = GlobalBatchSampler(len(data.train), 32, shuffle_seed=1, device="meta")
    resident = data.train.to("meta")
    batch = resident[next(iter(sampler))]
    assert {t.device.type for t in (batch.x, batch.y, batch.indices)} == {"meta"}
    assert batch.x.shape == (32, 1, 28, 28)
    eps = noise.standard_normal(batch.indices, (3,), seed=1, stream=noise.Stream.POSTERIOR)
    assert eps.device.type == "meta"
