"""Names of the claims that evaluate.py measures. Imports no torch."""

from typing import Literal

Claim = Literal[
    "bound",
    "generative_classifier",
]

QUICK: tuple[Claim, ...] = ("bound",)  # claims=quick
