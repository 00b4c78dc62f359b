"""Time of each part of a step of cvae_plain; prints a line of JSON.

Runs the parts in the order of the Trainer and times each. Also times the sum of the gradients of
two processes.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from torch import multiprocessing
from torch.multiprocessing.spawn import spawn

from cvae import noise
from cvae.data import MNISTDataModule
from harness.config import instantiation, paths
from harness.config.hydra_versions import INITIALIZE_OPTIONS

CONF = str(paths.ROOT / "conf")
STEPS, NUM_WARM_UP = 300, 50
AVERAGE = "average of the weights, every fourth step (callbacks.py)"


def measure_parts() -> tuple[dict[str, float], int]:
    """Return the median milliseconds of each part of a step, and the number of parameters."""
    with initialize_config_dir(CONF, **INITIALIZE_OPTIONS):
        cfg = compose("train", ["model=cvae_plain"])
    torch.manual_seed(1)
    data = MNISTDataModule(paths.ROOT / "data", batch_size=cfg.data.batch_size)
    data.prepare_data()
    data.setup()
    model: Any = instantiation.instantiate(cfg.model)
    parameters = list(model.parameters())
    optimizer = instantiation.instantiate(cfg.optimizer)(parameters)
    average = [p.detach().clone() for p in parameters]
    batches = iter(data.train_dataloader())
    times: dict[str, list[float]] = {}

    def record_time(part: str, since: float) -> float:
        now = time.perf_counter()
        times.setdefault(part, []).append(1000 * (now - since))
        return now

    for step in range(STEPS):
        now = time.perf_counter()
        x, y, index, _ = next(batches)
        now = record_time("a batch of binarized digits (data.py)", now)
        eps = noise.standard_normal(
            index, (model.latent_dim,), seed=1, stream=noise.Stream.POSTERIOR
        )
        now = record_time("noise of the posterior (noise.py)", now)
        loss = model.loss(model.terms(x, y, eps), step).mean()
        now = record_time("forward: both networks and the bound (models.py)", now)
        loss.backward()
        now = record_time("backward", now)
        torch.nn.utils.get_total_norm([p.grad for p in parameters])
        now = record_time("norm of the gradient (lightning_module.py)", now)
        optimizer.step()
        optimizer.zero_grad()
        now = record_time("AdamW", now)
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.008)
        record_time(AVERAGE, now)
    medians = {name: statistics.median(values[NUM_WARM_UP:]) for name, values in times.items()}
    medians[AVERAGE] /= cfg.callbacks.ema.every_n_steps
    return medians, sum(p.numel() for p in parameters)


def time_all_reduce(rank: int, count: int, rendezvous: str, results: Any) -> None:
    """Time the all-reduce of gradients between two processes, as DDP does in each step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    gradients, times = torch.ones(count), []
    for _ in range(30):
        start = time.perf_counter()
        dist.all_reduce(gradients)
        times.append(1000 * (time.perf_counter() - start))
        gradients.fill_(1.0)
    if rank == 0:
        results.put(statistics.median(times))
    dist.destroy_process_group()


def main() -> None:
    milliseconds, count = measure_parts()
    rendezvous = Path(paths.ROOT / "logs" / "bench" / f"rendezvous-{time.time_ns():x}")
    rendezvous.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    spawn(time_all_reduce, (count, str(rendezvous), results), nprocs=2)
    rendezvous.unlink(missing_ok=True)
    document = {
        "threads": torch.get_num_threads(),
        "parameters": count,
        "milliseconds": {name: round(value, 3) for name, value in milliseconds.items()},
        "all_reduce_milliseconds": round(results.get(), 2),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
