"""Priors p(z) or p(z | y), each an invertible map between z and a base variable w ~ N(0, I).

"The latent" in other modules is w: models sample and decode w and embed images as w, and metrics
measure it. Only ``encode`` and ``posterior`` return z. For the standard normal prior, w is z. Under
p(z | y), z depends on y, but w does not, so w holds what y leaves out.

To add a prior, write a class with the two methods of :class:`Prior` and name it in ``_target_`` of
a YAML file in conf/model/prior/.
"""

from collections.abc import Callable
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from annotated_types import Interval
from torch import Tensor, nn

from cvae.types import Condition, Latent, Nats
from harness.contract.settings import Size

_MAX_LOG_SCALE = 3.0  # bound on |log scale| of a coupling


@runtime_checkable
class Prior(Protocol):
    """Invertible map between z and a base variable w ~ N(0, I), for each y."""

    def to_base(self, z: Latent, y: Condition | None) -> tuple[Latent, Nats]:
        """Return w and log |det dw/dz|, so log p(z | y) = log N(w; 0, I) + log |det dw/dz|.

        Args:
            y: the condition of each row; None in an unconditional model. A prior may ignore it.
        """
        ...

    def from_base(self, w: Latent, y: Condition | None) -> Latent:
        """Return z, the inverse of :meth:`to_base`."""
        ...


@runtime_checkable
class PriorFactory(Protocol):
    """Constructor of a prior, with the arguments that the model passes.

    Set further arguments of your prior in its YAML file.
    """

    def __call__(self, *, latent_dim: int, condition_size: int) -> Prior:
        """Build a prior.

        Args:
            latent_dim: dimensions of z.
            condition_size: length of the encoded y, such as the number of classes; 0 without y.
        """
        ...


class StandardNormal(nn.Module):
    """Standard normal prior p(z) = N(0, I), with w = z."""

    def __init__(self, latent_dim: int, condition_size: int) -> None:
        super().__init__()

    def to_base(self, z: Latent, y: Condition | None) -> tuple[Latent, Nats]:
        return z, z.new_zeros(z.shape[0])

    def from_base(self, w: Latent, y: Condition | None) -> Latent:
        return w


