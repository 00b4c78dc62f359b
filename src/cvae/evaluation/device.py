"""The device of an evaluation, and the precision on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cvae.evaluation.settings import Accelerator
from harness.contract.errors import ConfigError


def choose_device(accelerator: Accelerator) -> torch.device:
    """Return the device to evaluate on; ``auto`` is the CUDA GPU if there is one, else the CPU.

    Apple's GPUs are not used, because they have no float64.

    Raises:
        ConfigError: a GPU is requested and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise ConfigError("accelerator=gpu: torch finds no CUDA GPU; use accelerator=cpu or auto")
    return torch.device("cuda" if has_gpu and accelerator != "cpu" else "cpu")


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in full float32: cuDNN's convolutions round to TF32 by default."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(matmul)
