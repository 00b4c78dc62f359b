"""Settings of evaluate.py: names of claims and of devices. Imports no torch."""

from typing import Literal

Claim = Literal[
    "bound",
    "generative_classifier",
]

Accelerator = Literal["auto", "cpu", "gpu"]

QUICK: tuple[Claim, ...] = ("bound",)  # claims=quick
