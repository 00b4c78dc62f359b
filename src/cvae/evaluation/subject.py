"""The evaluated model with its data, its samples and its latents, each computed once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cvae import noise
from cvae.evaluation.claim import NotApplicable
from cvae.evaluation.morphology import FACTORS, Factor
from cvae.evaluation.oracle import Oracle, Prediction, Progress
from cvae.models import VAE, Autoencoder
from cvae.priors import StandardNormal
from cvae.types import Batch, Image, Latent, OneHot, Split
from harness.contract import seeds

_SEED = 0  # not the run's seed, so that all runs are evaluated with the same noise
_ROWS = 1000  # images at a time
_MEAN_DRAWS = 16  # posterior samples to estimate the mean of a latent
_MEAN_EPOCH = 10_000  # epoch of their noise, used for nothing else


class Posterior(NamedTuple):
    """Diagonal Gaussian posteriors of all images of a split; std is 0 for a plain autoencoder.

    The latent is the base variable of a flow prior, computed from z, or else z itself.
    """

    mean: Latent  # of the latent; estimated from posterior samples if the latent is not z
    location: Latent  # mean of z
    std: Latent
    to_latent: Callable[[Latent], Latent]
    mean_error: Float[Tensor, " latent_dim"] | float = 0.0  # variance of the estimated mean

    def draw(self, epoch: int = 0) -> Latent:
        """Return one posterior sample of the latent per image, with new noise in every epoch."""
        return _posterior_draw(self.location, self.std, self.to_latent, epoch)


@torch.no_grad()
def _posterior_draw(
    location: Latent, std: Latent, to_latent: Callable[[Latent], Latent], epoch: int
) -> Latent:
    eps = noise.standard_normal(
        torch.arange(len(location)),
        (location.shape[1],),
        seed=_SEED,
        stream=noise.Stream.POSTERIOR,
        epoch=epoch,
    )
    return to_latent(location + std * eps)


class LabelBounds(NamedTuple):
    """Lower bounds on log p(x | y) of the test images, for every label."""

    log_p: Float[Tensor, "num_images num_trained"]  # labels as in Subject.classes
    pairs: Int64[Tensor, " num_pairs"]  # to refine: image * num_trained + label position


class Samples(NamedTuple):
    """Decoded samples of N(0, I); a conditional model decodes the same z with every label."""

    z: Latent
    labels: Int64[Tensor, " batch"]  # requested; predicted if the model takes none
    means: Image
    drawn: Image  # pixels sampled from the means
    features: Float[Tensor, "batch num_features"]  # oracle features of the means
    predicted: Int64[Tensor, " batch"]  # oracle predictions for the means


def of_classes(split: Split, classes: Int64[Tensor, " num_classes"]) -> Split:
    """Return the images of these classes, or the split itself if it has no others."""
    wanted = torch.isin(split.labels, classes)
    return split if wanted.all() else Split(*(part[wanted] for part in split))


@dataclass(eq=False)
class Subject:
    """The model to evaluate and its data; results that several claims need are computed once.

    Labels without training images are not sampled and have no prior mass, and their validation and
    test images are left out.

    Args:
        model: the model, in evaluation mode, on the CPU.
        train: training images.
        validation: validation images.
        test: test images.
        oracle: classifier of real images.
        num_samples: K of the importance-weighted bound.
        num_generated: samples per label.
        progress: called with the name of the current work and the share of it that is done.
    """

    model: Autoencoder
    train: Split
    validation: Split
    test: Split
    oracle: Oracle
    num_samples: int = 50
    num_generated: int = 1000
    progress: Progress = lambda doing, share: None
    # one for each finished stage of cvae.evaluation.generative_classifier
    label_bounds: list[LabelBounds] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.validation = of_classes(self.validation, self.classes)
        self.test = of_classes(self.test, self.classes)

    @cached_property
    def classes(self) -> Int64[Tensor, " num_trained"]:
        """Labels that have training images, in order."""
        return self.train.labels.unique()

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    def inputs(self, split: Split, index: Int64[Tensor, " batch"]) -> tuple[Image, OneHot | None]:
        """Return images as the model sees them, and one-hot labels if it is conditional."""
        return split.inputs[index].float() / 255.0, self.condition(split.labels[index])

    def test_batch(self, index: Int64[Tensor, " batch"]) -> Batch:
        """Return a batch of test images with one-hot labels, also for unconditional models."""
        x, _ = self.inputs(self.test, index)
        one_hot = torch.nn.functional.one_hot(self.test.labels[index], self.num_classes)
        return Batch(x, one_hot.float(), index, len(index))

    def condition(self, labels: Int64[Tensor, " batch"]) -> OneHot | None:
        """Return one-hot labels for a conditional model, None for others."""
        if not self.model.conditional:
            return None
        return torch.nn.functional.one_hot(labels, self.num_classes).float()

    @torch.no_grad()
    def _encode(self, split: Split) -> Posterior:
        means, stds = [], []
        for index in torch.arange(len(split.labels)).split(_ROWS):
            q = self.model.encode(*self.inputs(split, index))
            means.append(q if isinstance(q, Tensor) else q.mean)
            stds.append(torch.zeros_like(q) if isinstance(q, Tensor) else q.stddev)
        location, std = torch.cat(means), torch.cat(stds)
        prior = getattr(self.model, "prior", None)
        if prior is None or isinstance(prior, StandardNormal):
            return Posterior(location, location, std, lambda z: z)

        def to_latent(z: Latent) -> Latent:
            return torch.cat([prior.to_base(part)[0] for part in z.split(_ROWS)])

        draws = [
            _posterior_draw(location, std, to_latent, _MEAN_EPOCH + i) for i in range(_MEAN_DRAWS)
        ]
        w = torch.stack(draws)
        mean_error = w.var(0).mean(0) / _MEAN_DRAWS
        return Posterior(w.mean(0), location, std, to_latent, mean_error)

    @cached_property
    def train_posterior(self) -> Posterior:
        return self._encode(self.train)

    @cached_property
    def validation_posterior(self) -> Posterior:
        return self._encode(self.validation)

    @cached_property
    def test_posterior(self) -> Posterior:
        return self._encode(self.test)

    def prior_draws(self, count: int, epoch: int = 0) -> Latent:
        """Return samples of N(0, I), the same for every run and new in every epoch."""
        return noise.standard_normal(
            torch.arange(count),
            (self.model.latent_dim,),
            seed=_SEED,
            stream=noise.Stream.PRIOR,
            epoch=epoch,
        )

    @torch.no_grad()
    def decode(self, z: Latent, labels: Int64[Tensor, " batch"]) -> Image:
        """Return the decoder's means; an unconditional model ignores the labels."""
        parts = zip(z.split(_ROWS), labels.split(_ROWS), strict=True)
        return torch.cat([self.model.decode(a, self.condition(b)).mean for a, b in parts])

    @cached_property
    def samples(self) -> Samples:
        """``num_generated`` samples per label."""
        self.progress("generating", 0.0)
        count = self.num_generated
        labels = self.classes.repeat_interleave(count)
        if self.model.conditional:
            z = self.prior_draws(count).repeat(len(self.classes), 1)
        else:
            z = self.prior_draws(len(labels))
        means = self.decode(z, labels)
        predicted, features = self.oracle.predict(means)
        labels = labels if self.model.conditional else predicted
        return Samples(z, labels, means, bernoulli(means), features, predicted)

    @cached_property
    def test_grey(self) -> Image:
        return self.test.grey.float() / 255.0

    @cached_property
    def test_prediction(self) -> Prediction:
        """The oracle's predictions for the grey test images."""
        return self.oracle.predict(self.test_grey)

    @cached_property
    def test_prediction_drawn(self) -> Prediction:
        """The oracle's predictions for the test images as the model sees them, mostly binarized."""
        return self.oracle.predict(self.test.inputs.float() / 255.0)

    @cached_property
    def reference(self) -> Split:
        """As many training images as there are samples, to measure real data for comparison."""
        count = self.num_generated * len(self.classes)
        return Split(*(part[:count] for part in self.train))

    @cached_property
    def factors(self) -> dict[str, Factor]:
        """Thickness and slant of real and of generated images."""
        images = (self.test_grey, self.reference.grey.float() / 255.0, self.samples.means)
        found = {}
        for name, measure in FACTORS.items():
            values = []
            for i, group in enumerate(images):
                self.progress(name, i / len(images))
                values.append(measure(group))
            found[name] = Factor(*values)
        return found

    @cached_property
    def reference_features(self) -> Float[Tensor, "num_images num_features"]:
        return self.oracle.predict(self.reference.grey.float() / 255.0).features


def bernoulli(means: Image, epoch: int = 0) -> Image:
    """Sample pixels from their means, with the same noise for every run."""
    seed = seeds.derive_seed(_SEED, noise.Stream.SAMPLES, epoch)
    generator = torch.Generator().manual_seed(seed)
    return torch.bernoulli(means, generator=generator)


def as_vae(subject: Subject) -> VAE:
    """Return the model if it has a bound.

    Raises:
        NotApplicable: the model is a plain autoencoder.
    """
    if not isinstance(subject.model, VAE):
        raise NotApplicable("a plain autoencoder has no bound")
    return subject.model


def conditional_model(subject: Subject) -> Autoencoder:
    """Return the model if it takes a label.

    Raises:
        NotApplicable: the model takes no label.
    """
    if not subject.model.conditional:
        raise NotApplicable("the model takes no label")
    return subject.model
