"""Ranks that torchrun or srun started: read their environment, check it, and connect them."""

import contextlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from harness.contract.errors import ConfigError, RunFailed
from harness.training.processes import exit_after


class Ranks(NamedTuple):
    """Rank of this process, among those that torchrun or srun started."""

    rank: int
    world_size: int
    local_world_size: int  # on this node
    launcher: str


def started_ranks() -> Ranks | None:
    """Return the rank of this process if torchrun or srun started it with others, else None.

    Also None if the world size is 1, which some clusters set for every process.

    Raises:
        ConfigError: the variables that name the rank are incomplete or contradict each other.
    """
    env = os.environ
    if (num_tasks := _read_count("SLURM_STEP_NUM_TASKS", 1)) > 1 and "RANK" not in env:
        nodes = _read_count("SLURM_STEP_NUM_NODES", 0) or _read_count("SLURM_NNODES", 1)
        rank = _read_count("SLURM_PROCID", None)
        return _check_consistent(
            Ranks(rank, num_tasks, num_tasks // max(1, nodes), "srun"), "SLURM_PROCID"
        )
    if "RANK" not in env and "WORLD_SIZE" not in env:
        return None
    rank = _read_count("RANK", 0 if env.get("WORLD_SIZE") == "1" else None)
    world_size = _read_count("WORLD_SIZE", 1 if rank == 0 else None)
    local = _read_count("LOCAL_WORLD_SIZE", world_size)
    ranks = _check_consistent(Ranks(rank, world_size, local, "torchrun"), "RANK")
    if _read_count("LOCAL_RANK", 0) >= local:
        raise ConfigError(f"LOCAL_RANK={env['LOCAL_RANK']}: must be below LOCAL_WORLD_SIZE={local}")
    return None if world_size == 1 else ranks


def _read_count(variable: str, default: int | None) -> int:
    """Return the integer in an environment variable."""
    text = os.environ.get(variable) or ("" if default is None else str(default))
    if not text:
        raise ConfigError(
            f"{variable}: is not set, but other variables of distributed training are; set RANK, "
            "WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or none of them, or start with torchrun"
        )
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{variable}={text}: must be an integer of at least 0")
    return int(text)


def _check_consistent(ranks: Ranks, variable: str) -> Ranks:
    """Return the ranks if they are consistent, else raise ConfigError."""
    rank, size, local, _ = ranks
    if rank >= size:
        raise ConfigError(f"{variable}={rank}: must be below the number of processes, {size}")
    if local < 1 or size % local:
        source = (
            "SLURM_STEP_NUM_TASKS"
            if ranks.launcher == "srun"
            else "WORLD_SIZE and LOCAL_WORLD_SIZE"
        )
        raise ConfigError(
            f"{size} processes: must be a multiple of the {local} on each node; check {source}"
        )
    return ranks


def connect_ranks(run_dir: Path, settings: str, timeout: float) -> Path:
    """Connect to the other ranks, and return the run folder of rank zero, which all ranks use.

    Args:
        run_dir: the run folder in the config of this rank.
        settings: the composed config, as text, to compare between ranks.
        timeout: seconds to wait for the other ranks; after that, this process exits.

    Raises:
        ConfigError: the ranks have different settings, or MASTER_ADDR or MASTER_PORT is not set.
        RunFailed: the ranks cannot connect.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it on import
    ranks = started_ranks()
    assert ranks is not None
    if ranks.launcher == "torchrun":
        for variable in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(variable):
                raise ConfigError(
                    f"{variable}: is not set, but WORLD_SIZE={ranks.world_size} is; set it, or "
                    "start the ranks with torchrun"
                )
        _read_count("MASTER_PORT", None)

    import torch.distributed as dist

    if ranks.launcher == "srun":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ.update(
            RANK=str(ranks.rank),
            WORLD_SIZE=str(ranks.world_size),
            LOCAL_RANK=str(slurm.local_rank()),
            MASTER_ADDR=slurm.main_address,
            MASTER_PORT=str(slurm.main_port),
        )
    import torch

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with exit_after(timeout):
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]  # without the C++ frames below it
            raise RunFailed(f"the ranks did not connect: {reason}") from error
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, (str(run_dir), settings))
    different = [rank for rank, (_, given) in enumerate(gathered) if given != gathered[0][1]]
    if different:
        with contextlib.suppress(RuntimeError):  # raised if other ranks have ended
            dist.barrier()  # so that all ranks get here before one ends
        disconnect()
        raise ConfigError(
            f"rank {different[0]} has other settings than rank 0: start all with the same overrides"
        )
    return Path(gathered[0][0])


def disconnect() -> None:
    """Destroy the process group, so that its threads end before the interpreter does.

    A thread of gloo that frees a tensor while the interpreter exits aborts the process, with
    SIGABRT (pytorch issue 190489). Lightning destroys only groups of NCCL.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def is_rank_zero() -> bool:
    """Return whether this process is rank zero, or the only one."""
    ranks = started_ranks()
    return ranks is None or ranks.rank == 0


def check_one_node(num_nodes: int) -> None:
    """Raise if a run needs several nodes, but was started without torchrun or srun.

    Raises:
        ConfigError: ``num_nodes`` is above 1.
    """
    if num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={num_nodes}: start it on every node with torchrun or srun; by "
            "itself train.py uses one node"
        )
