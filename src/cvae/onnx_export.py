"""Export of the parts of a model as ONNX files, for onnxruntime in any language and in browsers.

``encoder.onnx`` maps images to latents, and ``decoder.onnx`` maps latents to pixel means and to
parameters of the likelihood. For a VAE, these two files and ``likelihood.onnx`` give the bound on
log p(x | y) from one sample z, in nats per image:

.. math:: \\log p(x \\mid z, y) + \\log p(z \\mid y) - \\log q(z \\mid x, y), \\quad
    z = \\mu + \\sigma \\epsilon
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cvae.models import VAE, Autoencoder
from cvae.priors import ZukoFlow
from cvae.types import Condition, Image, Latent, Nats, Parameters
from harness.contract.errors import ConfigError

ENCODER, DECODER, LIKELIHOOD = "encoder.onnx", "decoder.onnx", "likelihood.onnx"
_TOLERANCE = 1e-4  # difference between runtimes, relative to the largest value if above 1
TRACED_ROWS = 3
CHECKED_ROWS = 64
# of the inverse of a flow; with 8, an NSF of three transforms takes a minute to export
_MAX_PASSES = 8


class Encoder(nn.Module):
    """Encoder of a plain autoencoder."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Image, y: Condition | None = None) -> Latent:
        return self.model.embed(x, y)


class VariationalEncoder(nn.Module):
    """Encoder of a VAE, with all terms of the bound except log p(x | z, y)."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Image, y: Condition | None, eps: Latent) -> tuple[Latent, Latent, Nats]:
        """Return the latent of the posterior mean, the latent w of a sample z, and the log-ratio.

        The sample is ``z = mean + std * eps``; its log-ratio is log p(z | y) - log q(z | x, y).
        """
        c = None if y is None else self.model.condition(y)
        mean, log_std = self.model.posterior(x, y)
        w, log_det = self.model.prior.to_base(mean + log_std.exp() * eps, c)
        log_ratio = 0.5 * (eps**2 - w**2).sum(-1) + log_det + log_std.sum(-1)
        return self.model.prior.to_base(mean, c)[0], w, log_ratio


class Decoder(nn.Module):
    """Decoder that returns pixel means in [0, 1] and parameters of the likelihood."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Latent, y: Condition | None = None) -> tuple[Image, Parameters]:
        pixels = self.model.decode(latent, y)
        return pixels.mean, pixels.parameters


class PixelLogProb(nn.Module):
    """Log-likelihood log p(x | z, y) of each image, in nats."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, parameters: Parameters, x: Image) -> Nats:
        return self.model._log_prob(x, parameters)


class _Part(NamedTuple):
    """A part of a model, with the names of its inputs and outputs."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _list_parts(model: Autoencoder) -> dict[str, _Part]:
    y = ("y",) if model.conditional else ()
    parts = {DECODER: _Part(Decoder(model), ("latent", *y), ("mean", "parameters"))}
    if not isinstance(model, VAE):
        return {ENCODER: _Part(Encoder(model), ("x", *y), ("latent",)), **parts}
    encoder = _Part(VariationalEncoder(model), ("x", *y, "eps"), ("latent", "sample", "log_ratio"))
    likelihood = _Part(PixelLogProb(model), ("parameters", "x"), ("log_prob",))
    return {ENCODER: encoder, **parts, LIKELIHOOD: likelihood}


