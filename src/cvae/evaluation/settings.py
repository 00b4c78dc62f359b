"""Settings of evaluate.py: names of claims and of devices. Imports no torch."""

from typing import Literal

Claim = Literal[
    "bound",
    "label_control",
    "attribute_control",
    "classification_accuracy",
    "generative_classifier",
    "latent_independence",
    "latent_content",
    "style",
    "aggregated_posterior",
    "variety",
    "prior_samples",
]

Accelerator = Literal["auto", "cpu", "gpu"]

QUICK: tuple[Claim, ...] = ("bound", "label_control", "attribute_control")  # claims=quick
