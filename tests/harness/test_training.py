"""Training: equal steps on one device and two, checkpoints, metrics and precisions."""

import csv
import json
import logging
import math
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

import cvae
from cvae.callbacks import EMA
from cvae.data import MNISTDataModule
from cvae.lightning_module import VAEModule, as_batch, warmup_cosine
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from harness.config.libraries import PRECISIONS
from harness.contract.errors import ConfigError, Stopped
from harness.contract.sampler import Rows
from harness.run_folder import loading
from harness.training.build import _native_precision
from harness.training.resume import LastCheckpoint
from harness.training.run import _check_provenance, train
from tests import PACKAGE
from tests.conftest import NUM_TEST, NUM_TRAIN, ROOT, run_script, tiny
from tests.science.test_networks import FlatBatchNorm
from tests.tally import Promise


def read_rows(run_dir: Path, prefix: str) -> list[dict[str, float]]:
    with (run_dir / "metrics.csv").open() as file:
        found = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in found if any(k.startswith(prefix) for k in row)]


def read_summary(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "summary.json").read_text()))


def make_objects(data_dir: Path, folder: Path, **trainer: Any) -> tuple[Any, Any, Any]:
    def network(**kwargs: Any) -> MLP:
        return MLP(hidden_dim=8, encoder_blocks=1, decoder_blocks=1, **kwargs)

    data = MNISTDataModule(
        data_dir, "KMNIST", batch_size=32, eval_batch_size=16, validation_size=45
    )
    module = VAEModule(
        CVAE(network, latent_dim=2),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        test_num_samples=3,
    )
    checkpoint = ModelCheckpoint(folder, "best", monitor="val/elbo", mode="max", save_last=True)
    settings = {"max_epochs": 2, "callbacks": [EMA(0.9), checkpoint], **trainer}
    return (
        module,
        data,
        lightning.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            **settings,
        ),
    )


# warnings that Lightning itself causes with this version of torch
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*saving a checkpoint outside.*"),
]


def test_train_takes_objects_without_a_config(data_dir: Path, tmp_path: Path) -> None:
    module, data, trainer = make_objects(data_dir, tmp_path)
    metrics = train(module, data, trainer, tmp_path)
    assert set(metrics) == {
        *(f"{s}/{m}" for s in ("val", "test") for m in ("elbo", "kl", "reconstruction")),
        "test/nll_k3",
    }
    assert metrics["test/elbo"] == pytest.approx(
        metrics["test/reconstruction"] - metrics["test/kl"], abs=1e-3
    )
    assert metrics["test/nll_k3"] <= -metrics["test/elbo"] + 0.5
    assert not module.model.training  # in evaluation mode


@pytest.mark.parametrize("model_class", [VAE, CVAE])
def test_plain_batches_of_your_own_loader_train(model_class: type[VAE], tmp_path: Path) -> None:
    def network(**kwargs: Any) -> MLP:
        return MLP(hidden_dim=8, encoder_blocks=1, decoder_blocks=1, **kwargs)

    x, y = torch.rand(20, 1, 28, 28).round(), torch.arange(20) % 10

    def fit(*arrays: torch.Tensor) -> dict[str, torch.Tensor]:
        module = VAEModule(
            model_class(network, latent_dim=2),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        )
        module.load_state_dict({k: torch.full_like(v, 0.1) for k, v in module.state_dict().items()})
        loader = DataLoader(TensorDataset(*arrays), batch_size=8)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader, loader)
        assert module.items_seen == 20
        assert "val/elbo" in module.validation
        return module.state_dict()

    by_integer, by_one_hot = fit(x, y), fit(x, torch.eye(10)[y])
    torch.testing.assert_close(by_integer, by_one_hot, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"a batch must be .* \(x, y\)"):
        fit(x)
    with pytest.raises(ValueError, match=r"of shape \(B, 1, 28, 28\)"):
        fit((x * 255).to(torch.uint8), y)


