"""Logging of pictures to Weights & Biases and TensorBoard."""

from collections.abc import Iterable

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image


def log_picture(loggers: Iterable[Logger], name: str, picture: Image.Image, step: int) -> None:
    """Log a picture to Weights & Biases and TensorBoard, if the run uses them."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=step)
        elif isinstance(logger, TensorBoardLogger):
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