class Conditional(nn.Module):
    r"""Diagonal Gaussian prior that depends on y (Sohn, Lee and Yan 2015).

    .. math:: p(z | y) = N(z; \mu(y), \mathrm{diag}(\sigma^2(y))), \quad
        w = (z - \mu(y)) / \sigma(y)

    A perceptron with one hidden layer computes :math:`\mu` and :math:`\log \sigma` from y. The
    prior is initialized to N(0, I).

    Example::

        prior = functools.partial(Conditional, hidden_dim=128)
        model = CVAE(network, latent_dim=32, prior=prior)

    Args:
        latent_dim: dimensions of z.
        condition_size: length of the encoded y, at least 1.
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, latent_dim: int, condition_size: int, hidden_dim: Size = 128) -> None:
        super().__init__()
        if condition_size < 1:
            raise ValueError("model/prior=conditional: needs a conditional model (model=cvae)")
        last = nn.Linear(hidden_dim, 2 * latent_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(condition_size, hidden_dim), nn.SiLU(), last)

    def _mean_and_log_std(self, y: Condition | None) -> tuple[Latent, Latent]:
        assert y is not None
        mean, raw = self.net(y).chunk(2, dim=-1)
        return mean, _MAX_LOG_SCALE * torch.tanh(raw / _MAX_LOG_SCALE)

    def to_base(self, z: Latent, y: Condition | None) -> tuple[Latent, Nats]:
        with torch.autocast(z.device.type, enabled=False):
            mean, log_std = self._mean_and_log_std(y)
            return (z - mean) * torch.exp(-log_std), -log_std.sum(-1)

    def from_base(self, w: Latent, y: Condition | None) -> Latent:
        with torch.autocast(w.device.type, enabled=False):
            mean, log_std = self._mean_and_log_std(y)
            return mean + log_std.exp() * w


class Coupling(nn.Module):
    """Affine coupling: scale and shift half of z as a function of the other half, swap the halves.

    The halves are slices, because indexing by a mask synchronizes with the GPU.
    """

    def __init__(self, size: int, hidden_dim: int) -> None:
        super().__init__()
        self.first, self.second = size - size // 2, size // 2
        last = nn.Linear(hidden_dim, 2 * self.second)
        nn.init.zeros_(last.weight)  # starts as the identity
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(self.first, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
            last,
        )

    def _scale_and_shift(self, first: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(first).chunk(2, dim=-1)
        return _MAX_LOG_SCALE * torch.tanh(raw / _MAX_LOG_SCALE), shift

    def forward(self, z: Latent) -> tuple[Latent, Nats]:
        """Return the transformed z and the log-determinant of the transform."""
        first, second = z.split((self.first, self.second), dim=-1)
        log_scale, shift = self._scale_and_shift(first)
        return torch.cat((second * log_scale.exp() + shift, first), dim=-1), log_scale.sum(-1)

    def inverse(self, w: Latent) -> Latent:
        moved, first = w.split((self.second, self.first), dim=-1)
        log_scale, shift = self._scale_and_shift(first)
        return torch.cat((first, (moved - shift) * torch.exp(-log_scale)), dim=-1)


class Flow(nn.Module):
    r"""Normalizing flow of affine couplings, initialized to N(0, I) (real NVP, Dinh et al. 2017).

    .. math:: \log p(z) = \log N(f(z); 0, I) + \log |\det \partial f / \partial z|

    f maps z to the base variable w; it does not depend on y.

    Example::

        prior = functools.partial(Flow, num_couplings=4, hidden_dim=128)
        model = CVAE(network, latent_dim=32, prior=prior)

    Args:
        latent_dim: dimensions of z, at least 2.
        condition_size: length of y, which this prior ignores.
        num_couplings: number of couplings; each transforms half of the dimensions.
        hidden_dim: width of the two hidden layers of each coupling.
    """

    def __init__(
        self,
        latent_dim: int,
        condition_size: int,
        num_couplings: Annotated[int, Interval(ge=1, le=1000)],
        hidden_dim: Size,
    ) -> None:
        super().__init__()
        if latent_dim < 2:
            raise ValueError(f"latent_dim={latent_dim}: must be at least 2 for a flow of couplings")
        self.couplings = nn.ModuleList(
            Coupling(latent_dim, hidden_dim) for _ in range(num_couplings)
        )

    def to_base(self, z: Latent, y: Condition | None) -> tuple[Latent, Nats]:
        with torch.autocast(z.device.type, enabled=False):  # sums in bfloat16 lose nats
            w, log_det = z, z.new_zeros(z.shape[0])
            for coupling in self.couplings:
                w, step_log_det = coupling(w)
                log_det = log_det + step_log_det
            return w, log_det

    def from_base(self, w: Latent, y: Condition | None) -> Latent:
        with torch.autocast(w.device.type, enabled=False):
            z = w
            for coupling in reversed(self.couplings):
                z = coupling.inverse(z)  # type: ignore[operator]
            return z


class ZukoFlow(nn.Module):
    """Any flow of zuko as a prior (extra "flows").

    Example::

        flow = functools.partial(zuko.flows.NSF, transforms=3, hidden_features=[128, 128])
        model = CVAE(network, latent_dim=32, prior=functools.partial(ZukoFlow, flow=flow))

    Args:
        latent_dim: dimensions of z.
        condition_size: length of the encoded y.
        flow: constructor of the flow, called with ``features`` and ``context``. Its base
            distribution must be N(0, I), the default of most flows.
        conditional: whether the flow depends on y; only for a conditional model.
    """

    def __init__(
        self,
        latent_dim: int,
        condition_size: int,
        flow: Callable[..., Any],
        conditional: bool = False,
    ) -> None:
        super().__init__()
        if conditional and condition_size < 1:
            raise ValueError(
                "model.prior.conditional=true: must be false for an unconditional model"
            )
        self.conditional = conditional
        self.flow = flow(features=latent_dim, context=condition_size if conditional else 0)
        name = type(self.flow).__name__
        if not hasattr(self.flow, "transform") or not hasattr(self.flow, "base"):
            raise ValueError(
                f"model.prior.flow={name}: must be a flow, with a transform and a base"
            )
        base = self.flow.base(None)
        if type(base).__name__ != "DiagNormal":
            raise ValueError(
                f"model.prior.flow={name}: must have N(0, I) at its base, not {type(base).__name__}"
            )

    def _distribution(self, y: Condition | None) -> Any:
        return self.flow(y if self.conditional else None)

    def to_base(self, z: Latent, y: Condition | None) -> tuple[Latent, Nats]:
        with torch.autocast(z.device.type, enabled=False):
            if z.shape[0] == 0:  # flows of zuko fail on an empty batch
                return z, z.new_zeros(0)
            w, log_det = self._distribution(y).transform.call_and_ladj(z)
            return w, log_det

    def from_base(self, w: Latent, y: Condition | None) -> Latent:
        with torch.autocast(w.device.type, enabled=False):
            if w.shape[0] == 0:
                return w
            z: Latent = self._distribution(y).transform.inv(w)
            return z
