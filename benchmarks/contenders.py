"""Other ways to train the same network: bare loops, conventional Lightning code, and pythae.

``python benchmarks/contenders.py NAME STEPS START OVERRIDE...`` prints the times of the first step,
of step START and of the last step as JSON. All have the networks and the batch size of the
overrides; each loads images as is usual for that kind of loop. pythae trains an unconditional VAE
on the CPU in float32. The others train the model of the overrides, on their device and in their
precision.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bare_loops import build_model, train_bare, train_bare_graph
from clock import Timer
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cvae.digits import SETS, load_digits
from harness.config import instantiation, paths
from harness.config.hydra_versions import INITIALIZE_OPTIONS

CONF = str(paths.ROOT / "conf")


def train_conventional(cfg: DictConfig, timer: Timer) -> None:
    """Train as most repositories do, and call ``self.log`` in every step.

    Uses torchvision's MNIST, ToTensor for every image, a DataLoader, and Lightning's defaults.
    """
    import lightning
    from torchvision import datasets, transforms

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = build_model(cfg)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            x, y = torch.bernoulli(batch[0]), nn.functional.one_hot(batch[1], 10).float()
            eps = torch.randn(len(x), self.model.latent_dim, device=x.device)
            terms = self.model.terms(x, y, eps)
            loss = self.model.loss(terms, self.global_step).mean()
            self.log("train_loss", loss)
            self.log("train_elbo", terms.elbo.mean())
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            timer.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    digits = getattr(datasets, cfg.data.name)(cfg.data.data_dir, transform=transforms.ToTensor())
    loader = DataLoader(digits, batch_size=cfg.data.batch_size, shuffle=True)
    trainer = lightning.Trainer(
        max_steps=timer.steps,
        default_root_dir=paths.ROOT / "logs" / "bench",
        accelerator=cfg.trainer.accelerator,
        precision=cfg.trainer.precision,
    )
    trainer.fit(Module(), loader)


def train_pythae(cfg: DictConfig, timer: Timer) -> None:
    """Train pythae's VAE with our networks and its own trainer; it has no conditional VAE."""
    from pythae import models
    from pythae.data.datasets import DatasetOutput
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    cfg.model._target_ = "cvae.models.VAE"
    our_model: Any = instantiation.instantiate(cfg.model)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = our_model.network.encoder

        def forward(self, x: Tensor) -> Any:
            mean, raw = self.network(x.flatten(1), None).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=2 * raw)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.bias = our_model.network.decoder, our_model.output_bias

        def forward(self, z: Tensor) -> Any:
            logits = self.network(z, None).unflatten(1, (1, 28, 28)) + self.bias
            return ModelOutput(reconstruction=torch.sigmoid(logits))

    class Binarized(Dataset[Any]):
        images = torch.from_numpy(
            load_digits(SETS["MNIST"], Path(cfg.data.data_dir))[0][: -cfg.data.validation_size]
        )

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Any:
            x = torch.bernoulli(self.images[index].float().div(255)).unsqueeze(0)
            return DatasetOutput(data=x)

    class DoneError(Exception):
        pass

    class RecordStep(TrainingCallback):
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
        BaseTrainer(model, Binarized(), training_config=config, callbacks=[RecordStep()]).train()
    except DoneError:
        return


CONTENDERS: dict[str, Callable[[DictConfig, Timer], None]] = {
    "bare": train_bare,
    "bare_graph": train_bare_graph,
    "conventional": train_conventional,
    "pythae": train_pythae,
}

if __name__ == "__main__":
    name, steps, start, *overrides = sys.argv[1:]
    with initialize_config_dir(CONF, **INITIALIZE_OPTIONS):
        config = compose("train", overrides)
    config.data.data_dir = str(paths.ROOT / "data")
    clock = Timer(int(steps), int(start))
    CONTENDERS[name](config, clock)
    print(json.dumps({"times": clock.times}))
