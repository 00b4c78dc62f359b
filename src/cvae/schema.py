"""Types and ranges of the configuration, and the one-line errors. Never imports torch.

The YAML files in conf/ hold the values, the classes here what a value may be. A node is checked by
the class that its ``_target_`` names; nodes with a ``_target_`` of your own are left to it.
"""

import difflib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


class ConfigError(Exception):
    """Something a person typed that cannot be; its text is all they need to see."""


# what a value may be, beside its type


@dataclass(frozen=True)
class AtLeast:
    bound: float

    def allows(self, value: Any) -> bool:
        return value >= self.bound

    def __str__(self) -> str:
        return f"of at least {self.bound:g}"


@dataclass(frozen=True)
class Above:
    bound: float

    def allows(self, value: Any) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"above {self.bound:g}"


@dataclass(frozen=True)
class Between:
    low: float
    high: float

    def allows(self, value: Any) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Below:
    low: float
    high: float  # not itself allowed

    def allows(self, value: Any) -> bool:
        return self.low <= value < self.high

    def __str__(self) -> str:
        return f"from {self.low:g} to below {self.high:g}"


class OneOf:
    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed

    def allows(self, value: Any) -> bool:
        return str(value) in self.allowed

    def __str__(self) -> str:
        return self.allowed[0] if len(self.allowed) == 1 else f"one of {', '.join(self.allowed)}"


@dataclass(frozen=True)
class Length:
    count: int

    def allows(self, value: Any) -> bool:
        return len(value) == self.count

    def __str__(self) -> str:
        return f"({self.count} of them)"


class NotEmpty:
    def allows(self, value: Any) -> bool:
        return bool(value)

    def __str__(self) -> str:
        return "that is not empty"


Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
Weight = Annotated[float, AtLeast(0)]
Positive = Annotated[float, Above(0)]
Share = Annotated[float, Below(0, 1)]


class Train:
    """Top level of train.yaml."""

    seed: Annotated[int, Between(0, 2**32 - 1)]
    name: str | None
    monitor: str | None
    test_num_samples: Natural


class _Data:
    batch_size: Count
    eval_batch_size: Count
    validation_size: Count
    binarization: Annotated[str, OneOf("dynamic", "none")]
    num_workers: Natural
    num_classes: Count
    image_shape: Annotated[list[Count], Length(3)]
    data_dir: str


class MNISTDataModule(_Data):
    name: Annotated[str, OneOf("MNIST", "FashionMNIST", "KMNIST", "EMNIST")]


class ImagesDataModule(_Data):
    name: str


class Autoencoder:
    latent_dim: Count


class VAE(Autoencoder):
    beta: Weight
    warmup_steps: Natural


class MLP:
    hidden_dim: Count
    num_blocks: Natural


class Conv:
    channels: list[Count]
    num_blocks: Natural
    hidden_dim: Count


class AdamW:
    lr: Positive
    betas: Annotated[list[Share], Length(2)]
    weight_decay: Weight


class WarmupCosine:
    warmup_fraction: Share


class EMA:
    decay: Share
    every_n_steps: Count


class Figures:
    every_n_epochs: Natural
    num_test_images: Count


class WandbRun:
    mode: Annotated[str, OneOf("auto", "online", "offline", "disabled")]
    project: str
    log_model: bool


_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "64-true", "16", "bf16", "32", "64")


class Trainer:
    """Arguments of lightning.Trainer whose range is known; it checks the others itself."""

    accelerator: Annotated[str, OneOf("auto", "cpu", "gpu", "cuda", "mps", "tpu")]
    devices: Annotated[int, AtLeast(-1)] | str | list[Natural]
    num_nodes: Count
    precision: Annotated[str | int, OneOf(*_PRECISIONS)] | None
    max_epochs: Annotated[int, AtLeast(-1)] | None
    max_steps: Annotated[int, AtLeast(-1)]
    log_every_n_steps: Natural | None
    accumulate_grad_batches: Count
    gradient_clip_val: Positive | None
    gradient_clip_algorithm: Annotated[str, OneOf("norm", "value")] | None
    limit_train_batches: Weight | None
    limit_val_batches: Weight | None
    limit_test_batches: Weight | None
    fast_dev_run: bool | Natural


class Generate:
    """Top level of generate.yaml."""

    run: Annotated[str, NotEmpty()]
    label: Natural | Annotated[str, OneOf("all")] | None
    num_samples: Count
    seed: Annotated[int, Between(0, 2**63 - 1)]
    temperature: Weight
    binary: bool
    npy: bool
    output: str | None


CLAIMS = (
    "bound",
    "label_control",
    "classification_accuracy",
    "generative_classifier",
    "latent_independence",
    "style",
    "aggregated_posterior",
    "variety",
    "prior_samples",
)
_Claim = Annotated[str, OneOf(*CLAIMS)]


class Evaluate:
    """Top level of evaluate.yaml."""

    run: Annotated[str, NotEmpty()]
    claims: _Claim | list[_Claim] | None
    num_samples: Count
    num_generated: Annotated[int, AtLeast(10)]
    figures: bool


class Compare:
    """Top level of compare.yaml."""

    runs: Annotated[str, NotEmpty()]
    metrics: list[str] | None
    sort: str | None
    output: str


class Article:
    """Top level of article.yaml."""

    folder: Annotated[str, NotEmpty()]
    seeds: list[Annotated[int, Between(0, 2**32 - 1)]]
    train: list[str] | None
    evaluate: list[str] | None
    output: Annotated[str, NotEmpty()]


