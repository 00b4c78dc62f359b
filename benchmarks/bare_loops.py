"""Bare training loops over tensors in memory: eager, and with one CUDA graph per step."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clock import Timer
from omegaconf import DictConfig
from torch import Tensor, nn

from cvae.digits import SETS, load_digits
from cvae.models import VAE
from harness.config import instantiation


def select_device(cfg: DictConfig) -> torch.device:
    return torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")


def build_model(cfg: DictConfig, **arguments: Any) -> tuple[VAE, torch.optim.Optimizer]:
    """Return the model on its device, and its optimizer, built with these arguments."""
    torch.manual_seed(1)
    model = instantiation.instantiate(cfg.model)
    assert isinstance(model, VAE)
    model.to(select_device(cfg))
    return model, instantiation.instantiate(cfg.optimizer)(model.parameters(), **arguments)


def load_images(cfg: DictConfig) -> tuple[Tensor, Tensor]:
    """Return the training images, in [0, 1], and their one-hot labels, on the device."""
    images, labels, *_ = load_digits(SETS[cfg.data.name], Path(cfg.data.data_dir))
    rows, device = len(images) - cfg.data.validation_size, select_device(cfg)
    grey = torch.from_numpy(images[:rows].copy()).to(device).float().div(255).unsqueeze(1)
    classes = torch.from_numpy(labels[:rows].copy()).to(device).long()
    return grey, nn.functional.one_hot(classes, cfg.data.num_classes).float()


def make_step(
    cfg: DictConfig, model: VAE, optimizer: torch.optim.Optimizer, grey: Tensor, one_hot: Tensor
) -> Callable[[Tensor, int], None]:
    """Return a function that takes an optimizer step on the images of an index."""
    parameters = list(model.parameters())
    is_bfloat16 = cfg.trainer.precision == "bf16-mixed"

    def take_step(index: Tensor, number: int) -> None:
        x, y = torch.bernoulli(grey[index]), one_hot[index]
        eps = torch.randn(len(x), model.latent_dim, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=is_bfloat16):
            loss = model.loss(model.terms(x, y, eps), number).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, cfg.trainer.gradient_clip_val)
        optimizer.step()

    return take_step


def make_average(cfg: DictConfig, model: VAE) -> Callable[[int], None]:
    """Return a function that averages the weights every few steps."""
    weights = [p.detach() for p in model.parameters()]
    average = [p.clone() for p in weights]

    def update_average(number: int) -> None:
        if number % cfg.callbacks.ema.every_n_steps == 0:
            torch._foreach_lerp_(average, weights, 0.008)

    return update_average


def train_bare(cfg: DictConfig, timer: Timer) -> None:
    """Train in a plain loop over tensors in memory, with clipping, schedule and average."""
    model, optimizer = build_model(cfg)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, timer.steps)
    grey, one_hot = load_images(cfg)
    take_step = make_step(cfg, model, optimizer, grey, one_hot)
    update_average = make_average(cfg, model)
    while True:
        for index in torch.randperm(len(grey), device=grey.device).split(cfg.data.batch_size):
            take_step(index, timer.steps_done)
            schedule.step()
            update_average(timer.steps_done)
            if timer.step():
                return


def capture_step(take_step: Callable[[Tensor, int], None], index: Tensor) -> Callable[[], None]:
    """Return a function that replays a step on ``index`` as a CUDA graph, or runs it on a CPU."""
    if index.device.type == "cpu":
        return lambda: take_step(index, 0)
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            take_step(index, 0)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take_step(index, 0)
    return graph.replay


def train_bare_graph(cfg: DictConfig, timer: Timer) -> None:
    """Train in a bare loop that replays one CUDA graph per step.

    No other loop over these kernels is faster. This one leaves out the KL warm-up and the smaller
    last batch of an epoch.
    """
    grey, one_hot = load_images(cfg)
    device, batch_size, peak = grey.device, cfg.data.batch_size, cfg.optimizer.lr
    rate = torch.tensor(peak, device=device)
    model, optimizer = build_model(cfg, lr=rate, capturable=device.type == "cuda")
    update_average = make_average(cfg, model)
    rows = torch.arange(batch_size, device=device)  # the graph reads the rows of its batch here
    replay = capture_step(make_step(cfg, model, optimizer, grey, one_hot), rows)
    while True:
        order = torch.randperm(len(grey), device=device)
        for index in order[: len(grey) // batch_size * batch_size].split(batch_size):
            rows.copy_(index)
            rate.fill_(0.5 * peak * (1 + math.cos(math.pi * timer.steps_done / timer.steps)))
            replay()
            update_average(timer.steps_done)
            if timer.step():
                return
