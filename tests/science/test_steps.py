"""Tests of an optimizer step: gradient, noise and logged numbers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from cvae.data import MNISTDataModule
from cvae.lightning_module import VAEModule
from cvae.models import CVAE
from cvae.networks import MLP
from cvae.types import Batch
from harness.contract.errors import NotFiniteError
from tests.harness.test_training import make_objects, pytestmark, read_rows  # noqa: F401


def flatten_weights(module: VAEModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.model.parameters()])


def compute_gradient(data_dir: Path, folder: Path, **trainer: Any) -> Tensor:
    """Return the gradient, which a step of plain gradient descent with rate 1 subtracts."""
    torch.manual_seed(0)
    module, data, fitter = make_objects(data_dir, folder, callbacks=[], max_steps=1, **trainer)
    module._make_optimizer = lambda groups: torch.optim.SGD(
        [{"params": g["params"]} for g in groups], lr=1.0
    )
    data.prepare_data()
    data.setup()
    before = flatten_weights(module)
    fitter.fit(module, datamodule=data)
    return before - flatten_weights(module)


def test_the_gradient_is_clipped_at_gradient_clip_val(data_dir: Path, tmp_path: Path) -> None:
    unclipped = compute_gradient(data_dir, tmp_path)
    for limit in (0.97 * float(unclipped.norm()), 0.5 * float(unclipped.norm()), 3.0):
        clipped = compute_gradient(data_dir, tmp_path, gradient_clip_val=limit)
        assert float(clipped.norm()) == pytest.approx(limit, rel=1e-3)
        torch.testing.assert_close(
            clipped, unclipped * (limit / unclipped.norm()), rtol=1e-3, atol=1e-4
        )


def test_a_gradient_within_gradient_clip_val_is_unchanged(data_dir: Path, tmp_path: Path) -> None:
    unclipped = compute_gradient(data_dir, tmp_path)
    within = compute_gradient(data_dir, tmp_path, gradient_clip_val=1.01 * float(unclipped.norm()))
    assert torch.equal(within, unclipped)


def test_the_algorithm_value_clips_entries(data_dir: Path, tmp_path: Path) -> None:
    unclipped = compute_gradient(data_dir, tmp_path)
    limit = 0.3 * float(unclipped.abs().max())
    settings = {"gradient_clip_val": limit, "gradient_clip_algorithm": "value"}
    clipped = compute_gradient(data_dir, tmp_path, **settings)
    torch.testing.assert_close(clipped, unclipped.clamp(-limit, limit), rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_mean_over_the_global_batch(data_dir: Path, tmp_path: Path) -> None:
    """The loss is the same for any split of the batch over ranks or accumulated batches."""
    module, data, trainer = make_objects(data_dir, tmp_path, callbacks=[], max_steps=1)
    data.prepare_data()
    data.setup()
    trainer.fit(module, datamodule=data)
    batch = next(iter(data.train_dataloader()))
    loss = module.training_step(batch, 0)
    halves = [
        Batch(batch.x[i::2], batch.y[i::2], batch.indices[i::2], batch.global_size) for i in (0, 1)
    ]
    parts = [module.training_step(half, 0) for half in halves]
    torch.testing.assert_close(sum(parts), loss)
    per_image = [
        module.training_step(Batch(batch.x[[i]], batch.y[[i]], batch.indices[[i]], 1), 0)
        for i in range(len(batch.x))
    ]
    torch.testing.assert_close(torch.stack(per_image).mean(), loss)


def test_the_noise_differs_between_epochs(data_dir: Path, tmp_path: Path) -> None:
    """The same images with the same weights have another loss in the next epoch."""
    module, data, trainer = make_objects(data_dir, tmp_path, callbacks=[], max_steps=1)
    data.prepare_data()
    data.setup()
    trainer.fit(module, datamodule=data)
    batch = next(iter(data.train_dataloader()))
    losses = []
    for epoch in (0, 0, 1):
        trainer.fit_loop.epoch_progress.current.completed = epoch
        assert module.current_epoch == epoch
        losses.append(float(module.training_step(batch, 0).detach()))
    assert losses[0] == losses[1] != losses[2]


def test_validation_is_the_mean_over_images(data_dir: Path, tmp_path: Path) -> None:
    """45 images in batches of 16 and in one of 45 agree; a mean of batch means would not."""
    metrics = []
    for eval_batch_size in (16, 45):
        torch.manual_seed(0)
        module, _, trainer = make_objects(data_dir, tmp_path, callbacks=[])
        data = MNISTDataModule(
            data_dir, "KMNIST", eval_batch_size=eval_batch_size, validation_size=45
        )
        trainer.validate(module, datamodule=data, verbose=False)
        metrics.append(module.validation)
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6)


def test_the_first_bad_step_is_reported() -> None:
    """The device records the step for a later error, since reading a number would synchronize."""

    def network(**kwargs: Any) -> MLP:
        return MLP(hidden_dim=4, encoder_blocks=0, decoder_blocks=0, **kwargs)

    module = VAEModule(CVAE(network, 2), optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0))
    gradient = torch.ones(3)
    for step, norm in enumerate((1.0, float("nan"), 1.0, float("inf"))):
        trainer: Any = SimpleNamespace(global_step=step)
        module._trainer = trainer
        gradient.fill_(1.0)
        module._mark_not_finite(torch.tensor(norm), [gradient])
        assert gradient.tolist() == ([0.0] * 3 if step in (1, 3) else [1.0] * 3)
    with pytest.raises(NotFiniteError, match="step 1"):
        module.check_finite()


def test_logged_values_are_means_over_the_steps_since_the_last_log(
    data_dir: Path, tmp_path: Path
) -> None:
    """A row for two steps is the mean of their rows when each step is logged."""

    class Rows(lightning.pytorch.loggers.CSVLogger):
        def __init__(self) -> None:
            super().__init__(tmp_path, version="")
            self.rows: list[dict[str, float]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
            if "train/loss" in metrics:
                self.rows.append(dict(metrics))

    class Losses(lightning.Callback):
        def __init__(self) -> None:
            self.values: list[float] = []

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.values.append(float(outputs["loss"]))

    logged, losses = {}, Losses()
    for every_n_steps in (1, 2):
        torch.manual_seed(0)
        given = [losses] if every_n_steps == 1 else []
        module, data, trainer = make_objects(
            data_dir, tmp_path, callbacks=given, max_steps=4, log_every_n_steps=every_n_steps
        )
        logger = Rows()
        trainer.loggers = [logger]
        trainer.fit(module, datamodule=data)
        logged[every_n_steps] = [row["train/loss"] for row in logger.rows]
    every_step = logged[1]
    assert every_step == pytest.approx(losses.values, rel=1e-6)
    pairs = [
        (every_step[0] + every_step[1]) / 2,
        (every_step[2] + every_step[3]) / 2,
    ]  # batches of the same size
    assert logged[2] == pytest.approx(pairs, rel=1e-6)
