"""Types and ranges of the configuration, and the one-line errors. Never imports torch.

The YAML files in conf/ hold the values, the classes here what a value may be. A node is checked by
the class that its ``_target_`` names; nodes with a ``_target_`` of your own are left to it.
"""

import difflib
import math
import os
import re
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
class Matching:
    pattern: str
    description: str

    def allows(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.description


class Only:
    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    def allows(self, value: Any) -> bool:
        return bool(value) is self.allowed

    def __str__(self) -> str:
        return f"({str(self.allowed).lower()} alone)"


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


class Distinct:
    def allows(self, value: Any) -> bool:
        return len(set(value)) == len(value)

    def __str__(self) -> str:
        return "(no duplicates)"


class NotEmpty:
    def allows(self, value: Any) -> bool:
        return bool(value)

    def __str__(self) -> str:
        return "that is not empty"


Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
Size = Annotated[int, Between(1, 65536)]  # of a layer or a batch: beyond lies a slip of the key
Weight = Annotated[float, AtLeast(0)]
Positive = Annotated[float, Above(0)]
Share = Annotated[float, Below(0, 1)]
Name = Annotated[str, NotEmpty()]
Title = Annotated[str, Matching(r".{0,128}", "of at most 128 characters")]
Duration = Annotated[str, Matching(r"\d+:\d\d:\d\d:\d\d", "of the form DD:HH:MM:SS")]
NumBatches = Natural | Annotated[float, Between(0, 1)]
Partial = Annotated[bool, Only(True)]
LEFT_OUT: Any = None  # marks a field that a node may lack


class Train:
    """Top level of train.yaml."""

    seed: Annotated[int, Between(0, 2**32 - 1)]
    resume: Name | None
    rerun: Name | None
    trust: Name | list[Name] | None
    rank_timeout: Positive
    compile: Annotated[str, OneOf("default", "reduce-overhead", "max-autotune")] | None
    name: Title | None
    monitor: str | None
    mode: Annotated[str, OneOf("min", "max")]
    smoke: bool
    test: bool
    test_num_samples: Annotated[int, Between(0, 1_000_000)]
    data: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: dict[str, Any]
    scheduler: dict[str, Any] | None = LEFT_OUT
    logger: dict[str, Any] | None = LEFT_OUT
    callbacks: dict[str, Any] | None = LEFT_OUT
    run_dir: None = LEFT_OUT  # these three are filled in when the run starts
    run_id: None = LEFT_OUT
    sweep: None = LEFT_OUT


class _Data:
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
    max_epochs: Annotated[int, AtLeast(-1)] | None  # as the trainer's


class MNISTDataModule(_Data):
    name: Annotated[str, OneOf("MNIST", "FashionMNIST", "KMNIST", "EMNIST")]


class ImagesDataModule(_Data):
    name: Name


class Autoencoder:
    latent_dim: Size
    network: dict[str, Any]
    image_shape: Any = LEFT_OUT  # as the data's
    num_classes: Any = LEFT_OUT


class VAE(Autoencoder):
    prior: dict[str, Any] = LEFT_OUT  # N(0, I)
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


class AdamW:
    _partial_: Partial
    lr: Positive
    betas: Annotated[list[Share], Length(2)]
    weight_decay: Weight
    eps: Positive = LEFT_OUT
    amsgrad: bool = LEFT_OUT
    maximize: Annotated[bool, Only(False)] = LEFT_OUT
    foreach: bool | None = LEFT_OUT
    capturable: bool = LEFT_OUT
    differentiable: Annotated[bool, Only(False)] = LEFT_OUT
    fused: bool | None = LEFT_OUT


SCHEDULER_SETTINGS = ("interval", "frequency", "monitor")  # Lightning's, for any schedule


class _Scheduler:
    """Lightning's settings, which any schedule may have in addition to its arguments."""

    _partial_: Partial
    interval: Annotated[str, OneOf("step", "epoch")] = LEFT_OUT
    frequency: Count = LEFT_OUT
    monitor: str | None = LEFT_OUT


class WarmupCosine(_Scheduler):
    warmup_fraction: Share


class ReduceLROnPlateau(_Scheduler):
    mode: Annotated[str, OneOf("min", "max")] = LEFT_OUT
    factor: Share = LEFT_OUT
    patience: Natural = LEFT_OUT
    threshold: Weight = LEFT_OUT
    threshold_mode: Annotated[str, OneOf("rel", "abs")] = LEFT_OUT
    cooldown: Natural = LEFT_OUT
    min_lr: Weight = LEFT_OUT
    eps: Weight = LEFT_OUT


class ConstantLR(_Scheduler):
    factor: Annotated[float, Between(0, 1)] = LEFT_OUT
    total_iters: Natural = LEFT_OUT
    last_epoch: Annotated[int, Between(-1, -1)] = LEFT_OUT


class EMA:
    decay: Share
    every_n_steps: Count


class LastCheckpoint:
    dirpath: Name
    every_minutes: Weight | None
    every_n_epochs: Count | None
    every_n_steps: Count | None


class Figures:
    folder: Name
    every_n_epochs: Natural
    num_test_images: Count


class Progress:
    refresh_rate: Natural


_EXTREME = Annotated[str, OneOf("min", "max")]


class ModelCheckpoint:
    dirpath: Name | None = LEFT_OUT
    filename: Name | None = LEFT_OUT
    monitor: str | None = LEFT_OUT
    mode: _EXTREME = LEFT_OUT
    verbose: bool = LEFT_OUT
    save_last: bool | Annotated[str, OneOf("link")] | None = LEFT_OUT
    save_top_k: Annotated[int, AtLeast(-1)] = LEFT_OUT
    save_on_exception: bool = LEFT_OUT
    save_weights_only: bool = LEFT_OUT
    auto_insert_metric_name: bool = LEFT_OUT
    every_n_train_steps: Natural | None = LEFT_OUT
    every_n_epochs: Natural | None = LEFT_OUT
    train_time_interval: dict[str, Any] | None = LEFT_OUT
    save_on_train_epoch_end: bool | None = LEFT_OUT
    enable_version_counter: bool = LEFT_OUT


class EarlyStopping:
    monitor: str | None  # null until the run starts
    min_delta: Weight = LEFT_OUT
    patience: Natural = LEFT_OUT
    verbose: bool = LEFT_OUT
    mode: _EXTREME = LEFT_OUT
    strict: bool = LEFT_OUT
    check_finite: bool = LEFT_OUT
    stopping_threshold: float | None = LEFT_OUT
    divergence_threshold: float | None = LEFT_OUT
    check_on_train_epoch_end: bool | None = LEFT_OUT
    log_rank_zero_only: bool = LEFT_OUT


_WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
_PROJECT = Matching(r"[^/\\#?%:]{1,128}", "of 1 to 128 characters without / \\ # ? % :")
_TAG = Matching(r".{1,64}", "of 1 to 64 characters")
_TAGS = Matching(r"\s*[^,\s][^,]{0,63}(,\s*[^,\s][^,]{0,63})*", "of such tags, separated by commas")


class WandbRun:
    mode: Annotated[str, OneOf("auto", "online", "offline", "disabled")]
    project: Annotated[str, _PROJECT]
    log_model: bool
    save_dir: str | None
    run_id: str | None
    name: Title | None
    entity: Name | None = LEFT_OUT
    group: Title | None = LEFT_OUT
    job_type: Title | None = LEFT_OUT
    tags: (
        list[Annotated[str, _TAG]] | Annotated[str, _TAGS] | Annotated[list[Any], Length(0)] | None
    ) = LEFT_OUT
    notes: str | None = LEFT_OUT
    resume: Annotated[str, OneOf("allow")] | None = LEFT_OUT


_PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "64-true", "16", "bf16", "32", "64")
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
_PROFILERS = ("simple", "advanced", "pytorch")