@pytest.mark.filterwarnings("ignore:.*pin_memory")  # which from_datasets sets
@pytest.mark.parametrize("model_class", [Autoencoder, VAE, CVAE])
def test_a_data_module_of_tuples_trains_with_default_settings(
    model_class: type[Autoencoder], tmp_path: Path
) -> None:
    """Train as in a notebook, with a plain Trainer, integer labels and no mean image."""
    model = model_class(
        partial(MLP, hidden_dim=8, encoder_blocks=1, decoder_blocks=1), latent_dim=2
    )
    module = VAEModule(model, partial(torch.optim.AdamW, lr=1e-2), test_num_samples=3)
    x, y = torch.zeros(20, 1, 28, 28), torch.arange(20, dtype=torch.int32) % 10
    x[:, :, :, :14] = 1.0
    images = TensorDataset(x, y)
    data = lightning.LightningDataModule.from_datasets(images, images, images, batch_size=8)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path)
    before = model.output_bias.clone()
    metrics = cvae.train(module, data, trainer)
    assert (before == 0).all()
    assert (model.output_bias[..., :14] > 3).all()  # log odds of (20 + 0.5) / 21
    assert (model.output_bias[..., 14:] < -3).all()
    assert not model.training
    score = "val/reconstruction" if model_class is Autoencoder else "test/nll_k3"
    assert math.isfinite(metrics[score])


def test_plain_batches_have_unique_noise_keys_on_one_process() -> None:
    model = VAE(partial(MLP, hidden_dim=4, encoder_blocks=0, decoder_blocks=0), 2, (1, 2, 2))
    batch = [torch.zeros(3, 1, 2, 2), torch.arange(3)]
    keys = torch.cat([as_batch(batch, number, model).indices for number in range(3)])
    assert len(keys.unique()) == 9
    with pytest.raises(ValueError, match="on 2 devices"):
        as_batch(batch, 0, model, num_processes=2)


def test_checkpoints_contain_the_averaged_weights(data_dir: Path, tmp_path: Path) -> None:
    module, data, trainer = make_objects(data_dir, tmp_path)
    train(module, data, trainer, tmp_path)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    raw, averaged = best["current_model_state"], best["state_dict"]
    assert raw.keys() == averaged.keys()
    assert any(not torch.equal(raw[k], averaged[k]) for k in raw)
    tested = module.state_dict()
    assert all(torch.equal(tested[k], averaged[k]) for k in tested)


def test_a_run_without_a_validation_saves_its_weights(data_dir: Path, tmp_path: Path) -> None:
    module, data, trainer = make_objects(data_dir, tmp_path, max_epochs=1, max_steps=2)
    with pytest.warns(UserWarning, match="could not find the monitored key"):
        train(module, data, trainer, tmp_path)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(v, last[k]) for k, v in module.state_dict().items())


