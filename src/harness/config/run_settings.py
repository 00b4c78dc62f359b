"""Settings of a run: the top level of train.yaml, and Lightning's settings of a schedule."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from harness.config.signatures import Parameter, signature
from harness.contract.settings import Count, Name, Positive, Title, Trust


@dataclass
class RunSettings:
    """Settings of a run, to which the arguments of your LightningModule are added.

    Args:
        seed: seed of the weights, the order of the rows and all noise.
        resume: run folder to resume, or "latest".
        rerun: sweep folder whose unfinished jobs are trained.
        trust: further packages whose code a resumed run may name.
        rank_timeout: seconds without an answer from another rank after which the run ends.
        name: name of the run; None to derive it from the settings.
        monitor: validation metric that selects the best checkpoint; None for the science's default.
        mode: whether the highest or the lowest value of the monitored metric is best.
        smoke: whether this is a trial run: not tracked and not compared.
        test: whether the test set is scored at the end.
        data: the data module.
        model: the model.
        module: the LightningModule.
        optimizer: the optimizer.
        trainer: arguments of lightning.Trainer.
        scheduler: the learning-rate schedule; None for a constant rate.
        logger: loggers by name; None for none.
        callbacks: callbacks by name; None for none.
        weights: run folder or checkpoint whose weights the run starts from; None for none.
        weights_partial: whether to leave out weights that do not fit the model.
        cuda_graph: whether a GPU replays the training steps as a CUDA graph.
        run_dir: filled in when the run starts.
        run_id: filled in when the run starts.
        sweep: filled in when the run starts.
    """

    seed: Annotated[int, Interval(ge=0, le=4294967295)]
    resume: Name | None
    rerun: Name | None
    trust: Trust
    rank_timeout: Positive
    name: Title | None
    monitor: str | None
    mode: Literal["min", "max"]
    smoke: bool
    test: bool
    data: dict[str, Any]
    model: dict[str, Any]
    module: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: dict[str, Any]
    scheduler: dict[str, Any] | None = None
    logger: dict[str, Any] | None = None
    callbacks: dict[str, Any] | None = None
    weights: Name | None = None
    weights_partial: bool = False
    cuda_graph: bool = True
    run_dir: None = None
    run_id: None = None
    sweep: None = None


def _run_parameters() -> dict[str, Parameter]:
    own_signature = signature(f"{__name__}.{RunSettings.__name__}")
    assert own_signature is not None
    return dict(own_signature.parameters)


RUN_PARAMETERS = _run_parameters()
_SCHEDULER_TYPES = {
    "interval": Literal["step", "epoch"],
    "frequency": Count,
    "monitor": str | None,
}
SCHEDULER_SETTINGS = {  # Lightning's, in addition to the arguments of a schedule
    name: Parameter(lambda: None, None).with_type(value_type)
    for name, value_type in _SCHEDULER_TYPES.items()
}
