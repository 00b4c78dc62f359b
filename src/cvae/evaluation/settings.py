"""Types and ranges of evaluate.yaml. Never imports torch."""

from typing import Annotated

from harness.contract.settings import AtLeast, Between, Name, OneOf

CLAIMS = (
    "bound",
    "label_control",
    "classification_accuracy",
    "generative_classifier",
    "latent_independence",
    "style",
    "aggregated_posterior",
    "variety",
    "prior_samples",
)
_Claim = Annotated[str, OneOf(*CLAIMS)]


class Evaluate:
    """Top level of evaluate.yaml."""

    run: Name
    trust: Name | list[Name] | None
    claims: _Claim | list[_Claim] | None
    num_samples: Annotated[int, Between(1, 1_000_000)]
    num_generated: Annotated[int, AtLeast(10)]
    figures: bool
