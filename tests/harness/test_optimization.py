"""A training step skips only those hooks of Lightning that would have no effect."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback

from cvae.lightning_module import VAEModule
from harness.run_folder.folder import RunFolder
from harness.training import optimization
from harness.training.build import Parts, build_parts
from harness.training.run import train
from tests.conftest import tiny
from tests.project.test_conf import compose

HOOKS = optimization._HOOKS


class HookedModule(VAEModule):
    """Counts the calls of optimizer_zero_grad."""

    calls = 0

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        type(self).calls += 1
        super().optimizer_zero_grad(*args, **kwargs)


def build_run(folder: Path, data_dir: Path, *overrides: str) -> Parts:
    settings = [*tiny(data_dir), "device=cpu", "trainer.max_epochs=1", "logger=csv", "test=false"]
    settings += ["callbacks.figures=null", "monitor=val/elbo"]
    cfg = compose(*settings, *overrides)
    folder.mkdir(exist_ok=True)
    cfg.run_dir = str(folder)
    run = RunFolder(folder)
    run.config = cfg
    return build_parts(run)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_of_a_callback_is_called_in_every_step(
    hook: str, data_dir: Path, tmp_path: Path
) -> None:
    calls: list[str] = []
    callback = type("Hooked", (Callback,), {hook: lambda self, *args: calls.append(hook)})()
    module, data, trainer = build_run(tmp_path, data_dir)
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    train(module, data, trainer, test=False)
    assert len(calls) == trainer.global_step == 7


def test_a_hook_of_an_instance_is_called(data_dir: Path, tmp_path: Path) -> None:
    calls: list[str] = []
    callback = LambdaCallback(on_before_optimizer_step=lambda *args: calls.append("called"))
    module, data, trainer = build_run(tmp_path, data_dir)
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    train(module, data, trainer, test=False)
    assert len(calls) == trainer.global_step


def test_a_hook_of_the_module_is_called_in_every_step(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HookedModule, "calls", 0)
    target = f"module._target_={__name__}.HookedModule"
    parts = build_run(tmp_path, data_dir, target)
    train(*parts, test=False)
    assert HookedModule.calls == parts.trainer.global_step == 7


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer.precision=bf16-mixed",),
        ("optimizer=sgd", "trainer.gradient_clip_val=5"),
        ("trainer.accumulate_grad_batches=2",),
    ],
)
def test_steps_that_skip_hooks_equal_those_of_lightning(
    overrides: tuple[str, ...],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for name in ("lean", "lightning"):
        parts = build_run(tmp_path / name, data_dir, *overrides)
        train(*parts, test=False)
        rows = (tmp_path / name / "metrics.csv").read_text().count("\n")
        results.append((parts.module.model.state_dict(), parts.module.validation, rows))
        monkeypatch.setattr(optimization, "can_skip_hooks", lambda *args: False)
    (lean, lean_metrics, lean_rows), (weights, metrics, rows) = results
    assert lean_rows == rows
    assert lean_metrics == metrics
    assert [k for k in weights if not torch.equal(weights[k], lean[k])] == []