class Trainer:
    """Arguments of lightning.Trainer."""

    accelerator: Annotated[str, OneOf("auto", "cpu", "gpu", "cuda", "mps", "tpu")]
    devices: Annotated[int, AtLeast(-1)] | str | list[Natural]
    strategy: Annotated[str, OneOf(*_STRATEGIES, "fsdp")]
    num_nodes: Count
    precision: Annotated[str | int, OneOf(*_PRECISIONS)] | None
    max_epochs: Annotated[int, AtLeast(-1)] | None
    min_epochs: Natural | None
    max_steps: Annotated[int, AtLeast(-1)]
    min_steps: Natural | None
    max_time: Duration | dict[str, Any] | None
    limit_train_batches: NumBatches | None
    limit_val_batches: NumBatches | None
    limit_test_batches: NumBatches | None
    limit_predict_batches: NumBatches | None
    overfit_batches: NumBatches
    fast_dev_run: bool | Natural
    val_check_interval: Count | Annotated[float, Between(0, 1), Above(0)] | Duration | None
    check_val_every_n_epoch: Count | None
    num_sanity_val_steps: Annotated[int, AtLeast(-1)] | None
    log_every_n_steps: Natural | None
    enable_checkpointing: bool | None
    enable_progress_bar: bool | None
    enable_model_summary: bool | None
    accumulate_grad_batches: Count
    gradient_clip_val: Weight | None
    gradient_clip_algorithm: Annotated[str, OneOf("norm", "value")] | None
    deterministic: bool | Annotated[str, OneOf("warn")] | None
    benchmark: bool | None
    inference_mode: bool
    use_distributed_sampler: bool
    profiler: Annotated[str, OneOf(*_PROFILERS)] | None
    detect_anomaly: bool
    barebones: bool
    plugins: None
    sync_batchnorm: bool
    reload_dataloaders_every_n_epochs: Natural
    default_root_dir: Name | None
    enable_autolog_hparams: bool
    model_registry: Name | None


