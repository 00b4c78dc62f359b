"""Types and ranges for the annotations of constructors: ``hidden_dim: Size``.

The harness reads them without importing your code, validates a config before torch is loaded, and
makes the editor schemas and the settings reference from them. A range of your own is
``Annotated[float, Ge(0), Lt(2)]``, in the vocabulary of `annotated-types
<https://github.com/annotated-types/annotated-types>`_; text of a given form is
``Annotated[str, Field(pattern=...)]``.
"""

from typing import Annotated, TypeAlias

from annotated_types import Ge, Gt, Interval, MaxLen, MinLen
from pydantic import Field

Count: TypeAlias = Annotated[int, Ge(1)]
Natural: TypeAlias = Annotated[int, Ge(0)]
# width of a layer or size of a batch; a larger value is most likely a typo
Size: TypeAlias = Annotated[int, Interval(ge=1, le=65536)]
Depth: TypeAlias = Annotated[int, Interval(ge=0, le=1000)]  # number of blocks
OrUnlimited: TypeAlias = Annotated[int, Ge(-1)]  # -1 for no limit
Weight: TypeAlias = Annotated[float, Ge(0)]
Positive: TypeAlias = Annotated[float, Gt(0)]
Fraction: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]
Probability: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
Name: TypeAlias = Annotated[str, MinLen(1)]
Names: TypeAlias = Annotated[list[Name], MinLen(1)]
Title: TypeAlias = Annotated[str, MaxLen(128)]
Duration: TypeAlias = Annotated[
    str, Field(pattern=r"^\d+:\d\d:\d\d:\d\d$", description="of the form DD:HH:MM:SS")
]
Trust: TypeAlias = Name | Names | None  # packages whose code a run may name
