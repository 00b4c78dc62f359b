"""Ranges of library arguments that their annotations do not give.

A key of RANGES is the dotted name of a class, or of a module for all its classes. An argument that
a class does not take is ignored, so one entry serves every optimizer.
"""

from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen
from pydantic.types import Strict

from harness.config import sources
from harness.contract.settings import (
    Count,
    Duration,
    Fraction,
    Name,
    Natural,
    OrUnlimited,
    Positive,
    Probability,
    Weight,
)

TRAINER = "lightning.Trainer"
_PACKAGES = ("torch", "lightning")
PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "64-true", "16", "bf16", "32", "64")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
PROFILERS = ("simple", "advanced", "pytorch")
_OnlyFalse = Literal[False]
_Mode = Literal["min", "max"]
_Betas = Annotated[tuple[Fraction, Fraction], Strict(False)]
_NumBatches = Natural | Probability | None

RANGES: dict[str, dict[str, Any]] = {
    "torch.optim": {
        "lr": Positive,
        "betas": _Betas,
        "eps": Positive,
        "weight_decay": Weight,
        "momentum": Fraction,
        "dampening": Probability,
        "alpha": Fraction,
        "rho": Fraction,
        "maximize": _OnlyFalse,  # the loss is minimized
        "differentiable": _OnlyFalse,
    },
    "torch.optim.Adafactor": {
        "eps": Annotated[tuple[Positive | None, Positive], Strict(False)],
    },
    "torch.optim.lr_scheduler": {
        "factor": Probability,
        "total_iters": Natural,
        "last_epoch": Literal[-1],  # a resumed run restores it
        "T_max": Count,
        "T_0": Count,
        "eta_min": Weight,
        "step_size": Count,
        "gamma": Positive,
        "milestones": Annotated[list[Count], MinLen(1)],
        "power": Positive,
        "T_mult": Count,
        "start_factor": Annotated[float, Interval(gt=0, le=1)],
        "end_factor": Probability,
        "step_size_up": Positive,
        "step_size_down": Positive | None,
        "div_factor": Positive,
        "final_div_factor": Positive,
        "max_lr": Positive | Annotated[list[Positive], MinLen(1)],
        "pct_start": Probability,
    },
    "torch.optim.lr_scheduler.ReduceLROnPlateau": {
        "factor": Fraction,
        "patience": Natural,
        "threshold": Weight,
        "cooldown": Natural,
        "min_lr": Weight,
        "eps": Weight,
    },
    "lightning.pytorch.callbacks.ModelCheckpoint": {
        "dirpath": Name | None,
        "filename": Name | None,
        "mode": _Mode,
        "save_top_k": OrUnlimited,
        "every_n_train_steps": Natural | None,
        "every_n_epochs": Natural | None,
        "train_time_interval": dict[str, Any] | None,
    },
    "lightning.pytorch.callbacks.EarlyStopping": {
        "monitor": str | None,  # null until the run starts
        "min_delta": Weight,
        "patience": Natural,
        "mode": _Mode,
    },
    "lightning.pytorch.callbacks.StochasticWeightAveraging": {
        "swa_lrs": Positive | Annotated[list[Positive], MinLen(1)],
    },
    "lightning.pytorch.callbacks.Timer": {
        "duration": Duration | dict[str, Any] | None,
    },
    TRAINER: {
        "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"],
        "devices": OrUnlimited | str | Annotated[list[Natural], MinLen(1)],
        "strategy": Literal[(*STRATEGIES, "fsdp")],  # type: ignore[valid-type]
        "num_nodes": Count,
        "precision": Literal[(*PRECISIONS, 16, 32, 64, None)],  # type: ignore[valid-type]
        "max_epochs": OrUnlimited | None,
        "min_epochs": Natural | None,
        "max_steps": OrUnlimited,
        "min_steps": Natural | None,
        "max_time": Duration | dict[str, Any] | None,
        "limit_train_batches": _NumBatches,
        "limit_val_batches": _NumBatches,
        "limit_test_batches": _NumBatches,
        "limit_predict_batches": _NumBatches,
        "overfit_batches": Natural | Probability,
        "fast_dev_run": bool | Natural,
        "val_check_interval": Count | Annotated[float, Interval(gt=0, le=1)] | Duration | None,
        "check_val_every_n_epoch": Count | None,
        "num_sanity_val_steps": OrUnlimited | None,
        "log_every_n_steps": Natural | None,
        "accumulate_grad_batches": Count,
        "gradient_clip_val": Weight | None,
        "gradient_clip_algorithm": Literal["norm", "value"] | None,
        "profiler": Literal[PROFILERS] | None,  # type: ignore[valid-type]
        "plugins": None,  # the run adds its own
        "reload_dataloaders_every_n_epochs": Natural,
        "default_root_dir": Name | None,
        "model_registry": Name | None,
    },
}
# arguments that conf/ must set although the library has a default
REQUIRED: dict[str, tuple[str, ...]] = {"torch.optim": ("lr",)}


def ranges(target: str) -> dict[str, Any]:
    """Return the types to use instead of the annotations, by argument name."""
    names = _public_names(target)
    modules = [name.rpartition(".")[0] for name in names]
    found = [RANGES[name] for name in (*modules, *names) if name in RANGES]
    return {name: value_type for entry in found for name, value_type in entry.items()}


def required(target: str) -> tuple[str, ...]:
    """Return the arguments that a config must set although they have a default."""
    modules = [name.rpartition(".")[0] for name in _public_names(target)]
    return next((REQUIRED[module] for module in modules if module in REQUIRED), ())


def _public_names(target: str) -> list[str]:
    """Return the dotted names under which a class can be imported, longest first.

    torch.optim.adam.Adam is torch.optim.Adam as well.
    """
    parts = target.split(".")
    if parts[0] not in _PACKAGES:
        return [target]
    names = [".".join([*parts[:length], parts[-1]]) for length in range(len(parts) - 1, 0, -1)]
    definition = sources.find_definition(target)
    return [name for name in names if name == target or sources.find_definition(name) == definition]
