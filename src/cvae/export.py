"""Export of a trained model for other tools (extra "export").

``model.safetensors`` and ``config.json`` hold the model and load without Lightning.
``decoder.onnx`` and ``decoder.pt2`` (torch.export) hold the decoder for other runtimes.
``README.md`` is a model card for the Hugging Face Hub.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cvae import load_run
from cvae.conditions import OneHot
from cvae.models import Autoencoder
from cvae.types import Condition, Image, Latent
from harness.contract import exported
from harness.contract.errors import ConfigError

CARD = "README.md"
DECODERS = ("decoder.onnx", "decoder.pt2")
_TOLERANCE = 1e-5  # difference of a pixel mean between runtimes
_CHECKED_ROWS = 64


def load(folder: str | Path, trusted: str | Sequence[str] | None = None) -> Autoencoder:
    """Load the model of an exported folder, without Lightning.

    Args:
        trusted: further packages whose classes the folder may name, such as "my_network".

    Raises:
        ConfigError: the folder holds no exported model, or weights and config do not match.
    """
    if not (Path(folder) / exported.CONFIG).is_file():
        raise ConfigError(f"{folder}: no exported model ({exported.CONFIG} is missing)")
    return load_run(folder, trusted)


def save_model(model: Autoencoder, config: Mapping[str, Any], folder: Path) -> None:
    """Save the weights and the config of a run, without the training penalty."""
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("penalty.")}
    described = {key: node for key, node in config["model"].items() if key != "penalty"}
    exported.save(weights, {**config, "model": described}, folder)


class DecoderMeans(nn.Module):
    """Decoder that returns the pixel means, in [0, 1]."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Latent, y: Condition | None = None) -> Image:
        return self.model.decode(latent, y).mean


def save_decoder(model: Autoencoder, folder: Path) -> dict[str, float]:
    """Save the decoder as ONNX and as a torch.export program, with a dynamic batch size.

    Returns:
        For each file, the largest difference of a pixel mean from PyTorch.

    Raises:
        ConfigError: the difference exceeds 1e-5, or the decoder cannot be exported.
    """
    import onnxruntime

    decoder = DecoderMeans(model).eval()
    names = ["latent", "y"][: 2 if model.conditional else 1]
    batch = torch.export.Dim("batch")
    onnx_path, program_path = (folder / name for name in DECODERS)
    with warnings.catch_warnings():  # both libraries warn of their own deprecations
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                decoder, _example_inputs(model, 3), dynamic_shapes=[{0: batch} for _ in names]
            )
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names the source files of this machine
            torch.export.save(program, program_path)
            torch.onnx.export(
                program,
                (),
                onnx_path,
                input_names=names,
                output_names=["mean"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # tracing a user's network may fail in any way
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"the decoder cannot be exported ({reason})") from error
        session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
        exported_program = torch.export.load(program_path).module()
    rows = _example_inputs(model, _CHECKED_ROWS)
    expected = decoder(*rows).detach()
    (from_onnx,) = session.run(None, {k: v.numpy() for k, v in zip(names, rows, strict=True)})
    means_by_file = {
        DECODERS[0]: torch.from_numpy(from_onnx),
        DECODERS[1]: exported_program(*rows).detach(),
    }
    max_differences = {
        name: float((means - expected).abs().max()) for name, means in means_by_file.items()
    }
    for name, difference in max_differences.items():
        if not difference <= _TOLERANCE:
            raise ConfigError(f"{name}: differs from PyTorch by {difference:.1e}, above 1e-5")
    return max_differences


def _example_inputs(model: Autoencoder, count: int) -> tuple[Float[Tensor, "batch _"], ...]:
    latent = torch.randn(count, model.latent_dim, generator=torch.Generator().manual_seed(0))
    return (latent, model.condition.examples(count)) if model.conditional else (latent,)


def save_card(
    model: Autoencoder,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> None:
    """Save the model card: the model, its training and its measurements.

    Args:
        config: config of the run.
        summary: summary.json of the run.
        metrics: metrics of evaluation.json by name; empty without one.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    kind = type(model).__name__
    data = str(config["data"].get("name", "images"))
    is_binary = config["data"].get("binarization") == "dynamic"
    color = "grey" if model.image_shape[0] == 1 else "color"
    pixels = "binarized pixels" if is_binary else f"{color} pixels"
    is_averaged = bool((config.get("callbacks") or {}).get("ema"))
    average = " The weights are an exponential moving average." if is_averaged else ""
    scores = summary.get("metrics", {}).items()
    measured = {name: (value, "") for name, value in scores if name.startswith("test/")}
    for name, metric in metrics.items():
        if "value" not in metric:  # it was not finite
            continue
        error = metric.get("standard_error")
        scale = 100 if metric.get("unit") == "%" else 1
        spread = "" if error is None else f" ± {scale * error:.2g}"
        measured[name] = (scale * metric["value"], f"{spread} {metric.get('unit', '')}".rstrip())
    card_data = ModelCardData(
        license="mit",
        library_name="pytorch",
        pipeline_tag="unconditional-image-generation",
        tags=[kind.lower(), data.lower()],
        datasets=[data.lower()],
        model_name=str(config["name"]),
        eval_results=[
            EvalResult(
                task_type="unconditional-image-generation",
                dataset_type=data.lower(),
                dataset_name=data,
                dataset_split="test",
                metric_type=name,
                metric_name=name,
                metric_value=round(value, 4),
            )
            for name, (value, _) in measured.items()
        ],
    )
    rows = "\n".join(
        f"| `{name}` | {value:.2f}{rest} |" for name, (value, rest) in measured.items()
    )
    exported_parameters = (
        p for name, p in model.named_parameters() if not name.startswith("penalty.")
    )
    num_parameters = sum(p.numel() for p in exported_parameters)
    arguments = "num_samples=10"
    inputs = f"`latent` ({'samples of N(0, I)' if kind != 'Autoencoder' else 'codes'})"
    if model.conditional and isinstance(model.condition, OneHot):
        arguments = f"y={min(7, model.num_classes - 1)}, {arguments}"
        inputs = f"{inputs} and `y` (one-hot labels)"
    elif model.conditional:
        arguments = f"y=y, {arguments}"
        parts = ", ".join(f"{name}: {part.size}" for name, part in model.condition.parts.items())
        inputs = f"{inputs} and `y` (columns of {parts})"
    text = f"""---
{card_data.to_yaml()}
---

# {config["name"]}

{kind} on {data}, {num_parameters:,} parameters, latent of \
{config["model"]["latent_dim"]} dimensions, {pixels}.

```python
from cvae.export import load

model = load(".")  # this folder
images = model.sample({arguments})  # (10, {model.image_shape[0]}, height, width), means in [0, 1]
```

`decoder.onnx` and `decoder.pt2` take {inputs} and return the pixel means.

## Metrics

On the test images, one run (seed {config.get("seed")}); nats per image, ± standard error over \
images or samples.

| metric | value |
|---|---|
{rows}

## Training

{summary.get("epochs", 0)} epochs, {summary.get("images_seen", 0):,} images, \
{summary.get("train_seconds", 0):.0f} s on {summary.get("device", "an unknown device")}, precision \
{summary.get("precision", "unknown")}.{average}

## Limits

The model generates images like those of {data} only.
"""
    ModelCard(text).save(folder / CARD)