def test_the_seed_determines_the_weights(data_dir: Path, tmp_path: Path) -> None:
    def train_weights(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        module, data, trainer = make_objects(
            data_dir, tmp_path / str(seed), callbacks=[], max_steps=5
        )
        module.seed = seed
        trainer.fit(module, datamodule=data)
        return torch.cat([p.flatten() for p in module.parameters()])

    one = train_weights(0)
    torch.rand(7)  # the global generator has no effect
    assert torch.equal(one, train_weights(0))
    assert not torch.equal(one, train_weights(1))


class Late(LastCheckpoint):
    """LastCheckpoint that gets a stop signal just after it last checks for one."""

    def _sync_stop_request(self, trainer: lightning.Trainer, sync_now: bool) -> tuple[int, bool]:
        result = super()._sync_stop_request(trainer, sync_now)
        if sync_now:
            os.kill(os.getpid(), signal.SIGTERM)
        return result


def test_a_stop_signal_at_the_last_moment_is_not_lost(data_dir: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    module, data, trainer = make_objects(data_dir, tmp_path, callbacks=[Late(tmp_path)])
    with pytest.raises(Stopped, match="SIGTERM"):
        trainer.fit(module, datamodule=data)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "last.ckpt").is_file()


def test_the_averaged_weights_match_the_formula() -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    decay, every_n_steps = 0.5, 2
    module = BoringModel()
    module.register_buffer("mask", torch.tensor([True, False]))  # not averaged
    module.register_buffer("count", torch.tensor(0))
    ema = EMA(decay, every_n_steps=every_n_steps)
    ema.setup(None, module, "fit")  # type: ignore[arg-type]
    expected: torch.Tensor | None = None
    trainer, updates = type("T", (), {"global_step": 0})(), 0
    for step in range(1, 9):
        trainer.global_step = step
        with torch.no_grad():
            module.layer.weight.fill_(float(step))
            module.count.fill_(step)  # type: ignore[operator, union-attr]
        ema.on_train_batch_end(trainer, module, None, None, step)
        if step <= every_n_steps or step % every_n_steps == 0:
            new = module.layer.weight.detach().clone()
            share = min(decay**every_n_steps, (1 + updates) / (10 + updates))
            expected = new if expected is None else share * expected + (1 - share) * new
            updates += 1
    assert ema._average_model is not None
    assert expected is not None
    averaged = dict(ema._average_model.named_parameters())["module.layer.weight"]
    torch.testing.assert_close(averaged.data, expected)
    buffers = dict(ema._average_model.named_buffers())
    assert buffers["module.mask"].tolist() == [True, False]
    assert buffers["module.count"].item() == 8


@pytest.mark.parametrize("total_steps", [2, 3, 10, 1000])
def test_the_schedule_warms_up_and_decays(total_steps: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = warmup_cosine(optimizer, total_steps, warmup_fraction=0.1)
    rates = []
    for _ in range(total_steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    peak = max(rates)
    top = rates.index(peak)
    assert peak == pytest.approx(2.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_biases_and_gains_are_not_decayed(data_dir: Path, tmp_path: Path) -> None:
    module, data, trainer = make_objects(data_dir, tmp_path, callbacks=[], max_steps=1)
    trainer.fit(module, datamodule=data)
    decayed, free = trainer.optimizers[0].param_groups
    assert decayed["weight_decay"] > 0
    assert free["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2}
    count = len(decayed["params"]) + len(free["params"])
    assert count == len(list(module.parameters()))
    assert any(p is module.model.output_bias for p in free["params"])


# whole runs from the command line


def test_a_finished_run_has_its_config_checkpoints_metrics_and_pictures(finished_run: Path) -> None:
    files = {p.relative_to(finished_run).as_posix() for p in finished_run.rglob("*") if p.is_file()}
    expected = {"config.yaml", "summary.json", "metrics.csv", "train.log"}
    expected |= {"checkpoints/best.ckpt", "checkpoints/last.ckpt", ".hydra/overrides.yaml"}
    pictures = ["reconstructions", "label_grid", "style_transfer", "traversals"]
    pictures += ["latent_plane", "curves"]
    expected |= {f"figures/{name}.png" for name in pictures}
    assert expected <= files
    assert any(name.startswith("wandb/offline-run") for name in files)
    assert not any(name.endswith(".tmp") for name in files)


def test_the_summary_of_a_finished_run_is_correct(finished_run: Path) -> None:
    summary = read_summary(finished_run)
    assert summary["status"] == "finished"
    assert summary["name"] == "cvae-mlp-adversary-z3-kmnist-s1"
    assert summary["epochs"] == 2
    assert summary["images_seen"] == 2 * (NUM_TRAIN - 45)
    assert summary["steps"] == 2 * 7
    assert summary["metrics"].keys() >= {"val/elbo", "test/elbo", "test/nll_k4"}
    best = max(row["val/elbo"] for row in read_rows(finished_run, "val/"))
    assert summary["objective"] == pytest.approx(best, abs=1e-4)
    assert "src/train.py" in summary["command"]
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert summary["images_per_second"] > 0


def test_metrics_of_every_step_validation_and_test_are_saved(finished_run: Path) -> None:
    steps = read_rows(finished_run, "train/")
    assert [row["step"] for row in steps] == list(range(1, 15))
    assert steps[-1]["images_seen"] == 2 * (NUM_TRAIN - 45)
    for row in steps:
        assert row["train/elbo"] == pytest.approx(
            row["train/reconstruction"] - row["train/kl"], abs=1e-3
        )
        assert row["train/kl"] >= 0
        assert row["train/reconstruction"] <= 0
    assert [row["epoch"] for row in read_rows(finished_run, "val/")] == [0, 1]
    assert len(read_rows(finished_run, "test/")) == 1


def test_the_log_of_a_finished_run_holds_progress_and_no_traceback(finished_run: Path) -> None:
    log = (finished_run / "train.log").read_text()
    assert "epoch 2/2  val/elbo" in log
    assert "wandb sync" in log
    assert "test set " + read_summary(finished_run)["test_digest"] in log
    assert "Traceback" not in log
    assert max(len(line) for line in log.splitlines()) < 400


@pytest.fixture(scope="session")
def pair_of_runs(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return the same run of 14 steps on one device and on two."""
    folder = tmp_path_factory.mktemp("pair")
    run_dirs = {}
    for devices in (1, 2):
        run_dirs[devices] = folder / str(devices)
        overrides = [
            "device=cpu",
            f"trainer.devices={devices}",
            "logger=csv",
        ]
        done = run_script("train", *tiny(data_dir, run_dirs[devices]), *overrides)
        assert done.returncode == 0, done.stdout + done.stderr
    return run_dirs


def test_one_device_and_two_take_the_same_steps(pair_of_runs: dict[int, Path]) -> None:
    one, two = (read_rows(pair_of_runs[n], "train/") for n in (1, 2))
    assert len(one) == len(two) == 14
    for a, b in zip(one, two, strict=True):
        for key in ("train/loss", "train/elbo", "train/kl", "train/reconstruction"):
            assert a[key] == pytest.approx(b[key], rel=2e-6, abs=1e-6)
        assert a["images_seen"] == b["images_seen"]


def test_train_seconds_are_less_than_the_wall_time(data_dir: Path, tmp_path: Path) -> None:
    module, data, trainer = make_objects(data_dir, tmp_path, num_sanity_val_steps=2)
    start = time.perf_counter()
    train(module, data, trainer, tmp_path)
    assert 0 < module.train_seconds < time.perf_counter() - start


def test_two_devices_do_not_warn_about_sync_dist(pair_of_runs: dict[int, Path]) -> None:
    assert "sync_dist" not in (pair_of_runs[2] / "train.log").read_text()


def test_one_device_and_two_count_each_test_image_once(pair_of_runs: dict[int, Path]) -> None:
    """33 images in batches of 16 leave one for the last batch, so the second rank has none."""
    assert NUM_TEST % 2 == 1
    one, two = (read_summary(pair_of_runs[n]) for n in (1, 2))
    assert two["devices"] == 2
    for key, value in one["metrics"].items():  # absolute tolerance for a small KL
        assert value == pytest.approx(two["metrics"][key], rel=1e-6, abs=1e-7)
    for key in ("validation_digest", "test_digest", "images_seen", "steps"):
        assert one[key] == two[key]


@pytest.mark.fault(Promise.UNUSUAL, "last batches of one image on two devices")
def test_a_device_without_rows_takes_the_same_steps(data_dir: Path, tmp_path: Path) -> None:
    """The last batches of training, validation and test have one image."""
    extra = ["device=cpu", "logger=csv", "data.validation_size=65", "data.batch_size=194"]
    extra += ["model/network=conv", "model.network.channels=[2,4]", "model.network.hidden_dim=8"]
    extra += ["data/augmentation=warp", "callbacks.figures=null"]
    base = [word for word in tiny(data_dir) if "network" not in word and "validation" not in word]
    losses, metrics = [], []
    for devices in (1, 2):
        run_dir = tmp_path / str(devices)
        overrides = [*base, *extra, f"trainer.devices={devices}", f"hydra.run.dir={run_dir}"]
        done = run_script("train", *overrides)
        assert done.returncode == 0, done.stdout + done.stderr
        losses.append([row["train/loss"] for row in read_rows(run_dir, "train/")])
        metrics.append(read_summary(run_dir)["metrics"])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=2e-6)
    assert metrics[1] == pytest.approx(metrics[0], rel=2e-6, abs=1e-6)


def test_a_device_without_rows_contributes_zero(data_dir: Path, tmp_path: Path) -> None:
    """Every parameter gets a gradient of 0, and BatchNorm keeps its statistics."""
    _, data, trainer = make_objects(data_dir, tmp_path)
    module = VAEModule(CVAE(FlatBatchNorm, latent_dim=2), torch.optim.SGD)
    module.trainer = trainer
    data.setup()
    assert data.train is not None
    batch = data.train[Rows(0, torch.arange(0), 1)]
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert all(m.training for m in module.model.modules())
    assert module.items_seen == 1
    assert module._window is not None
    assert not module._window.any()


def test_two_devices_share_one_folder(pair_of_runs: dict[int, Path]) -> None:
    one, two = (
        sorted(p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file())
        for d in (pair_of_runs[1], pair_of_runs[2])
    )
    assert one == two


@pytest.mark.parametrize("devices", [1, 2])
def test_a_failed_run_reports_its_error(devices: int, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "from cvae.networks import MLP\n"
        "class Mine(MLP):\n"
        "    def decode(self, z, y):\n"
        f"        if os.environ.get('RANK', '0') == '{devices - 1}':\n"
        "            raise ZeroDivisionError('as planned')\n"
        "        return super().decode(z, y)\n"
    )
    overrides = ["model.network._target_=mine.Mine", "device=cpu", f"trainer.devices={devices}"]
    run_dir = tmp_path / "run"
    done = run_script("train", *tiny(data_dir, run_dir), *overrides, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("failed: ")
    assert "ZeroDivisionError: as planned" in done.stderr.splitlines()[-1]
    summary = read_summary(run_dir)
    assert summary["status"] == "failed"
    assert summary["error"] == "ZeroDivisionError: as planned"
    assert "as planned" in (run_dir / "train.log").read_text()


def test_a_run_needs_no_callbacks_logger_or_schedule(data_dir: Path, tmp_path: Path) -> None:
    """RANK=0 and WORLD_SIZE=1, which some clusters set for a single rank, have no effect."""
    overrides = ["callbacks=null", "logger=null", "scheduler=null", "trainer.max_epochs=1"]
    overrides = [*tiny(data_dir, tmp_path / "run"), *overrides]
    done = run_script("train", *overrides, RANK="0", WORLD_SIZE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_summary(tmp_path / "run")["status"] == "finished"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("debug", ["one_batch", "profiler"])  # overfit is in test_selection.py
def test_every_debug_option_trains(debug: str, data_dir: Path, tmp_path: Path) -> None:
    overrides = [f"debug={debug}", "callbacks.figures=null"]
    done = run_script("train", *tiny(data_dir, tmp_path / "run"), *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("Profile" in done.stdout) == (debug == "profiler")


def test_a_flow_prior_trains_and_generates(data_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    small = ["model/prior=flow", "model.prior.num_couplings=2", "model.prior.hidden_dim=8"]
    small += ["trainer.precision=bf16-mixed", "logger=csv"]
    done = run_script("train", *tiny(data_dir, run_dir), *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_summary(run_dir)["name"] == "cvae-mlp-flow-adversary-z3-kmnist-s1"
    done = run_script("generate", f"run={run_dir}", "label=all", "num_samples=2")
    assert done.returncode == 0, done.stdout + done.stderr
    with torch.no_grad():
        trained = loading.load_run(run_dir)
        z = torch.randn(4, 3)
        w, _ = trained.prior.to_base(z, None)  # type: ignore[union-attr, operator]
    assert not torch.allclose(w, z, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "penalty"), [("vae", "adversary"), ("cvae", "labelwise_adversary")]
)
def test_a_penalty_trains_and_generates(
    model: str, penalty: str, data_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    overrides = [f"model={model}", f"model/penalty={penalty}", "model.penalty.hidden_dim=8"]
    overrides += ["trainer.precision=bf16-mixed", "callbacks.figures=null", "logger=csv"]
    done = run_script("train", *tiny(data_dir, run_dir), *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    part = penalty.replace("_", "")
    assert read_summary(run_dir)["name"] == f"{model}-mlp-{part}-z3-kmnist-s1"
    assert 0 < read_summary(run_dir)["metrics"]["test/penalty"] < 3
    label = ["label=all"] if model == "cvae" else []
    done = run_script("generate", f"run={run_dir}", "num_samples=2", *label)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tensorboard_logger_replaces_wandb(data_dir: Path, tmp_path: Path) -> None:
    overrides = ["logger=tensorboard", "trainer.max_epochs=1", "callbacks=early_stopping"]
    done = run_script("train", *tiny(data_dir, tmp_path / "run"), *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert not (tmp_path / "run" / "wandb").exists()


def test_imports_leave_logging_and_environment_unchanged() -> None:
    assert logging.getLogger(PACKAGE).level == logging.NOTSET
    assert "RANK" not in os.environ


@pytest.mark.parametrize(  # compiling takes half a minute
    "devices",
    [pytest.param(1, marks=pytest.mark.engines), pytest.param(2, marks=pytest.mark.long)],
)
def test_compiled_steps_are_the_same_steps(devices: int, data_dir: Path, tmp_path: Path) -> None:
    losses = {}
    for mode in ("null", "default"):
        run_dir = tmp_path / mode
        overrides = [f"compile={mode}", f"trainer.devices={devices}", "logger=csv", "device=cpu"]
        overrides += ["callbacks.figures=null"]
        done = run_script("train", *tiny(data_dir, run_dir), *overrides, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        losses[mode] = [row["train/loss"] for row in read_rows(run_dir, "train/")]
    assert losses["default"] == pytest.approx(losses["null"], rel=1e-5)
    again = run_script("train", f"resume={run_dir}", "trainer.max_epochs=3", "compile=null")
    assert again.returncode == 0, again.stdout + again.stderr


def test_compile_compiles_the_terms_of_the_model(data_dir: Path, tmp_path: Path) -> None:
    module, _, _ = make_objects(data_dir, tmp_path)
    module.on_train_start()
    assert not hasattr(module._terms, "_torchdynamo_orig_callable")
    module.compile_mode = "default"
    module.on_train_start()
    assert module._terms._torchdynamo_orig_callable == module.model.terms


def test_precision_auto_is_bfloat16_with_amx(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has_amx, precision in ((False, "32-true"), (True, "bf16-mixed")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", partial(dict, amx_bf16=has_amx))
        assert _native_precision("cpu") == precision


def test_validation_does_not_depend_on_the_training_precision(
    data_dir: Path, tmp_path: Path
) -> None:
    scores = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        module, data, trainer = make_objects(data_dir, tmp_path, precision=precision)
        (found,) = trainer.validate(module, datamodule=data, verbose=False)
        scores.append(found["val/elbo"])
    assert scores[0] == scores[1]


PRECISION_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


@pytest.mark.filterwarnings("ignore:.*is supported for historical reasons.*")
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU.*")
@pytest.mark.parametrize("short", PRECISION_ALIASES)
def test_short_names_of_precisions_are_aliases(short: str) -> None:
    one, other = (
        lightning.Trainer(precision=name, accelerator="cpu", devices=1, logger=False)  # type: ignore[arg-type]
        for name in (short, PRECISION_ALIASES[short])
    )
    assert one.precision == other.precision
    assert type(one.precision_plugin) is type(other.precision_plugin)


@pytest.mark.parametrize(
    ("precision", "averages"),
    [*((p, True) for p in PRECISIONS if p not in ("auto", *PRECISION_ALIASES)), ("64-true", False)],
)
def test_every_precision_trains_and_resumes_exactly(
    precision: str, averages: bool, data_dir: Path, tmp_path: Path
) -> None:
    def fit(folder: Path, epochs: int, resume_from: Path | None = None) -> dict[str, Any]:
        torch.manual_seed(0)
        callbacks = [LastCheckpoint(folder), *([EMA(0.9)] if averages else [])]
        settings: dict[str, Any] = {"callbacks": callbacks, "max_epochs": epochs}
        if precision == "16-mixed":  # the name alone means bfloat16 on a CPU
            settings["plugins"] = [MixedPrecision("16-mixed", "cpu")]
        else:
            settings["precision"] = precision
        module, data, fitter = make_objects(data_dir, folder, gradient_clip_val=200.0, **settings)
        module._make_optimizer = partial(torch.optim.AdamW, lr=1e-2, fused=True)
        train(module, data, fitter, folder, resume_from=resume_from)
        return dict(torch.load(folder / "last.ckpt", weights_only=True))

    fit(tmp_path / "a", 1)
    resumed = fit(tmp_path / "a", 2, tmp_path / "a" / "last.ckpt")
    uninterrupted = fit(tmp_path / "b", 2)
    width = torch.float64 if precision.startswith("64") else torch.float32
    assert uninterrupted["global_step"] == 14
    for key in ("state_dict", *(["current_model_state"] if averages else [])):
        for name, value in uninterrupted[key].items():
            assert value.dtype == width
            assert torch.equal(value, resumed[key][name]), name


def test_a_run_in_double_precision_draws_figures_and_generates(
    data_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    done = run_script("train", *tiny(data_dir, run_dir), "trainer.precision=64-true", "logger=csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run_dir / "figures" / "label_grid.png").is_file()
    assert read_summary(run_dir)["precision"] == "64-true"
    done = run_script("generate", f"run={run_dir}", "label=all", "num_samples=2")
    assert done.returncode == 0, done.stdout + done.stderr
    saved = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for value in saved.values()} == {torch.float64}


def test_resume_requires_the_same_data_and_precision() -> None:
    now = {"data": "x", "validation": "y", "precision": "32-true"}
    _check_provenance(now, now)
    without = {"data": "x", "validation": "y"}
    _check_provenance(now, without)  # a run before the precision was recorded
    for other in ({"data": "x"}, {**now, "validation": "z"}):
        with pytest.raises(ConfigError, match="validation data"):
            _check_provenance(now, other)
    with pytest.raises(ConfigError, match="with bf16-mixed; resume it on"):
        _check_provenance(now, {**now, "precision": "bf16-mixed"})


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_experiment_trains(path: Path, data_dir: Path, tmp_path: Path) -> None:
    """This includes experiments that are meant for other hardware."""
    few = ["trainer.max_steps=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    few += ["data.batch_size=32", "data.eval_batch_size=32"]
    of_tests = ["data.name=KMNIST", f"data.data_dir={data_dir}", "data.validation_size=45"]
    overrides = [f"experiment={path.stem}", *of_tests, *few, "test_num_samples=2", "logger=csv"]
    done = run_script(
        "train", *overrides, "callbacks.figures=null", f"hydra.run.dir={tmp_path / 'a'}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_summary(tmp_path / "a")["steps"] == 2
