"""Export of a trained model for other tools (extra "export").

``model.safetensors`` and ``config.json`` hold the model and load without Lightning.
``encoder.onnx``, ``decoder.onnx`` and, for a VAE, ``likelihood.onnx`` hold its parts for other
runtimes, and ``decoder.pt2`` holds the decoder for torch.export.
``README.md`` is a model card for the Hugging Face Hub.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvae import load_run, onnx_export
from cvae.conditions import OneHot
from cvae.models import VAE, Autoencoder
from cvae.onnx_export import CHECKED_ROWS, TRACED_ROWS, example_inputs, ignore_warnings, trace
from cvae.types import Condition, Image, Latent
from harness.contract import exported
from harness.contract.errors import ConfigError

CARD = "README.md"
PROGRAM = "decoder.pt2"
_TOLERANCE = 1e-5  # largest allowed difference of a pixel mean from PyTorch


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
    model_config = {key: node for key, node in config["model"].items() if key != "penalty"}
    exported.save(weights, {**config, "model": model_config}, folder)


class DecoderMeans(nn.Module):
    """Decoder that returns the pixel means, in [0, 1]."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Latent, y: Condition | None = None) -> Image:
        return self.model.decode(latent, y).mean


@torch.no_grad()
def save_program(model: Autoencoder, folder: Path) -> dict[str, float]:
    """Save the decoder as a torch.export program, with a dynamic batch size.

    Returns:
        The largest difference of a pixel mean from PyTorch, by file.

    Raises:
        ConfigError: the difference exceeds 1e-5, or the decoder cannot be exported.
    """
    decoder = DecoderMeans(model).eval()
    path = folder / PROGRAM
    program = trace(decoder, _decoder_inputs(model, TRACED_ROWS), "decoder")
    with ignore_warnings():
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
    rows = _decoder_inputs(model, CHECKED_ROWS)
    difference = float((loaded(*rows) - decoder(*rows)).abs().max())
    if not difference <= _TOLERANCE:
        raise ConfigError(f"{PROGRAM}: differs from PyTorch by {difference:.1e}, above 1e-5")
    return {PROGRAM: difference}


def _decoder_inputs(model: Autoencoder, count: int) -> tuple[Tensor, ...]:
    inputs = example_inputs(model, count)
    return (inputs["latent"], inputs["y"]) if model.conditional else (inputs["latent"],)


def _describe_files(model: Autoencoder) -> str:
    """Return a Markdown table of the inputs and outputs of the files, and their meanings."""
    signatures = onnx_export.signatures(model)
    signatures[PROGRAM] = (signatures[onnx_export.DECODER][0], ("mean",))
    rows = [
        f"| `{name}` | {_join_as_code(inputs)} | {_join_as_code(outputs)} |"
        for name, (inputs, outputs) in signatures.items()
    ]
    used = {name for inputs, outputs in signatures.values() for name in (*inputs, *outputs)}
    is_binary = model.likelihood.num_levels == 2
    meanings = {
        "x": f"image, {'binary pixels' if is_binary else 'pixels in [0, 1]'}",
        "y": "one-hot label",
        "eps": "sample of N(0, I)",
        "latent": "code",
        "mean": "pixel means, in [0, 1]",
        "parameters": "parameters of the likelihood for each pixel",
    }
    if model.conditional and not isinstance(model.condition, OneHot):
        parts = ", ".join(f"{name}: {part.size}" for name, part in model.condition.parts.items())
        meanings["y"] = f"columns of {parts}"
    if isinstance(model, VAE):
        given_y, after_x = ("|y", ",y") if model.conditional else ("", "")
        meanings |= {
            "latent": "latent, N(0, I) a priori; the encoder returns that of the posterior mean",
            "sample": "latent of z = mean + std * eps, sampled from the posterior",
            "log_ratio": f"log p(z{given_y}) - log q(z|x{after_x}) at this z, in nats",
            "log_prob": f"log p(x|z{after_x}) in nats; with `parameters` decoded from `sample`, "
            f"`log_prob + log_ratio` is a bound on log p(x{given_y})",
        }
    described = [f"- `{name}`: {text}" for name, text in meanings.items() if name in used]
    return "\n".join(
        [
            *("| file | takes | returns |", "|---|---|---|", *rows, ""),
            *("Arrays are float32, with one row per image:", "", *described),
        ]
    )


def _join_as_code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


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
        f"| `{name}` | {value:.2f}{suffix} |" for name, (value, suffix) in measured.items()
    )
    exported_parameters = (
        p for name, p in model.named_parameters() if not name.startswith("penalty.")
    )
    num_parameters = sum(p.numel() for p in exported_parameters)
    arguments = "num_samples=10"
    if model.conditional:
        is_label = isinstance(model.condition, OneHot)
        arguments = f"y={min(7, model.num_classes - 1) if is_label else 'y'}, {arguments}"
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

{_describe_files(model)}

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
