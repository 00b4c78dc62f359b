"""Types and ranges of the Trainer, of library classes and of the harness's scripts."""

from typing import Annotated, Any

from harness.config import science
from harness.contract.settings import (
    LEFT_OUT,
    Above,
    AtLeast,
    Between,
    Count,
    Duration,
    Fraction,
    Length,
    Matching,
    Name,
    Natural,
    NumBatches,
    OneOf,
    Only,
    Partial,
    Positive,
    Scheduler,
    Title,
    Weight,
)


class AdamW:
    _partial_: Partial
    lr: Positive
    betas: Annotated[list[Fraction], Length(2)]
    weight_decay: Weight
    eps: Positive = LEFT_OUT
    amsgrad: bool = LEFT_OUT
    maximize: Annotated[bool, Only(False)] = LEFT_OUT
    foreach: bool | None = LEFT_OUT
    capturable: bool = LEFT_OUT
    differentiable: Annotated[bool, Only(False)] = LEFT_OUT
    fused: bool | None = LEFT_OUT


class ReduceLROnPlateau(Scheduler):
    mode: Annotated[str, OneOf("min", "max")] = LEFT_OUT
    factor: Fraction = LEFT_OUT
    patience: Natural = LEFT_OUT
    threshold: Weight = LEFT_OUT
    threshold_mode: Annotated[str, OneOf("rel", "abs")] = LEFT_OUT
    cooldown: Natural = LEFT_OUT
    min_lr: Weight = LEFT_OUT
    eps: Weight = LEFT_OUT


class ConstantLR(Scheduler):
    factor: Annotated[float, Between(0, 1)] = LEFT_OUT
    total_iters: Natural = LEFT_OUT
    last_epoch: Annotated[int, Between(-1, -1)] = LEFT_OUT


class LastCheckpoint:
    dirpath: Name
    every_minutes: Weight | None
    every_n_epochs: Count | None
    every_n_steps: Count | None


class Progress:
    refresh_rate: Natural
    metrics: list[Name] | None = LEFT_OUT


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


WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
_PROJECT = Matching(r"[^/\\#?%:]{1,128}", "of 1 to 128 characters without / \\ # ? % :")
_TAG = Matching(r".{1,64}", "of 1 to 64 characters")
_TAGS = Matching(r"\s*[^,\s][^,]{0,63}(,\s*[^,\s][^,]{0,63})*", "of such tags, separated by commas")


class WandbRun:
    mode: Annotated[str, OneOf("auto", "online", "offline", "disabled")]
    project: Annotated[str, _PROJECT]
    log_model: bool
    axes: list[Name] = LEFT_OUT
    summarized: dict[str, Any] = LEFT_OUT
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


PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "64-true", "16", "bf16", "32", "64")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
PROFILERS = ("simple", "advanced", "pytorch")


class Trainer:
    """Arguments of lightning.Trainer."""

    accelerator: Annotated[str, OneOf("auto", "cpu", "gpu", "cuda", "mps", "tpu")]
    devices: Annotated[int, AtLeast(-1)] | str | list[Natural]
    strategy: Annotated[str, OneOf(*STRATEGIES, "fsdp")]
    num_nodes: Count
    precision: Annotated[str | int, OneOf(*PRECISIONS)] | None
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
    profiler: Annotated[str, OneOf(*PROFILERS)] | None
    detect_anomaly: bool
    barebones: bool
    plugins: None
    sync_batchnorm: bool
    reload_dataloaders_every_n_epochs: Natural
    default_root_dir: Name | None
    enable_autolog_hparams: bool
    model_registry: Name | None


class Compare:
    """Top level of compare.yaml."""

    runs: Name
    metrics: list[Name] | None
    sort: Name | None
    output: Name | None
    first: list[Name]
    lower_is_better: list[Name]


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
    compared: list[Name]
    by: Name
    curves: list[Name]
    along: Name
    pictures: list[Name]


LIBRARIES: dict[str, type] = {  # by dotted name: of libraries, and of the harness
    "torch.optim.AdamW": AdamW,
    "torch.optim.lr_scheduler.ConstantLR": ConstantLR,
    "torch.optim.lr_scheduler.ReduceLROnPlateau": ReduceLROnPlateau,
    "lightning.pytorch.callbacks.ModelCheckpoint": ModelCheckpoint,
    "lightning.pytorch.callbacks.EarlyStopping": EarlyStopping,
    "harness.training.resume.LastCheckpoint": LastCheckpoint,
    "harness.training.callbacks.Progress": Progress,
    "harness.tracking.wandb.wandb_logger": WandbRun,
}


def schema_of(target: str) -> type | None:
    """Types and ranges of the arguments of a class that is known, by its dotted name."""
    return LIBRARIES.get(target) or science.schema_of(target)