class Generate:
    """Top level of generate.yaml."""

    run: Name
    trust: Name | list[Name] | None
    label: Annotated[str, OneOf("all")] | Natural | Annotated[list[Natural], Distinct()] | None
    num_samples: Annotated[int, Between(1, 10_000)]
    seed: Annotated[int, Between(0, 2**63 - 1)]
    temperature: Weight
    binary: bool
    npy: bool
    output: Name | None


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

    run: Name
    trust: Name | list[Name] | None
    claims: _Claim | list[_Claim] | None
    num_samples: Annotated[int, Between(1, 1_000_000)]
    num_generated: Annotated[int, AtLeast(10)]
    figures: bool


class Compare:
    """Top level of compare.yaml."""

    runs: Name
    metrics: list[Name] | None
    sort: Name | None
    output: Name | None


class Article:
    """Top level of article.yaml."""

    folder: Name
    seeds: list[Annotated[int, Between(0, 2**32 - 1)]]
    train: list[Name] | None
    evaluate: list[Name] | None
    num_jobs: Count
    output: Name


class Export:
    """Top level of export.yaml."""

    run: Name
    trust: Name | list[Name] | None
    output: Name | None


class Dashboard:
    """Top level of dashboard.yaml."""

    entity: Name | None
    project: Name
    name: Name
    output: Name


