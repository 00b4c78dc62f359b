"""The evaluated model with its data and its latents, each computed once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cvae import noise
from cvae.conditions import OneHot
from cvae.evaluation.claim import Metrics, NotApplicable, Progress
from cvae.models import VAE, Autoencoder
from cvae.pixel_distribution import PixelDistribution
from cvae.priors import StandardNormal
from cvae.types import Batch, Condition, Image, Latent, Split

_SEED = 0  # not the run's seed, so that all runs are evaluated with the same noise
_CHUNK_SIZE = 1000  # images at a time
_MEAN_DRAWS = 16  # posterior samples to estimate the mean of a latent
_MEAN_EPOCH = 10_000  # epoch of their noise, used for nothing else


class Posterior(NamedTuple):
    """Diagonal Gaussian posteriors of all images of a split; std is 0 for a plain autoencoder.

    The latent is the base variable of the prior, computed from z; for N(0, I) it is z itself.
    """

    mean: Latent  # of the latent; estimated from posterior samples if the latent is not z
    location: Latent  # mean of z
    std: Latent
    to_latent: Callable[[Latent], Latent]
    mean_variance: Float[Tensor, " latent_dim"] | float = 0.0  # variance of the estimated mean

    def sample(self, epoch: int = 0) -> Latent:
        """Return one posterior sample of the latent per image, with new noise in every epoch."""
        return _sample_posterior(self.location, self.std, self.to_latent, epoch)


@torch.no_grad()
def _sample_posterior(
    location: Latent, std: Latent, to_latent: Callable[[Latent], Latent], epoch: int
) -> Latent:
    eps = noise.standard_normal(
        torch.arange(len(location), device=location.device),
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


def select_classes(split: Split, classes: Int64[Tensor, " num_classes"]) -> Split:
    """Return the images of these classes, or the same split if it has no others."""
    is_selected = torch.isin(split.labels, classes)
    return split if is_selected.all() else split.select(is_selected)


@dataclass(eq=False)
class Subject:
    """The model to evaluate and its data; results that several claims need are computed once.

    Labels without training images are not sampled and have no prior mass, and their validation and
    test images are left out.

    Args:
        model: the model, in evaluation mode; the claims are measured on its device.
        train: training images; the splits are moved to the device of the model.
        validation: validation images.
        test: test images.
        num_samples: K of the importance-weighted bound.
        num_generated: samples per label, for claims about samples.
        progress: called with the name of the current step and the fraction of it that is done.
        cache: folder for classifiers, which train once per data set; None for no cache.
        class_names: name of each class, for figures; None to show numbers.
    """

    model: Autoencoder
    train: Split
    validation: Split
    test: Split
    num_samples: int = 50
    num_generated: int = 1000
    progress: Progress = lambda step, share: None
    cache: Path | None = None
    class_names: Sequence[str] | None = None
    # one for each finished stage of cvae.evaluation.generative_classifier
    label_bounds: list[LabelBounds] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.train = self.train.to(self.device)
        self.validation, self.test = self.validation.to(self.device), self.test.to(self.device)
        self.validation = select_classes(self.validation, self.classes)
        self.test = select_classes(self.test, self.classes)

    @property
    def device(self) -> torch.device:
        """Device of the model and of the images."""
        return self.model.output_bias.device

    @cached_property
    def classes(self) -> Int64[Tensor, " num_trained"]:
        """Labels that have training images, in order."""
        return self.train.labels.unique()

    @property
    def is_grey(self) -> bool:
        """True if the images have one channel."""
        return self.test.grey.shape[1] == 1

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @property
    def is_binary(self) -> bool:
        """True if the pixels that the model takes are 0 or 1."""
        return self.model.likelihood.num_levels == 2

    def classifier_accuracy(self) -> dict[str, Metrics]:
        """Return the accuracy of the classifiers that claims have used, by classifier."""
        return {}

    def inputs(
        self, split: Split, index: Int64[Tensor, " batch"]
    ) -> tuple[Image, Condition | None]:
        """Return the model's input images, and y if it is conditional."""
        return split.inputs[index].float() / 255.0, self.condition_of(split, index)

    def condition_of(self, split: Split, index: Int64[Tensor, " batch"]) -> Condition | None:
        """Return y of images of a split for a conditional model, None for others."""
        if split.conditions is None or not self.model.conditional:
            return self.condition(split.labels[index])
        return split.conditions[index]

    def test_batch(self, index: Int64[Tensor, " batch"]) -> Batch:
        """Return a batch of test images with their y, also for unconditional models."""
        x, _ = self.inputs(self.test, index)
        if self.test.conditions is not None:
            return Batch(x, self.test.conditions[index], index, len(index))
        one_hot = torch.nn.functional.one_hot(self.test.labels[index], self.num_classes)
        return Batch(x, one_hot.float(), index, len(index))

    def condition(self, labels: Int64[Tensor, " batch"]) -> Condition | None:
        """Return one-hot labels for a conditional model, None for others."""
        if not self.model.conditional:
            return None
        return torch.nn.functional.one_hot(labels, self.num_classes).float()

    def _row_indices(self, count: int) -> Sequence[Int64[Tensor, " batch"]]:
        return torch.arange(count, device=self.device).split(_CHUNK_SIZE)

    @torch.no_grad()
    def _encode(self, split: Split) -> Posterior:
        means, stds = [], []
        for index in self._row_indices(len(split.labels)):
            q = self.model.encode(*self.inputs(split, index))
            means.append(q if isinstance(q, Tensor) else q.mean)
            stds.append(torch.zeros_like(q) if isinstance(q, Tensor) else q.stddev)
        location, std = torch.cat(means), torch.cat(stds)
        model = self.model
        if not isinstance(model, VAE) or isinstance(model.prior, StandardNormal):
            return Posterior(location, location, std, lambda z: z)

        def to_latent(z: Latent) -> Latent:
            rows = self._row_indices(len(z))
            return torch.cat([model.to_base(z[i], self.condition_of(split, i)) for i in rows])

        draws = [
            _sample_posterior(location, std, to_latent, _MEAN_EPOCH + i) for i in range(_MEAN_DRAWS)
        ]
        w = torch.stack(draws)
        mean_variance = w.var(0).mean(0) / _MEAN_DRAWS
        return Posterior(w.mean(0), location, std, to_latent, mean_variance)

    @cached_property
    def train_posterior(self) -> Posterior:
        return self._encode(self.train)

    @cached_property
    def validation_posterior(self) -> Posterior:
        return self._encode(self.validation)

    @cached_property
    def test_posterior(self) -> Posterior:
        return self._encode(self.test)

    def sample_prior(self, count: int, epoch: int = 0) -> Latent:
        """Return samples of N(0, I), the same for every run and new in every epoch."""
        return noise.standard_normal(
            torch.arange(count, device=self.device),
            (self.model.latent_dim,),
            seed=_SEED,
            stream=noise.Stream.PRIOR,
            epoch=epoch,
        )

    @torch.no_grad()
    def decode(self, z: Latent, labels: Int64[Tensor, " batch"]) -> Image:
        """Return the decoder's means; an unconditional model ignores the labels."""
        return torch.cat([p.mean for p in self.decode_in_chunks(z, self.condition(labels))])

    def decode_in_chunks(self, z: Latent, y: Condition | None) -> Iterator[PixelDistribution]:
        """Yield p(x | z, y) for 1,000 rows at a time."""
        for index in self._row_indices(len(z)):
            yield self.model.decode(z[index], None if y is None else y[index])


def require_vae(subject: Subject) -> VAE:
    """Check that the model has a bound, and return it.

    Raises:
        NotApplicable: the model is a plain autoencoder.
    """
    if not isinstance(subject.model, VAE):
        raise NotApplicable("a plain autoencoder has no bound")
    return subject.model


def require_label(subject: Subject) -> Autoencoder:
    """Check that the condition of the model is one label, and return the model.

    Raises:
        NotApplicable: the model takes no label, or other attributes.
    """
    if not subject.model.conditional:
        raise NotApplicable("the model takes no label")
    reject_attributes(subject)
    return subject.model


def reject_attributes(subject: Subject) -> None:
    """Check that the model takes no condition other than one label.

    Raises:
        NotApplicable: the model takes other attributes.
    """
    if subject.model.conditional and not isinstance(subject.model.condition, OneHot):
        parts = ", ".join(subject.model.condition.parts)
        raise NotApplicable(f"the condition is not one label but {parts}")
