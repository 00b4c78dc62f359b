"""The evaluated model with its samples, and the oracle that classifies them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cvae import noise
from cvae.evaluation.claim import Metric, Metrics, NotApplicable
from cvae.evaluation.oracle import Oracle, Prediction
from cvae.evaluation.subject import Subject
from cvae.morphology import FACTORS, Values
from cvae.types import Condition, Image, Latent, Split
from harness.contract import seeds

_SEED = 0  # not the run's seed, so that all runs are evaluated with the same noise


class Factor(NamedTuple):
    """A factor of style for every image, in pixels or degrees; nan without ink."""

    test: Values
    reference: Values  # of training images
    samples: Values  # of decoder means


class Samples(NamedTuple):
    """Decoded samples of N(0, I); a conditional model decodes the same z with every label."""

    z: Latent
    labels: Int64[Tensor, " batch"]  # requested; predicted if the model takes none
    means: Image
    drawn: Image  # pixels sampled from p(x | z, y)
    features: Float[Tensor, "batch num_features"]  # oracle features of the means
    predicted: Int64[Tensor, " batch"]  # oracle predictions for the means
    requested: Condition | None  # y; None if the model takes none


@dataclass(eq=False)
class SampledSubject(Subject):
    """A subject with decoded samples, predictions of the oracle, and factors of style.

    The arguments are those of :class:`~cvae.evaluation.subject.Subject`.
    """

    oracle: Oracle = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.oracle = Oracle(
            self.train, self.validation, self.num_classes, self.cache, self.progress, self.device
        )
        super().__post_init__()

    def classifier_accuracy(self) -> dict[str, Metrics]:
        """Return the accuracy of the oracle on test images, grey and as inputs of the model."""
        if not self.oracle.is_used:
            return {}
        labels = self.test.labels
        oracle = {
            "oracle/accuracy": Metric.share(self.test_prediction.labels == labels),
            "oracle/accuracy_drawn": Metric.share(self.test_prediction_drawn.labels == labels),
        }
        return {"oracle": oracle}

    @cached_property
    def samples(self) -> Samples:
        """``num_generated`` samples per label."""
        self.progress("generating", 0.0)
        count = self.num_generated
        labels = self.classes.repeat_interleave(count)
        if self.model.conditional:
            z = self.sample_prior(count).repeat(len(self.classes), 1)
        else:
            z = self.sample_prior(len(labels))
        y = self._choose_condition(labels)
        means, drawn = self._decode_and_sample(z, y)
        predicted, features = self.oracle.predict(means)
        labels = labels if self.model.conditional else predicted
        return Samples(z, labels, means, drawn, features, predicted, y)

    def _choose_condition(self, labels: Int64[Tensor, " batch"]) -> Condition | None:
        """Return y to sample with: the labels, or y of training images if y is not a label."""
        if self.train.conditions is None:
            return self.condition(labels)
        rows = torch.arange(len(labels), device=self.device) % len(self.train.labels)
        return self.condition_of(self.train, rows)

    def decode_and_sample(
        self, z: Latent, labels: Int64[Tensor, " batch"], epoch: int = 0
    ) -> tuple[Image, Image]:
        """Return decoder means and images with sampled pixels, for these labels."""
        return self._decode_and_sample(z, self.condition(labels), epoch)

    @torch.no_grad()
    def _decode_and_sample(
        self, z: Latent, y: Condition | None, epoch: int = 0
    ) -> tuple[Image, Image]:
        """Return decoder means and images with sampled pixels, in [0, 1].

        Args:
            epoch: selects the noise of the pixels.
        """
        generator = _generator(epoch)
        parts = [
            (p.mean, p.sample(generator=generator).clamp(0, 1)) for p in self.decode_in_chunks(z, y)
        ]
        means, drawn = zip(*parts, strict=True)
        return torch.cat(means), torch.cat(drawn)

    @cached_property
    def test_grey(self) -> Image:
        return self.test.grey.float() / 255.0

    @cached_property
    def test_prediction(self) -> Prediction:
        """The oracle's predictions for the grey test images."""
        return self.oracle.predict(self.test_grey)

    @cached_property
    def test_prediction_drawn(self) -> Prediction:
        """The oracle's predictions for the test inputs of the model, usually binarized."""
        return self.oracle.predict(self.test.inputs.float() / 255.0)

    @cached_property
    def reference(self) -> Split:
        """As many training images as there are samples, to measure real data for comparison."""
        count = self.num_generated * len(self.classes)
        return self.train.select(slice(count))

    @property
    def binarized_share(self) -> float:
        """Share of binarized images in the training of classifiers and regressors of attributes."""
        return 0.5 if self.is_grey else 0.0

    @property
    def reference_inputs(self) -> Image:
        """The reference images as inputs of the model: binarized, or grey."""
        grey = self.reference.grey.float() / 255.0
        if not self.is_binary:
            return grey
        return torch.bernoulli(grey.cpu(), generator=_generator(0)).to(grey)

    @cached_property
    def factors(self) -> dict[str, Factor]:
        """Thickness and slant of real and of generated images.

        Raises:
            NotApplicable: the images have color.
        """
        if not self.is_grey:
            raise NotApplicable("thickness and slant need grey images")
        images = (self.test_grey, self.reference.grey.float() / 255.0, self.samples.means)
        factors = {}
        for name, measure in FACTORS.items():
            values = []
            for i, group in enumerate(images):
                self.progress(name, i / len(images))
                values.append(measure(group))
            factors[name] = Factor(*values)
        return factors

    @cached_property
    def reference_features(self) -> Float[Tensor, "num_images num_features"]:
        return self.oracle.predict(self.reference.grey.float() / 255.0).features


def _generator(epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seeds.derive_seed(_SEED, noise.Stream.SAMPLES, epoch))