_BY_TARGET: dict[str, type] = {
    "cvae.data.MNISTDataModule": MNISTDataModule,
    "cvae.data.ImagesDataModule": ImagesDataModule,
    "cvae.augmentation.Warp": Warp,
    "cvae.models.Autoencoder": Autoencoder,
    "cvae.models.VAE": VAE,
    "cvae.models.CVAE": VAE,
    "cvae.networks.MLP": MLP,
    "cvae.penalties.Adversary": Adversary,
    "cvae.penalties.LabelwiseAdversary": Adversary,
    "cvae.priors.StandardNormal": StandardNormal,
    "cvae.priors.Flow": Flow,
    "cvae.networks.Conv": Conv,
    "torch.optim.AdamW": AdamW,
    "cvae.lightning_module.warmup_cosine": WarmupCosine,
    "cvae.callbacks.EMA": EMA,
    "cvae.callbacks.Figures": Figures,
    "cvae.resume.LastCheckpoint": LastCheckpoint,
    "cvae.callbacks.Progress": Progress,
    "lightning.pytorch.callbacks.ModelCheckpoint": ModelCheckpoint,
    "lightning.pytorch.callbacks.EarlyStopping": EarlyStopping,
    "torch.optim.lr_scheduler.ConstantLR": ConstantLR,
    "torch.optim.lr_scheduler.ReduceLROnPlateau": ReduceLROnPlateau,
    "cvae.loggers.wandb_logger": WandbRun,
}
_BY_ENTRY_POINT: dict[str, type] = {
    "train": Train,
    "generate": Generate,
    "evaluate": Evaluate,
    "dashboard": Dashboard,
    "export": Export,
    "compare": Compare,
    "article": Article,
}


_MADE_OF_A_TARGET = ("data", "model", "optimizer", "scheduler")
_SEVERAL_TARGETS = ("logger", "callbacks")
_PARTS = (
    ("model", "network"),
    ("model", "prior"),
    ("model", "penalty"),
    ("data", "augmentation"),
)
_KEYS_OF_HYDRA = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def validate(cfg: Mapping[str, Any], entry_point: str = "train") -> list[str]:
    """Everything wrong with a resolved config: a line for each, naming key, value and range."""
    needed = ("data", "model", "optimizer", "trainer") if entry_point == "train" else ()
    if missing := [f"{key}: cannot be left out" for key in needed if not cfg.get(key)]:
        return missing
    problems = list(_check_text(cfg))
    problems += _check_fields(cfg, _BY_ENTRY_POINT[entry_point], "", f"{entry_point}.yaml")
    if all(isinstance(cfg[key], Mapping) for key in needed) and needed:
        problems += _check_nodes(cfg)
        problems += _check_fields(cfg["trainer"], Trainer, "trainer.", "lightning.Trainer")
        problems += check_targets(cfg)
        if not problems:
            problems += _check_together(cfg)
    return problems


