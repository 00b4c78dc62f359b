"""The claims, and the figures that they draw, by their name in evaluate.yaml."""

from collections.abc import Callable, Mapping

from PIL import Image as PILImage

from cvae.evaluation.bound import bound
from cvae.evaluation.claim import Metrics
from cvae.evaluation.generative_classifier import generative_classifier
from cvae.evaluation.subject import Subject

__all__ = ["CLAIMS", "FIGURES", "Subject"]

CLAIMS: Mapping[str, Callable[[Subject], Metrics]] = {
    "bound": bound,
    "generative_classifier": generative_classifier,
}

FIGURES: Mapping[str, Callable[[Subject], dict[str, PILImage.Image]]] = {}
