"""Claim: decoded samples of N(0, I) look like digits, unlike those of a plain autoencoder."""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cvae.evaluation.claim import Metric, Metrics
from cvae.evaluation.probes import Points
from cvae.evaluation.sampled import SampledSubject
from cvae.models import VAE

_NUM_COMPONENTS = 10
_SEED = 0

Features = Float[Tensor, "_ num_features"]


def prior_samples(subject: SampledSubject) -> Metrics:
    """Return the Frechet distance between decoded samples of N(0, I) and test digits.

    ``frechet_distance`` compares the oracle's features of decoder means with those of test images,
    ``frechet_distance_drawn`` those of sampled pixels with those of the model's inputs. For
    fairness, a plain autoencoder is also sampled from a Gaussian and from a mixture of ten
    Gaussians, fitted to its codes of training images. The floors are the distances between as many
    training images and the test digits.
    """
    samples, oracle = subject.samples, subject.oracle
    test_grey, test_drawn = subject.test_prediction.features, subject.test_prediction_drawn.features
    reference_drawn = oracle.predict(subject.reference_inputs).features
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
        z = sample_fitted_mixture(subject.train_posterior.mean, components, len(samples.labels))
        features = oracle.predict(subject.decode(z, samples.labels)).features
        metrics[f"samples/frechet_distance_{name}"] = Metric(
            frechet_distance(features, test_grey), floor=floor
        )
    return metrics


class _Identity(nn.Module):
    """Identity, for a metric that would otherwise extract features from images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Features) -> Features:
        return features


def frechet_distance(a: Features, b: Features) -> float:
    """Return the squared Frechet distance of Gaussians fitted to two sets of features.

    Heusel et al. 2017 use the features of Inception, which was not trained on digits.
    """
    metric = FrechetInceptionDistance(_Identity(a.shape[1])).set_dtype(torch.float64)
    metric.update(a.cpu().double(), real=False)
    metric.update(b.cpu().double(), real=True)
    return float(metric.compute())


def sample_fitted_mixture(codes: Points, num_components: int, count: int) -> Points:
    """Return samples of a mixture of Gaussians that is fitted to codes by maximum likelihood.

    The CPU fits and samples; the result is on the device of the codes.
    """
    points = codes.double().cpu().numpy()
    num_components = min(num_components, len(np.unique(points, axis=0)))
    mixture = GaussianMixture(num_components, random_state=_SEED, reg_covar=1e-4)
    points, _ = mixture.fit(points).sample(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))
    return torch.from_numpy(points).float()[order].to(codes.device)
