"""Types and ranges of the settings, and answers to :mod:`harness.config.science`.

The YAML files in conf/ hold the values; the classes here say which values are valid. The names in
capitals and the public functions are read by the harness. Imports no torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cvae.versions import upgraded as upgraded
from harness.contract.settings import (
    LEFT_OUT,
    AtLeast,
    Between,
    Count,
    Distinct,
    Fraction,
    Length,
    Name,
    Natural,
    OneOf,
    Partial,
    Run,
    Scheduler,
    Size,
    Weight,
)


class Train(Run):
    """Settings at the top level of train.yaml."""

    test_num_samples: Annotated[int, Between(0, 1_000_000)]
    compile: Annotated[str, OneOf("default", "reduce-overhead", "max-autotune")] | None


class VAEModule:
    """The LightningModule: conf/ sets no argument of it, the harness adds them all."""


class Data:
    batch_size: Size
    eval_batch_size: Size
    validation_size: Count
    binarization: Annotated[str, OneOf("dynamic", "none")]
    num_workers: Annotated[int, Between(0, 256)]
    num_classes: Size
    image_shape: Annotated[list[Size], Length(3)]
    data_dir: Name
    augmentation: dict[str, Any] | None = LEFT_OUT


class Warp:
    _partial_: Partial
    affine: Weight
    elastic: Weight
    share: Annotated[float, Between(0, 1)]
    until: Annotated[float, Between(0, 1)]
    max_epochs: Annotated[int, AtLeast(-1)] | None  # that of the trainer


class MNISTDataModule(Data):
    name: Annotated[str, OneOf("MNIST", "FashionMNIST", "KMNIST", "EMNIST")]


class ImagesDataModule(Data):
    name: Name


class Autoencoder:
    latent_dim: Size
    network: dict[str, Any]
    image_shape: Any = LEFT_OUT  # that of the data
    num_classes: Any = LEFT_OUT


class VAE(Autoencoder):
    prior: dict[str, Any] = LEFT_OUT  # N(0, I) if left out
    penalty: dict[str, Any] | None = LEFT_OUT
    beta: Weight
    warmup_steps: Natural
    path_gradient: bool


class Adversary:
    _partial_: Partial
    weight: Weight
    hidden_dim: Size


class StandardNormal:
    _partial_: Partial


class Flow:
    _partial_: Partial
    num_couplings: Annotated[int, Between(1, 1000)]
    hidden_dim: Size


class MLP:
    _partial_: Partial
    hidden_dim: Size
    encoder_blocks: Annotated[int, Between(0, 1000)]
    decoder_blocks: Annotated[int, Between(0, 1000)]
    latent_skips: bool


class Conv:
    _partial_: Partial
    channels: list[Size]
    num_blocks: Annotated[int, Between(0, 1000)]
    hidden_dim: Size
    patch_size: Size
    latent_blocks: Annotated[int, Between(0, 1000)] = LEFT_OUT


class WarmupCosine(Scheduler):
    warmup_fraction: Fraction


class EMA:
    decay: Fraction
    every_n_steps: Count


class Figures:
    folder: Name
    every_n_epochs: Natural
    num_test_images: Count


class Generate:
    """Settings at the top level of generate.yaml."""

    run: Name
    trust: Name | list[Name] | None
    label: Annotated[str, OneOf("all")] | Natural | Annotated[list[Natural], Distinct()] | None
    num_samples: Annotated[int, Between(1, 10_000)]
    seed: Annotated[int, Between(0, 2**63 - 1)]
    temperature: Weight
    binary: bool
    npy: bool
    output: Name | None


TARGETS: dict[str, type] = {
    "data.MNISTDataModule": MNISTDataModule,
    "data.ImagesDataModule": ImagesDataModule,
    "augmentation.Warp": Warp,
    "models.Autoencoder": Autoencoder,
    "models.VAE": VAE,
    "models.CVAE": VAE,
    "networks.MLP": MLP,
    "networks.Conv": Conv,
    "penalties.Adversary": Adversary,
    "penalties.LabelwiseAdversary": Adversary,
    "priors.StandardNormal": StandardNormal,
    "priors.Flow": Flow,
    "lightning_module.VAEModule": VAEModule,
    "lightning_module.warmup_cosine": WarmupCosine,
    "callbacks.EMA": EMA,
    "callbacks.Figures": Figures,
}
PARTS: dict[str, Sequence[str]] = {  # arguments that the outer class passes to each
    "model.network": ("image_shape", "latent_dim", "num_statistics", "num_classes"),
    "model.prior": ("latent_dim",),
    "model.penalty": ("latent_dim", "num_classes"),
    "data.augmentation": ("seed",),
}
FREE = ("callbacks.figures", "compile", "test_num_samples")  # they do not affect training
LESS_MEMORY = (  # settings to lower when memory runs out
    "data.batch_size, data.eval_batch_size, test_num_samples or model.network.hidden_dim"
)
_OF_A_BOUND = ("val/elbo", "val/reconstruction", "val/kl")


def _class_of(node: Mapping[str, Any]) -> str:
    """Return the class name of a node, such as VAE."""
    return str(node.get("_target_")).rpartition(".")[2]


def _is_ours(node: Mapping[str, Any]) -> bool:
    package, _, name = str(node.get("_target_")).partition(".")
    return package == __package__ and name in TARGETS


def run_name(cfg: Mapping[str, Any]) -> str:
    """Return a readable name of a run, such as cvae-mlp-adversary-z32-s1."""
    model, data = cfg["model"], cfg["data"]
    nodes = [model, *(model.get(part) for part in ("network", "prior", "penalty"))]
    classes = [_class_of(node) for node in (*nodes, data.get("augmentation")) if node]
    parts = [name for name in classes if name != "StandardNormal"]
    parts += [f"z{model['latent_dim']}"] if "latent_dim" in model else []
    parts += [str(data["name"])] if data.get("name") not in ("MNIST", "", None) else []
    return "-".join([*parts, f"s{cfg['seed']}"]).lower()


def monitor(cfg: Mapping[str, Any]) -> str:
    """Return val/elbo, or val/reconstruction for a plain autoencoder, which has no bound."""
    is_code = _is_ours(cfg["model"]) and _class_of(cfg["model"]) == "Autoencoder"
    return "val/reconstruction" if is_code else "val/elbo"


def validation_metrics(cfg: Mapping[str, Any]) -> Sequence[str]:
    """Return the validation metrics of the models here; empty for a model of your own."""
    model = cfg["model"]
    if not _is_ours(model):
        return ()
    metrics = ("val/reconstruction",) if _class_of(model) == "Autoencoder" else _OF_A_BOUND
    return metrics + (("val/penalty",) if model.get("penalty") else ())


def problems(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each pair of settings that contradict each other."""
    data, model = cfg["data"], cfg["model"]
    shape = data.get("image_shape")
    if isinstance(shape, Sequence) and len(shape) == 3 and shape[0] != 1:
        yield (
            f"data.image_shape={shape}: must be [1, height, width], colour is not "
            "supported; convert the images to grey"
        )
    prior = model.get("prior") or {}
    if _is_ours(prior) and _class_of(prior) == "Flow" and model["latent_dim"] < 2:
        yield f"model.latent_dim={model['latent_dim']}: must be at least 2 with model/prior=flow"
    if cfg.get("mode") == "min" and cfg["monitor"] in (None, *_OF_A_BOUND[:2]):
        yield "mode=min: must be max, as val/elbo and val/reconstruction are maximized"
    trainer, schedule = cfg["trainer"], _class_of(cfg.get("scheduler") or {})
    has_no_end = trainer["max_epochs"] in (None, -1) and trainer["max_steps"] == -1
    if has_no_end and schedule == "warmup_cosine":
        shown = "null" if trainer["max_epochs"] is None else trainer["max_epochs"]
        yield (
            f"trainer.max_epochs={shown}: the schedule needs an end; set it, or max_steps, "
            "or scheduler=constant"
        )


def next_commands(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Return the overrides to suggest after a run, by script."""
    unlabelled = _is_ours(cfg["model"]) and _class_of(cfg["model"]) in ("Autoencoder", "VAE")
    return {
        "generate": "num_samples=10" if unlabelled else "label=all num_samples=10",
        "evaluate": "",
    }


def has_data(data: Mapping[str, Any]) -> bool:
    """Return whether ``data_dir`` has the files of the data set or of your own images."""
    if not _is_ours(data):  # a class of your own knows where its data are
        return True
    folder, name = Path(str(data.get("data_dir"))), str(data.get("name"))
    return (folder / name / "raw").is_dir() or (folder / f"{name}.npz").is_file()


def bytes_per_row(data: Mapping[str, Any]) -> int:
    """Return the bytes of pixels and one-hot label in float32 and of the int64 image index."""
    return 4 * (math.prod(data.get("image_shape") or [0]) + (data.get("num_classes") or 0)) + 8
