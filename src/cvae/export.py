"""A trained model as files that others can use (extra "export").

``model.safetensors`` with ``config.json`` is the whole model, to load without Lightning;
``decoder.onnx`` and ``decoder.pt2`` (torch.export) are its decoder, for other runtimes;
``README.md`` is a model card in the form that the Hugging Face Hub takes.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cvae import load_run
from cvae.models import Autoencoder
from cvae.types import Image, Latent, OneHot
from harness.contract import exported
from harness.contract.errors import ConfigError

CARD = "README.md"
DECODERS = ("decoder.onnx", "decoder.pt2")
_TOLERANCE = 1e-5  # of a pixel's mean, between runtimes
_CHECKED_ROWS = 64


def load(folder: str | Path, trusted: str | Sequence[str] | None = None) -> Autoencoder:
    """The model in an exported folder, ready to use; needs no Lightning.

    Args:
        trusted: further packages whose classes the folder may name, such as "my_network".

    Raises:
        ConfigError: no such folder, or its weights do not go with its config.
    """
    if not (Path(folder) / exported.CONFIG).is_file():
        raise ConfigError(f"{folder}: no exported model ({exported.CONFIG} is missing)")
    return load_run(folder, trusted)


def save_model(model: Autoencoder, config: Mapping[str, Any], folder: Path) -> None:
    """Write weights and the part of a run's config that describes the model.

    A penalty belongs to the training, and stays there.
    """
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("penalty.")}
    described = {key: node for key, node in config["model"].items() if key != "penalty"}
    exported.save(weights, described, folder)


class DecoderMeans(nn.Module):
    """Points of the latent space to images: what the decoder means, in [0, 1]."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Latent, y: OneHot | None = None) -> Image:
        return self.model.decode(latent, y).mean


def save_decoder(model: Autoencoder, folder: Path) -> dict[str, float]:
    """Write the decoder for onnxruntime and as a torch.export program, for any number of rows.

    Returns:
        For each file the largest difference of a pixel's mean from PyTorch's.

    Raises:
        ConfigError: it is larger than 1e-5, or the decoder cannot be exported.
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
                decoder, _rows(model, 3), dynamic_shapes=[{0: batch} for _ in names]
            )
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
        except Exception as error:  # whatever a network of one's own does that cannot be traced
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"the decoder cannot be exported ({reason})") from error
        session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
        again = torch.export.load(program_path).module()
    rows = _rows(model, _CHECKED_ROWS)
    expected = decoder(*rows).detach()
    (from_onnx,) = session.run(None, {k: v.numpy() for k, v in zip(names, rows, strict=True)})
    found = {DECODERS[0]: torch.from_numpy(from_onnx), DECODERS[1]: again(*rows).detach()}
    differences = {name: float((means - expected).abs().max()) for name, means in found.items()}
    for name, difference in differences.items():
        if not difference <= _TOLERANCE:
            raise ConfigError(f"{name}: differs from PyTorch by {difference:.1e}")
    return differences


def _rows(model: Autoencoder, count: int) -> tuple[Float[Tensor, "batch _"], ...]:
    latent = torch.randn(count, model.latent_dim, generator=torch.Generator().manual_seed(0))
    label = torch.eye(model.num_classes)[torch.arange(count) % model.num_classes]
    return (latent, label) if model.conditional else (latent,)


def save_card(
    model: Autoencoder,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> None:
    """Write the model card: what the model is, how it was trained and what was measured.

    Args:
        config: of the run.
        summary: its summary.json.
        metrics: those of its evaluation.json, by name; empty where it has none.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    kind = type(model).__name__
    data = str(config["data"].get("name", "images"))
    is_binary = config["data"].get("binarization") == "dynamic"
    pixels = "pixels drawn as 0 or 1" if is_binary else "grey pixels"
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
    kept = (p for name, p in model.named_parameters() if not name.startswith("penalty."))
    num_parameters = sum(p.numel() for p in kept)
    arguments = "num_samples=10"
    inputs = f"`latent` ({'rows drawn from N(0, I)' if kind != 'Autoencoder' else 'rows of codes'})"
    if model.conditional:
        arguments = f"y={min(7, model.num_classes - 1)}, {arguments}"
        inputs = f"{inputs} and `y` (one-hot rows)"
    text = f"""---
{card_data.to_yaml()}
---

# {config["name"]}

{kind} on {data}, {num_parameters:,} parameters, latent of \
{config["model"]["latent_dim"]} dimensions, {pixels}.

```python
from cvae.export import load

model = load(".")  # this folder
images = model.sample({arguments})  # (10, 1, height, width), means in [0, 1]
```

`decoder.onnx` and `decoder.pt2` take {inputs} and give the means of the pixels.

## Measured

On the test images, one run (seed {config.get("seed")}); nats per image, ± standard error over \
images or draws.

| metric | value |
|---|---|
{rows}

## Trained

{summary.get("epochs", 0)} epochs, {summary.get("images_seen", 0):,} images, \
{summary.get("train_seconds", 0):.0f} s on {summary.get("device", "an unknown device")}, precision \
{summary.get("precision", "unknown")}.{average}

## Limits

It makes images like those of {data} and knows nothing else.
"""
    ModelCard(text).save(folder / CARD)