def signatures(model: Autoencoder) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the names of inputs and outputs of each file."""
    return {name: (part.inputs, part.outputs) for name, part in _list_parts(model).items()}


def example_inputs(model: Autoencoder, count: int) -> dict[str, Tensor]:
    """Return example inputs of all parts by name: random images, latents, noise and valid y."""
    generator = torch.Generator().manual_seed(0)
    highest = (model.likelihood.num_levels or 256) - 1
    x = torch.rand(count, *model.image_shape, generator=generator)
    latent, eps = torch.randn(2, count, model.latent_dim, generator=generator)
    inputs = {"x": (x * highest).round() / highest, "latent": latent, "eps": eps}
    if model.conditional:
        inputs["y"] = model.condition.examples(count)
    with torch.no_grad():
        decoded = model.decode(latent, inputs.get("y"))
    return {**inputs, "parameters": decoded.parameters}


@torch.no_grad()
def save_onnx(model: Autoencoder, folder: Path) -> dict[str, float]:
    """Save the parts of a model as ONNX, with a dynamic batch size.

    Returns:
        For each file, the largest difference of an output from PyTorch, relative to the largest
        value of that output if it is above 1.

    Raises:
        ConfigError: a part cannot be exported, or a difference exceeds 1e-4.
    """
    model = model.eval()
    _check_passes(model)
    differences = {}
    for name, part in _list_parts(model).items():
        _save_part(model, part, folder / name)
        rows = (1, CHECKED_ROWS)
        differences[name] = max(_max_difference(model, part, folder / name, n) for n in rows)
    return differences


def _check_passes(model: Autoencoder) -> None:
    """Raise ConfigError for a flow of zuko whose unrolled inverse would take long to export."""
    passes = max((getattr(module, "passes", 1) for module in model.modules()), default=1)
    if isinstance(getattr(model, "prior", None), ZukoFlow) and passes > _MAX_PASSES:
        raise ConfigError(
            f"the prior cannot be exported: its inverse has {passes} passes, above {_MAX_PASSES}; "
            "train with model/prior=flow, or with +model.prior.flow.passes=2 for couplings"
        )


def trace(
    module: nn.Module, arguments: tuple[Tensor | None, ...], name: str
) -> torch.export.ExportedProgram:
    """Return a module as a torch.export program, with a dynamic batch size.

    Args:
        arguments: example arguments, with a few rows each; None for an absent one.
        name: name of the module, for the error message.

    Raises:
        ConfigError: the module cannot be exported.
    """
    batch = torch.export.Dim("batch")
    shapes = tuple(None if argument is None else {0: batch} for argument in arguments)
    errors = []
    for strict in (False, True):  # strict tracing is slower, but len(x) stays dynamic
        try:
            with ignore_warnings():
                program = torch.export.export(
                    module.eval(), arguments, dynamic_shapes=shapes, strict=strict
                )
            break
        except Exception as error:  # tracing a user's network may fail in any way
            errors.append(error)
    else:
        raise _export_error(name, errors[0]) from errors[0]
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the source files of this machine
    return program


def _save_part(model: Autoencoder, part: _Part, path: Path) -> None:
    arguments = _list_arguments(model, part, example_inputs(model, TRACED_ROWS))
    program = trace(part.module, arguments, path.stem)
    try:
        with ignore_warnings():
            torch.onnx.export(
                program,
                (),
                path,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                dynamo=True,
                external_data=False,
                verbose=False,
                custom_translation_table={torch.ops.aten.log_sigmoid.default: _log_sigmoid()},
            )
    except Exception as error:  # an operation may have no counterpart in ONNX
        raise _export_error(path.stem, error) from error


def _log_sigmoid() -> Callable[[Any], Any]:
    """Return log sigmoid for ONNX. The exporter's own is -inf where sigmoid rounds to 0."""
    from onnxscript import opset18

    return lambda x: opset18.Neg(opset18.Softplus(opset18.Neg(x)))


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Ignore warnings, which are about deprecations inside the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _export_error(name: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:160]
    return ConfigError(f"the {name} cannot be exported ({reason})")


def _list_arguments(
    model: Autoencoder, part: _Part, inputs: Mapping[str, Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the positional arguments of a part, with None for y of an unconditional VAE."""
    arguments: list[Tensor | None] = [inputs[name] for name in part.inputs]
    if isinstance(part.module, VariationalEncoder) and not model.conditional:
        arguments.insert(1, None)
    return tuple(arguments)


def _max_difference(model: Autoencoder, part: _Part, path: Path, count: int) -> float:
    import onnxruntime

    inputs = example_inputs(model, count)
    expected = part.module(*_list_arguments(model, part, inputs))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    # the exporter removes inputs that no output depends on
    used = [node.name for node in session.get_inputs()]
    actual = session.run(None, {name: inputs[name].numpy() for name in used})
    largest = 0.0
    for name, reference, output in zip(
        part.outputs, expected if isinstance(expected, tuple) else (expected,), actual, strict=True
    ):
        scale = max(1.0, float(reference.abs().max()))
        difference = float((torch.from_numpy(output) - reference).abs().max()) / scale
        if not difference <= _TOLERANCE:
            raise ConfigError(
                f"{path.name}: {name} differs from PyTorch by {difference:.1e}, above 1e-4"
            )
        largest = max(largest, difference)
    return largest