def _check_text(node: Any, key: str = "") -> Iterator[str]:
    """Text must be text: no bytes of another encoding, nothing that steers a terminal."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _check_text(str(name), key)
            yield from _check_text(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for child in node:
            yield from _check_text(child, key)
    elif isinstance(node, str) and not node.replace("\n", "").replace("\t", "").isprintable():
        yield f"{key}={_shown(node)}: must be printable text in UTF-8"
    elif isinstance(node, str) and "${" in node:  # escaped once, and read back from an archive
        yield f"{key}={_shown(node)}: must be text without ${{"


def _check_nodes(cfg: Mapping[str, Any]) -> Iterator[str]:
    """What is to be made must say of which class."""
    nodes = {key: cfg[key] for key in _MADE_OF_A_TARGET if cfg.get(key)}
    for group in _SEVERAL_TARGETS:
        nodes |= {f"{group}.{name}": node for name, node in (cfg.get(group) or {}).items() if node}
    for group, part in _PARTS:
        if isinstance(cfg[group].get(part), Mapping):
            nodes[f"{group}.{part}"] = cfg[group][part]
    for key, node in nodes.items():
        target = node.get("_target_") if isinstance(node, Mapping) else node
        if not (isinstance(target, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target)):
            yield f"{key}._target_={_shown(target)}: must be the dotted name of a class"


def has_schema(target: str) -> bool:
    """Return whether :func:`validate` knows the arguments of a class."""
    return target in _BY_TARGET


def check_targets(node: Any, prefix: str = "") -> Iterator[str]:
    """What is wrong with the arguments of the targets in a config, as :func:`validate` tells."""
    if isinstance(node, Mapping):
        target = str(node.get("_target_"))
        if schema := _BY_TARGET.get(target):
            yield from _check_fields(node, schema, prefix, target)
        for key, child in node.items():
            yield from check_targets(child, f"{prefix}{key}.")


def _check_fields(node: Mapping[str, Any], schema: type, prefix: str, owner: str) -> Iterator[str]:
    fields = get_type_hints(schema, include_extras=True)
    for key, kind in fields.items():
        if key not in node:
            if not hasattr(schema, key):
                yield f"{prefix}{key}: missing; it must be {_describe(kind)}"
        elif not _allows(kind, node[key]):
            described, path = _describe(kind), f"{prefix}{key}".replace(".", "/")
            if described.startswith("a group") and isinstance(node[key], str):
                described += f"; one is chosen with a slash, {path}={_shown(node[key])}"
            yield f"{prefix}{key}={_shown(node[key])}: must be {described}"
    for key in node.keys() - fields.keys() - _KEYS_OF_HYDRA:
        near = nearest_key(str(key), list(fields))
        hint = f"; did you mean {prefix}{near}?" if near else ""
        yield f"{prefix}{_shown(key)}={_shown(node[key])}: {owner} has no such key{hint}"


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
        if item is Any:
            return is_list
        return is_list and len(value) > 0 and all(_allows(item, v) for v in value)
    if origin is dict:
        return isinstance(value, Mapping)
    if kind is Any:
        return True
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind is None else isinstance(value, kind)


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
        return "a list" if Any in get_args(kind) else f"a list, each {_describe(get_args(kind)[0])}"
    return "a group of settings" if origin is dict else _NAMES[kind]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    text = text if text.isprintable() else repr(text)
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


_OF_A_BOUND = ("val/elbo", "val/reconstruction", "val/kl")
_METRICS = {  # that our models have in validation
    "cvae.models.Autoencoder": ("val/reconstruction",),
    "cvae.models.VAE": _OF_A_BOUND,
    "cvae.models.CVAE": _OF_A_BOUND,
}


def _check_together(cfg: Mapping[str, Any]) -> Iterator[str]:
    trainer, data = cfg["trainer"], cfg["data"]
    devices, count = trainer["devices"], device_count(trainer["devices"])
    if devices == 0 or devices == "0":
        yield "trainer.devices=0: must be at least 1, or auto"
    accelerator = trainer["accelerator"]
    if accelerator in ("gpu", "cuda") and _has_no_gpu():
        yield f"trainer.accelerator={accelerator}: this machine has no GPU"
        return
    if accelerator == "mps" and sys.platform != "darwin":
        yield "trainer.accelerator=mps: this machine is no Apple computer"
        return
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and _has_no_gpu())
    if on_cpu and count is None and devices not in ("auto", 0, "0"):
        yield f"trainer.devices={_shown(devices)}: must be a number of processes, or auto, on a CPU"
        return
    if on_cpu and trainer["num_nodes"] == 1 and (count or 0) > num_cpus():
        yield f"trainer.devices={devices}: this machine has {num_cpus()} cores"
        return
    total = (count or 1) * trainer["num_nodes"]
    if data.get("batch_size", total) % total:
        nodes = trainer["num_nodes"]
        at = f" (trainer.num_nodes={nodes})" if nodes > 1 else ""
        yield (
            f"data.batch_size={data['batch_size']}{at}: the global batch must divide by the "
            f"{total} devices"
        )
    shape = data.get("image_shape")
    if isinstance(shape, Sequence) and len(shape) == 3 and shape[0] != 1:
        yield (
            f"data.image_shape={_shown(shape)}: must be [1, height, width], colour is not "
            "supported; convert the images to grey"
        )
    if on_cpu and str(trainer["precision"]) in ("16", "16-mixed"):
        yield f"trainer.precision={trainer['precision']}: must be bf16-mixed or 32-true on a CPU"
    if trainer["barebones"]:
        yield "trainer.barebones=true: must be false, a run keeps its record"
    tracked = ((cfg.get("logger") or {}).get("wandb") or {}).get("mode") == "auto"
    wandb_mode = os.environ.get("WANDB_MODE")
    if tracked and wandb_mode and wandb_mode not in _WANDB_MODES:
        yield f"WANDB_MODE={_shown(wandb_mode)}: must be one of {', '.join(_WANDB_MODES[:3])}"
    optimizer = cfg["optimizer"]
    if optimizer.get("fused") and optimizer.get("foreach"):
        yield "optimizer.foreach=true: must be false where optimizer.fused=true"
    model = cfg["model"]
    prior = (model.get("prior") or {}).get("_target_")
    if prior == "cvae.priors.Flow" and model["latent_dim"] < 2:
        yield f"model.latent_dim={model['latent_dim']}: must be at least 2 with model/prior=flow"
    yield from _check_monitor(cfg)
    scheduler, mode = cfg.get("scheduler") or {}, cfg.get("mode", "max")
    is_plateau = str(scheduler.get("_target_")).endswith(".ReduceLROnPlateau")
    is_of_run = scheduler.get("monitor", cfg["monitor"]) == cfg["monitor"]
    if is_plateau and is_of_run and (given := scheduler.get("mode", "min")) != mode:
        yield f"scheduler.mode={given}: must be {mode}, as the run has mode={mode}"
    yield from _check_checkpoints(cfg)
    if trainer["use_distributed_sampler"]:
        yield "trainer.use_distributed_sampler=true: must be false, the data module has its own"
    if trainer["max_epochs"] in (None, -1) and trainer["max_steps"] == -1:
        shown = f"trainer.max_epochs={_shown(trainer['max_epochs'])}"
        if str((cfg.get("scheduler") or {}).get("_target_")).endswith("warmup_cosine"):
            yield f"{shown}: the schedule needs an end; set it, or max_steps, or scheduler=constant"
        elif not trainer["max_time"]:
            yield f"{shown}: the run has no end; set it, or trainer.max_steps"


def _check_monitor(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Check the metrics that select a run and lower its rate; a user's callback may log them."""
    mode, schedule = cfg.get("mode", "max"), cfg.get("scheduler") or {}
    if mode == "min" and cfg["monitor"] in (None, "val/elbo", "val/reconstruction"):
        yield "mode=min: must be max, as val/elbo and val/reconstruction are maximized"
    given = {"monitor": cfg["monitor"]}
    if schedule.get("monitor") != cfg["monitor"]:
        given["scheduler.monitor"] = schedule.get("monitor")
    metrics = _METRICS.get(str(cfg["model"]["_target_"]), ())
    metrics += ("val/penalty",) if metrics and cfg["model"].get("penalty") else ()
    callbacks = [node for node in (cfg.get("callbacks") or {}).values() if node]
    has_own = any(not str(c["_target_"]).startswith(("cvae.", "lightning.")) for c in callbacks)
    for key, name in given.items():
        if name is None:
            continue
        if not name.startswith("val/"):
            yield f"{key}={_shown(name)}: must be a validation metric, val/NAME, or null"
        elif metrics and not has_own and name not in metrics:
            known = ", ".join(metrics)
            yield f"{key}={_shown(name)}: must be one of {known}, or logged by a callback of yours"