_BY_TARGET: dict[str, type] = {
    "cvae.data.MNISTDataModule": MNISTDataModule,
    "cvae.data.ImagesDataModule": ImagesDataModule,
    "cvae.models.Autoencoder": Autoencoder,
    "cvae.models.VAE": VAE,
    "cvae.models.CVAE": VAE,
    "cvae.networks.MLP": MLP,
    "cvae.networks.Conv": Conv,
    "torch.optim.AdamW": AdamW,
    "cvae.lightning_module.warmup_cosine": WarmupCosine,
    "cvae.callbacks.EMA": EMA,
    "cvae.callbacks.Figures": Figures,
    "cvae.loggers.wandb_logger": WandbRun,
}
_BY_ENTRY_POINT: dict[str, type] = {
    "train": Train,
    "generate": Generate,
    "evaluate": Evaluate,
    "compare": Compare,
    "article": Article,
}


def validate(cfg: Mapping[str, Any], entry_point: str = "train") -> list[str]:
    """Everything wrong with a resolved config: a line for each, naming key, value and range."""
    needed = ("data", "model", "optimizer", "trainer") if entry_point == "train" else ()
    if missing := [f"{key}: cannot be left out" for key in needed if not cfg.get(key)]:
        return missing
    problems = list(_check_fields(cfg, _BY_ENTRY_POINT[entry_point], ""))
    problems += _check_targets(cfg, "")
    if entry_point == "train":
        trainer = cfg["trainer"]
        problems += _check_fields(trainer, Trainer, "trainer.")
        if not problems:
            problems += _check_together(cfg)
    return problems


def _check_targets(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        if schema := _BY_TARGET.get(str(node.get("_target_"))):
            yield from _check_fields(node, schema, prefix)
        for key, child in node.items():
            yield from _check_targets(child, f"{prefix}{key}.")


def _check_fields(node: Mapping[str, Any], schema: type, prefix: str) -> Iterator[str]:
    for key, kind in get_type_hints(schema, include_extras=True).items():
        if key not in node:
            yield f"{prefix}{key}: missing; it must be {_describe(kind)}"
        elif not _allows(kind, node[key]):
            yield f"{prefix}{key}={_shown(node[key])}: must be {_describe(kind)}"


def _allows(kind: Any, value: Any) -> bool:
    origin = get_origin(kind)
    if origin is Annotated:
        base, *limits = get_args(kind)
        return _allows(base, value) and all(limit.allows(value) for limit in limits)
    if origin in (Union, UnionType):
        return any(_allows(option, value) for option in get_args(kind))
    if origin is list:
        (item,) = get_args(kind)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        return is_list and len(value) > 0 and all(_allows(item, v) for v in value)
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        base, *limits = get_args(kind)
        if isinstance(limits[0], OneOf):
            return str(limits[0])
        return f"{_describe(base)} {' and '.join(map(str, limits))}"
    if origin in (Union, UnionType):
        return " or ".join(_describe(option) for option in get_args(kind))
    if origin is list:
        return f"a list, each {_describe(get_args(kind)[0])}"
    return _NAMES[kind]


def _shown(value: Any) -> str:
    text = (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


def num_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_no_gpu() -> bool:
    """Whether that is sure without asking torch: on Linux, by the device files of the drivers."""
    drivers = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/accel")
    return sys.platform == "linux" and not any(Path(path).exists() for path in drivers)


def device_count(devices: Any) -> int | None:
    """How many devices a setting names, where that can be known without asking the machine."""
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    try:
        count = int(devices)
    except ValueError:
        return None  # "auto", or a list written as text
    return count if count > 0 else None


def _check_together(cfg: Mapping[str, Any]) -> Iterator[str]:
    trainer, data = cfg["trainer"], cfg["data"]
    devices, count = trainer["devices"], device_count(trainer["devices"])
    if devices == 0 or devices == "0":
        yield "trainer.devices=0: must be at least 1, or auto"
    on_cpu = trainer["accelerator"] == "cpu" or (trainer["accelerator"] == "auto" and _has_no_gpu())
    if on_cpu and count is None and devices not in ("auto", 0, "0"):
        yield f"trainer.devices={_shown(devices)}: must be a number of processes, or auto, on a CPU"
        return
    if on_cpu and trainer["num_nodes"] == 1 and (count or 0) > num_cpus():
        yield f"trainer.devices={devices}: this machine has {num_cpus()} cores"
        return
    total = (count or 1) * trainer["num_nodes"]
    if data.get("batch_size", total) % total:
        yield (
            f"data.batch_size={data['batch_size']}: the global batch must divide by the "
            f"{total} devices"
        )
    if trainer["use_distributed_sampler"]:
        yield "trainer.use_distributed_sampler=true: must be false, the data module has its own"
    if trainer["max_epochs"] in (None, -1) and trainer["max_steps"] == -1:
        shown = f"trainer.max_epochs={_shown(trainer['max_epochs'])}"
        if str((cfg.get("scheduler") or {}).get("_target_")).endswith("warmup_cosine"):
            yield f"{shown}: the schedule needs an end; set it, or max_steps, or scheduler=constant"
        elif not trainer["max_time"]:
            yield f"{shown}: the run has no end; set it, or trainer.max_steps"


def leaf_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, inner nodes included."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from leaf_keys(child, f"{prefix}{key}.")


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The key that a person most likely meant."""
    same_ending = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    if len(same_ending) == 1:
        return same_ending[0]
    if close := difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return close[0]
    endings = {k.rpartition(".")[2]: k for k in known}
    close = difflib.get_close_matches(key.rpartition(".")[2], list(endings), n=1, cutoff=0.7)
    return endings[close[0]] if close else None
