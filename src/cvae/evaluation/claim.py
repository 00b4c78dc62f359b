"""What every claim is measured on, and what a measurement is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from cvae import noise
from cvae.evaluation.oracle import Oracle, Prediction, Progress
from cvae.models import VAE, Autoencoder
from cvae.priors import StandardNormal
from cvae.types import Image, Latent, OneHot, Split

_SEED = 0  # never a run's: all runs are measured with the same draws
_ROWS = 1000  # images at a time
_MEAN_DRAWS = 16  # of the latent, for its mean
_MEAN_EPOCH = 10_000  # of their noise: used for nothing else
_NUM_RESAMPLES = 200  # of the bootstrap


class Metric(NamedTuple):
    """One measured quantity."""

    value: float
    unit: str = ""  # "%" for a share, of which value is the fraction; nats, bits, pixels
    standard_error: float | None = None  # over images or over draws of z; None where unknown
    floor: float | None = None  # the same quantity of real images, or by chance
    at_least: float | None = None  # targets of the default CVAE on MNIST
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the value is within its target; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def standing(self) -> Literal["met", "near", "missed"] | None:
        """Whether the target is met; "near" within two standard errors of it, None without one."""
        if self.is_met is None:
            return None
        margin = 2 * (self.standard_error or 0.0)
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if any(abs(self.value - bound) <= margin for bound in bounds) and margin > 0:
            return "near"
        return "met" if self.is_met else "missed"


Metrics = dict[str, Metric]
Claim = Callable[["Subject"], Metrics]


class NotApplicable(Exception):  # noqa: N818 - a fact about a model, not an error
    """Why a claim says nothing about a model."""


class Posterior(NamedTuple):
    """What is inferred of all images of a split: diagonal Gaussians, of no width for plain codes.

    The latent is a function of the Gaussian's z: of a flow prior the base variable, else z itself.
    """

    mean: Latent  # of the latent, by some draws where it is not z
    location: Latent
    std: Latent
    to_latent: Callable[[Latent], Latent]
    mean_error: Float[Tensor, " latent_dim"] | float = 0.0  # variance of the mean, as it is found

    def draw(self, epoch: int = 0) -> Latent:
        """One point of the latent for each image, anew in every epoch."""
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


class Samples(NamedTuple):
    """Decoded draws of N(0, I): of a conditional model, the same z for every label in turn."""

    z: Latent
    labels: Int64[Tensor, " batch"]  # asked for; of a model that takes none, the oracle's
    means: Image
    drawn: Image  # from the Bernoulli of every pixel
    features: Float[Tensor, "batch num_features"]  # of the means, by the oracle
    predicted: Int64[Tensor, " batch"]  # by the oracle, from the means


@dataclass(eq=False)
class Subject:
    """A model and the data that it is measured on; what several claims need is computed once.

    Labels without training images are not sampled and have no prior mass, and their validation and
    test images are left out.

    Args:
        model: in evaluation mode, on the CPU.
        num_samples: K of the importance-weighted bound.
        num_generated: samples for each label.
        progress: told what is being done, and which share of it is.
    """

    model: Autoencoder
    train: Split
    validation: Split
    test: Split
    oracle: Oracle
    num_samples: int = 50
    num_generated: int = 1000
    progress: Progress = lambda doing, share: None

    def __post_init__(self) -> None:
        self.validation = self.validation.of(self.classes)
        self.test = self.test.of(self.classes)

    @cached_property
    def classes(self) -> Int64[Tensor, " num_trained"]:
        """Labels that have training images, in order."""
        return self.train.labels.unique()

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    def inputs(self, split: Split, index: Int64[Tensor, " batch"]) -> tuple[Image, OneHot | None]:
        """Images as the model sees them, and their labels if it does."""
        return split.inputs[index].float() / 255.0, self.condition(split.labels[index])

    def condition(self, labels: Int64[Tensor, " batch"]) -> OneHot | None:
        """What a conditional model is told, None for others."""
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
        """The same points of N(0, I) for every run, anew in every epoch."""
        return noise.standard_normal(
            torch.arange(count),
            (self.model.latent_dim,),
            seed=_SEED,
            stream=noise.Stream.PRIOR,
            epoch=epoch,
        )

    @torch.no_grad()
    def decode(self, z: Latent, labels: Int64[Tensor, " batch"]) -> Image:
        """The decoder's means; labels count for a conditional model alone."""
        parts = zip(z.split(_ROWS), labels.split(_ROWS), strict=True)
        return torch.cat([self.model.decode(a, self.condition(b)).mean for a, b in parts])

    @cached_property
    def samples(self) -> Samples:
        """``num_generated`` for each label."""
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
        """The oracle's, of the grey test images."""
        return self.oracle.predict(self.test_grey)

    @cached_property
    def test_prediction_drawn(self) -> Prediction:
        """The oracle's, of the test images as the model sees them: binarized, mostly."""
        return self.oracle.predict(self.test.inputs.float() / 255.0)

    @cached_property
    def reference(self) -> Split:
        """As many training images as there are samples: their metrics are those of real data."""
        return self.train.first(self.num_generated * len(self.classes))

    @cached_property
    def reference_features(self) -> Float[Tensor, "num_images num_features"]:
        return self.oracle.predict(self.reference.grey.float() / 255.0).features


def bernoulli(means: Image, epoch: int = 0) -> Image:
    """Pixels drawn from their means, the same ones for every run."""
    seed = noise.derive_seed(_SEED, noise.Stream.SAMPLES, epoch)
    generator = torch.Generator().manual_seed(seed)
    return torch.bernoulli(means, generator=generator)


def as_vae(subject: Subject) -> VAE:
    """The model, if it has a bound.

    Raises:
        NotApplicable: it is a plain autoencoder.
    """
    if not isinstance(subject.model, VAE):
        raise NotApplicable("a plain autoencoder has no bound")
    return subject.model


def conditional_model(subject: Subject) -> Autoencoder:
    """The model, if it takes a label.

    Raises:
        NotApplicable: it does not.
    """
    if not subject.model.conditional:
        raise NotApplicable("the model takes no label")
    return subject.model


def standard_error(values: NDArray[np.float64] | Tensor) -> float:
    """Of the mean of independent values."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else 0.0


def bootstrap_error(statistic: Callable[[NDArray[np.int64]], float], size: int) -> float:
    """Standard error of a statistic of ``size`` observations, given their resampled indices."""
    rng = np.random.default_rng(_SEED)
    values = [statistic(rng.integers(0, size, size)) for _ in range(_NUM_RESAMPLES)]
    return float(np.nanstd(values))
