"""The claims, and the figures that they draw, by their name in evaluate.yaml."""

from collections.abc import Callable, Mapping

from PIL import Image as PILImage

from cvae.evaluation.aggregated_posterior import aggregated_posterior
from cvae.evaluation.attribute_control import attribute_control
from cvae.evaluation.bound import bound
from cvae.evaluation.claim import Metrics
from cvae.evaluation.classification_accuracy import classification_accuracy
from cvae.evaluation.generative_classifier import generative_classifier
from cvae.evaluation.label_control import label_control
from cvae.evaluation.latent_content import latent_content
from cvae.evaluation.latent_independence import latent_independence
from cvae.evaluation.prior_samples import prior_samples
from cvae.evaluation.sampled import SampledSubject as Subject
from cvae.evaluation.style import draw_traversals, style
from cvae.evaluation.variety import variety

__all__ = ["CLAIMS", "FIGURES", "Subject"]

CLAIMS: Mapping[str, Callable[[Subject], Metrics]] = {
    "bound": bound,
    "label_control": label_control,
    "attribute_control": attribute_control,
    "classification_accuracy": classification_accuracy,
    "generative_classifier": generative_classifier,
    "latent_independence": latent_independence,
    "latent_content": latent_content,
    "style": style,
    "aggregated_posterior": aggregated_posterior,
    "variety": variety,
    "prior_samples": prior_samples,
}

FIGURES: Mapping[str, Callable[[Subject], dict[str, PILImage.Image]]] = {"style": draw_traversals}
