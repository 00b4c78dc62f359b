"""Types and ranges for settings classes: ``lr: Annotated[float, Above(0)]``. Imports no torch."""

import re
from dataclasses import dataclass
from typing import Annotated, Any


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
Size = Annotated[int, Between(1, 65536)]  # of a layer or a batch; more is a typing mistake
Weight = Annotated[float, AtLeast(0)]
Positive = Annotated[float, Above(0)]
Fraction = Annotated[float, Below(0, 1)]
Name = Annotated[str, NotEmpty()]
Title = Annotated[str, Matching(r".{0,128}", "of at most 128 characters")]
Duration = Annotated[str, Matching(r"\d+:\d\d:\d\d:\d\d", "of the form DD:HH:MM:SS")]
NumBatches = Natural | Annotated[float, Between(0, 1)]
Partial = Annotated[bool, Only(True)]
LEFT_OUT: Any = None  # default of a field that a config may omit


class Run:
    """Settings at the top level of train.yaml; subclass it to add your own."""

    seed: Annotated[int, Between(0, 2**32 - 1)]
    resume: Name | None
    rerun: Name | None
    trust: Name | list[Name] | None
    rank_timeout: Positive
    name: Title | None
    monitor: str | None
    mode: Annotated[str, OneOf("min", "max")]
    smoke: bool
    test: bool
    data: dict[str, Any]
    model: dict[str, Any]
    module: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: dict[str, Any]
    scheduler: dict[str, Any] | None = LEFT_OUT
    logger: dict[str, Any] | None = LEFT_OUT
    callbacks: dict[str, Any] | None = LEFT_OUT
    run_dir: None = LEFT_OUT  # the run fills in these three
    run_id: None = LEFT_OUT
    sweep: None = LEFT_OUT


SCHEDULER_SETTINGS = ("interval", "frequency", "monitor")  # Lightning's, for any schedule


class Scheduler:
    """Lightning's settings of a schedule, in addition to the arguments of its class."""

    _partial_: Partial
    interval: Annotated[str, OneOf("step", "epoch")] = LEFT_OUT
    frequency: Count = LEFT_OUT
    monitor: str | None = LEFT_OUT
