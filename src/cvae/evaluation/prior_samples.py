"""Decoding a random point: a reasonable image from a VAE, and not from a plain autoencoder."""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.probes import Points
from cvae.evaluation.subject import Subject, bernoulli
from cvae.models import VAE

_NUM_COMPONENTS = 10
_SEED = 0

Features = Float[Tensor, "_ num_features"]


def prior_samples(subject: Subject) -> Metrics:
    """Frechet distance in the oracle's features of decoded draws of N(0, I) from test digits.

    Of decoder means from grey digits, and of Bernoulli samples from binarized ones. For fairness a
    plain autoencoder is also sampled from a Gaussian and from a mixture of ten, fitted to its codes
    of training images. The floors are those of as many training images.
    """
    samples, oracle = subject.samples, subject.oracle
    test_grey, test_drawn = subject.test_prediction.features, subject.test_prediction_drawn.features
    reference_drawn = oracle.predict(bernoulli(subject.reference.grey.float() / 255.0)).features
    floor = frechet_distance(subject.reference_features, test_grey)
    drawn_floor = frechet_distance(reference_drawn, test_drawn)
    drawn = oracle.predict(samples.drawn).features
    metrics = {
        "samples/frechet_distance": Metric(
            frechet_distance(samples.features, test_grey), floor=floor
        ),
        "samples/frechet_distance_drawn": Metric(
            frechet_distance(drawn, test_drawn), floor=drawn_floor
        ),
    }
    if isinstance(subject.model, VAE):
        return metrics
    for name, components in (("gaussian", 1), ("mixture", _NUM_COMPONENTS)):
        subject.progress(f"fitting a {name} to the codes", 0.0)
        z = fitted_draws(subject.train_posterior.mean, components, len(samples.labels))
        features = oracle.predict(subject.decode(z, samples.labels)).features
        metrics[f"samples/frechet_distance_{name}"] = Metric(
            frechet_distance(features, test_grey), floor=floor
        )
    return metrics


class _AsTheyAre(nn.Module):
    """Features in the place of images, for a metric that would extract its own."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Features) -> Features:
        return features


def frechet_distance(a: Features, b: Features) -> float:
    """Squared Frechet distance of the Gaussians with the moments of two sets of features.

    The quantity of Heusel et al. 2017, who take Inception's features, which know no digits.
    """
    metric = FrechetInceptionDistance(_AsTheyAre(a.shape[1])).set_dtype(torch.float64)
    metric.update(a.double(), real=False)
    metric.update(b.double(), real=True)
    return float(metric.compute())


def fitted_draws(codes: Points, num_components: int, count: int) -> Points:
    """Draws of a mixture of Gaussians, fitted to codes by maximum likelihood."""
    points = codes.double().numpy()
    num_components = min(num_components, len(np.unique(points, axis=0)))
    mixture = GaussianMixture(num_components, random_state=_SEED, reg_covar=1e-4)
    points, _ = mixture.fit(points).sample(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))
    return torch.from_numpy(points).float()[order]
