"""Distribution of images with the interface of torch.distributions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from cvae.likelihoods import Likelihood, LogProbs
from cvae.types import Image, Parameters


class PixelDistribution(Distribution):
    """Distribution of images, defined by a likelihood and its parameters.

    Args:
        likelihood: the likelihood.
        parameters: those of each image, (batch, num_parameters, channel, height, width).
        complete: function that copies the given pixels of y into images; by default, it returns
            the images unchanged.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        parameters: Parameters,
        complete: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        batch, event = parameters.shape[:-4], parameters.shape[-3:]
        super().__init__(batch, event, validate_args=False)
        self.likelihood = likelihood
        self.parameters = parameters
        self._complete = complete

    @property
    def mean(self) -> Tensor:
        return self._complete(self.likelihood.mean(self.parameters))

    def log_prob(self, value: Image) -> LogProbs:
        """Return log p(x) of each image in nats, over all pixels, given ones included."""
        x = value.expand(*self.batch_shape, *self.event_shape)
        return self.likelihood.log_prob(x, self.parameters)

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        parameters = self.parameters.expand(*sample_shape, *self.parameters.shape)
        return self._complete(self.likelihood.sample(parameters, generator))
