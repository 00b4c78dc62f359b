"""Other ways to train the same network: a bare loop, conventional Lightning code, and pythae.

``python benchmarks/contenders.py NAME STEPS START OVERRIDE...`` prints the times of the first step,
of step START and of the last step as JSON. All train the model that the overrides describe, with
the same batch size; each loads images as is usual for that kind of loop.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cvae.digits import SETS, load_digits
from cvae.models import VAE
from harness.config import instantiation, paths
from harness.config.hydra_versions import INITIALIZE_OPTIONS

CONF = str(paths.ROOT / "conf")
TRAIN_SIZE = 55_000


class Timer:
    """Record of the times at which steps end."""

    def __init__(self, steps: int, start: int) -> None:
        self.steps, self.start, self.done = steps, start, 0
        self.times: dict[int, float] = {}

    def step(self) -> bool:
        """Record the end of a step; return whether it was the last one."""
        self.done += 1
        if self.done in (1, self.start, self.steps):
            self.times[self.done] = time.time()
        return self.done == self.steps


def build(cfg: DictConfig) -> tuple[VAE, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = instantiation.instantiate(cfg.model)
    assert isinstance(model, VAE)
    return model, instantiation.instantiate(cfg.optimizer)(model.parameters())


def bare(cfg: DictConfig, timer: Timer) -> None:
    """Train in a plain loop over tensors in memory, with clipping, schedule and average."""
    images, labels, *_ = load_digits(SETS["MNIST"], Path(cfg.data.data_dir))
    grey = torch.from_numpy(images[:TRAIN_SIZE].copy()).float().div(255).unsqueeze(1)
    one_hot = nn.functional.one_hot(torch.from_numpy(labels[:TRAIN_SIZE].copy()).long(), 10).float()
    model, optimizer = build(cfg)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, timer.steps)
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    batch_size, every = cfg.data.batch_size, cfg.callbacks.ema.every_n_steps
    while True:
        for index in torch.randperm(TRAIN_SIZE).split(batch_size):
            x, y = torch.bernoulli(grey[index]), one_hot[index]
            terms = model.terms(x, y, torch.randn(len(x), model.latent_dim))
            loss = model.loss(terms, timer.done).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, cfg.trainer.gradient_clip_val)
            optimizer.step()
            schedule.step()
            if timer.done % every == 0:
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.008)
            if timer.step():
                return


def conventional(cfg: DictConfig, timer: Timer) -> None:
    """Train as most repositories do: torchvision's MNIST, ToTensor for every image, a DataLoader,
    and Lightning with its defaults. Logs every step."""
    import lightning
    from torchvision import datasets, transforms

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = build(cfg)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            x, y = torch.bernoulli(batch[0]), nn.functional.one_hot(batch[1], 10).float()
            terms = self.model.terms(x, y, torch.randn(len(x), self.model.latent_dim))
            loss = self.model.loss(terms, self.global_step).mean()
            self.log("train_loss", loss)
            self.log("train_elbo", terms.elbo.mean())
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            timer.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    digits = datasets.MNIST(cfg.data.data_dir, transform=transforms.ToTensor())
    loader = DataLoader(digits, batch_size=cfg.data.batch_size, shuffle=True)
    trainer = lightning.Trainer(
        max_steps=timer.steps, default_root_dir=paths.ROOT / "logs" / "bench", accelerator="cpu"
    )
    trainer.fit(Module(), loader)


def pythae(cfg: DictConfig, timer: Timer) -> None:
    """Train pythae's VAE with our networks and its own trainer; it has no conditional VAE."""
    from pythae import models
    from pythae.data.datasets import DatasetOutput
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    cfg.model._target_ = "cvae.models.VAE"
    ours: Any = instantiation.instantiate(cfg.model)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.ours = ours.network.encoder

        def forward(self, x: Tensor) -> Any:
            mean, raw = self.ours(x.flatten(1), None).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=2 * raw)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.ours, self.bias = ours.network.decoder, ours.output_bias

        def forward(self, z: Tensor) -> Any:
            logits = self.ours(z, None).unflatten(1, (1, 28, 28)) + self.bias
            return ModelOutput(reconstruction=torch.sigmoid(logits))

    class Binarized(Dataset[Any]):
        images = torch.from_numpy(
            load_digits(SETS["MNIST"], Path(cfg.data.data_dir))[0][:TRAIN_SIZE].copy()
        )

        def __len__(self) -> int:
            return TRAIN_SIZE

        def __getitem__(self, index: int) -> Any:
            x = torch.bernoulli(self.images[index].float().div(255)).unsqueeze(0)
            return DatasetOutput(data=x)

    class DoneError(Exception):
        pass

    class Note(TrainingCallback):
        def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
            if timer.step():
                raise DoneError

    model = models.VAE(
        models.VAEConfig(
            input_dim=(1, 28, 28), latent_dim=cfg.model.latent_dim, reconstruction_loss="bce"
        ),
        Encoder(),
        Decoder(),
    )
    config = BaseTrainerConfig(
        output_dir=str(paths.ROOT / "logs" / "bench" / "pythae"),
        per_device_train_batch_size=cfg.data.batch_size,
        num_epochs=1000,
        optimizer_cls="AdamW",
        no_cuda=True,
    )
    try:
        BaseTrainer(model, Binarized(), training_config=config, callbacks=[Note()]).train()
    except DoneError:
        return


CONTENDERS: dict[str, Callable[[DictConfig, Timer], None]] = {
    "bare": bare,
    "conventional": conventional,
    "pythae": pythae,
}

if __name__ == "__main__":
    name, steps, start, *overrides = sys.argv[1:]
    with initialize_config_dir(CONF, **INITIALIZE_OPTIONS):
        config = compose("train", overrides)
    config.data.data_dir = str(paths.ROOT / "data")
    clock = Timer(int(steps), int(start))
    CONTENDERS[name](config, clock)
    print(json.dumps({"times": clock.times}))