def _check_checkpoints(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Check the ModelCheckpoints of a run; the first one selects its weights.

    The file of the first must hold what it calls best, and no two may write the same file.
    """
    callbacks = {key: node for key, node in (cfg.get("callbacks") or {}).items() if node}
    own = f"{cfg.get('run_dir')}/"  # the run folder, null before the run starts
    writers: dict[tuple[str, str], str] = {}
    for key, node in callbacks.items():
        if str(node["_target_"]) == "cvae.resume.LastCheckpoint":
            for name in ("last", "last-previous"):
                writers[str(node.get("dirpath")), name] = f"callbacks.{key}"
    is_first = True
    for name, node in callbacks.items():
        if not str(node["_target_"]).endswith(".ModelCheckpoint"):
            continue
        key, folder = f"callbacks.{name}", str(node.get("dirpath") or f"{own}checkpoints")
        if is_first:
            yield from _check_best(cfg, key, node, folder, own)
        is_first = False
        filename = node.get("filename") or "{epoch}-{step}"
        files = [filename] + ["last"] * bool(node.get("save_last"))
        for file in dict.fromkeys(files):
            other = writers.setdefault((folder, file), key)
            if other != key:
                setting = "save_last" if file == "last" != filename else "filename"
                yield (
                    f"{key}.{setting}={_shown(node.get(setting))}: {other} writes {file}.ckpt in "
                    "the same folder; choose another name or leave it out"
                )
        several = cfg["trainer"]["val_check_interval"] not in (None, 1.0)
        is_distinct = "{step" in filename or ("{epoch" in filename and not several)
        overwrites = node.get("enable_version_counter", True) is False and not is_distinct
        if node.get("save_top_k", 1) not in (0, 1) and overwrites:
            yield (
                f"{key}.save_top_k={node['save_top_k']}: filename={_shown(filename)} gives several "
                "checkpoints the same name; add {step} to it, or set enable_version_counter=true"
            )


def _check_best(
    cfg: Mapping[str, Any], key: str, node: Mapping[str, Any], folder: str, own: str
) -> Iterator[str]:
    for setting, default in (("monitor", None), ("mode", "max")):
        wanted = cfg.get(setting, default)
        if node.get(setting, wanted) != wanted:
            given = _shown(node[setting])
            must = f"must equal {setting}={_shown(wanted)} of the run"
            yield f"{key}.{setting}={given}: {must}; set {setting}={given} instead"
    if not f"{folder}/".startswith(own) or ".." in Path(node.get("filename") or "").parts:
        yield f"{key}.dirpath={_shown(folder)}: must lie in the run folder, ${{run_dir}}/..."
    for setting in ("every_n_train_steps", "train_time_interval", "save_on_exception"):
        if node.get(setting):
            yield (
                f"{key}.{setting}={_shown(node[setting])}: saves weights that were not "
                "validated; use trainer.val_check_interval, or another ModelCheckpoint in callbacks"
            )
    if node.get("save_weights_only"):
        yield f"{key}.save_weights_only=true: must be false, it saves raw weights, not averaged"
    if node.get("save_on_train_epoch_end") and cfg["trainer"]["check_val_every_n_epoch"] != 1:
        yield f"{key}.save_on_train_epoch_end=true: needs trainer.check_val_every_n_epoch=1"


def leaf_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, inner nodes included."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from leaf_keys(child, f"{prefix}{key}.")


def addable_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config lacks and that a class named in it would take."""
    if isinstance(node, Mapping):
        schema = _BY_TARGET.get(str(node.get("_target_")), object)
        for key in get_type_hints(schema).keys() - node.keys():
            yield f"{prefix}{key}"
        for key, child in node.items():
            yield from addable_keys(child, f"{prefix}{key}.")


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The key that a person most likely meant."""
    if swapped := [k for k in known if sorted(k) == sorted(key)]:  # letters in another order
        return swapped[0]
    same_ending = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    if len(same_ending) == 1:
        return same_ending[0]
    if close := difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return close[0]
    endings = {k.rpartition(".")[2]: k for k in known}
    close = difflib.get_close_matches(key.rpartition(".")[2], list(endings), n=1, cutoff=0.7)
    return endings[close[0]] if close else None
