"""Where the milliseconds of a step of cvae_plain go: prints a line of JSON.

The parts of a step are run one after the other, as the Trainer runs them, with a clock between
them. Beside them stands what two processes need to add up the gradients.
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

CONF = str(paths.ROOT / "conf")
STEPS, WARM = 300, 50
AVERAGE = "average of the weights, every fourth step (callbacks.py)"


def parts() -> tuple[dict[str, float], int]:
    """Milliseconds of each part of a step (medians), and the number of parameters."""
    with initialize_config_dir(CONF, version_base="1.3"):
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
    found: dict[str, list[float]] = {}

    def clocked(part: str, since: float) -> float:
        now = time.perf_counter()
        found.setdefault(part, []).append(1000 * (now - since))
        return now

    for step in range(STEPS):
        now = time.perf_counter()
        x, y, index, _ = next(batches)
        now = clocked("a batch of binarized digits (data.py)", now)
        eps = noise.standard_normal(
            index, (model.latent_dim,), seed=1, stream=noise.Stream.POSTERIOR
        )
        now = clocked("noise of the posterior (noise.py)", now)
        loss = model.loss(model.terms(x, y, eps), step).mean()
        now = clocked("forward: both networks and the bound (models.py)", now)
        loss.backward()
        now = clocked("backward", now)
        torch.nn.utils.get_total_norm([p.grad for p in parameters])
        now = clocked("norm of the gradient (lightning_module.py)", now)
        optimizer.step()
        optimizer.zero_grad()
        now = clocked("AdamW", now)
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.008)
        clocked(AVERAGE, now)
    middle = {name: statistics.median(values[WARM:]) for name, values in found.items()}
    middle[AVERAGE] /= cfg.callbacks.ema.every_n_steps
    return middle, sum(p.numel() for p in parameters)


def add_up(rank: int, count: int, meeting: str, told: Any) -> None:
    """One of two processes that sum gradients, as DDP does in each step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    gradients, found = torch.ones(count), []
    for _ in range(30):
        start = time.perf_counter()
        dist.all_reduce(gradients)
        found.append(1000 * (time.perf_counter() - start))
        gradients.fill_(1.0)
    if rank == 0:
        told.put(statistics.median(found))
    dist.destroy_process_group()


def main() -> None:
    milliseconds, count = parts()
    meeting = Path(paths.ROOT / "logs" / "bench" / f"meeting-{time.time_ns():x}")
    meeting.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    spawn(add_up, (count, str(meeting), told), nprocs=2)
    meeting.unlink(missing_ok=True)
    document = {
        "threads": torch.get_num_threads(),
        "parameters": count,
        "milliseconds": {name: round(value, 3) for name, value in milliseconds.items()},
        "all_reduce_milliseconds": round(told.get(), 2),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
