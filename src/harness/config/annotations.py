"""Converts the annotations of a source file to types for pydantic, without importing the file."""

import ast
import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import annotated_types
import pydantic

from harness.config import sources
from harness.config.sources import Definition, Module

Group = dict[str, Any]  # a node of the config
Table = dict[Any, Any]  # a mapping, whose keys may be numbers
_LAX = pydantic.Strict(False)  # a list in YAML may be a tuple in code
_MAX_DEPTH = 30
_NAMES = ast.Name | ast.Attribute
_VALUES: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Path": Annotated[str, annotated_types.MinLen(1)],
    "PurePath": Annotated[str, annotated_types.MinLen(1)],
    "PathLike": Annotated[str, annotated_types.MinLen(1)],
    "LiteralString": str,
}
_LISTS = {"list", "tuple", "set", "frozenset", "Sequence", "Iterable", "Collection"}
_LISTS |= {"List", "Tuple", "Set", "MutableSequence"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping", "OrderedDict"}
_WRAPPERS = {"Final", "ClassVar", "Required", "NotRequired"}
_SCALARS = {"int", "float", "bool", "str", "bytes", "Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"}
_NO_NODES = {"TypedDict", "NamedTuple"} | _SCALARS  # bases whose subclasses may have plain values


@dataclass(frozen=True)
class Factory:
    """Marker of an argument that is a ``_partial_`` node, which the code calls.

    Args:
        arguments: keyword-only arguments of the protocol's ``__call__``, which the code passes;
            None for a Callable, which names no arguments.
    """

    arguments: tuple[str, ...] | None = None


def convert(node: ast.expr | None, scope: Module, depth: int = _MAX_DEPTH) -> Any:
    """Return the type of an annotation, or Any if it cannot be known without an import.

    A class whose instances are not plain values becomes a node of the config. A tuple accepts a
    list, and a path accepts text.

    Args:
        scope: module that contains the annotation.
    """
    if depth == 0:
        return Any
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str() as text):
            try:
                return convert(ast.parse(text, mode="eval").body, scope, depth - 1)
            except SyntaxError:
                return Any
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([convert(side, scope, depth - 1) for side in (left, right)])
        case ast.Subscript(value=ast.Name() | ast.Attribute() as value, slice=inside):
            items = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return _subscript(_plain_name(value, scope), items, scope, depth - 1)
        case ast.Name() | ast.Attribute():
            return _type_of_name(node, scope, depth - 1)
    return Any


def _union(kinds: Sequence[Any]) -> Any:
    if any(kind is Any for kind in kinds):
        return Any
    return functools.reduce(operator.or_, (type(None) if k is None else k for k in kinds))


def _plain_name(node: ast.expr, scope: Module) -> str:
    """Return the last part of a name if it is from a known package, else ''."""
    found = sources.resolve(ast.unparse(node), scope)
    return found.rpartition(".")[2] if isinstance(found, str) else ""


def _type_of_name(node: ast.expr, scope: Module, depth: int) -> Any:
    found = sources.resolve(ast.unparse(node), scope)
    if isinstance(found, Definition):
        if isinstance(found.node, ast.ClassDef):
            return _type_of_class(found)
        return convert(found.node, found.module, depth) if isinstance(found.node, ast.expr) else Any
    package, _, name = (found or "").rpartition(".")
    if package.startswith("torch"):
        return Any if name in ("device", "dtype") else Group  # torch takes "cpu" for a device
    if name in _VALUES:
        return _VALUES[name]
    if name in _LISTS:
        return list[Any]
    if name in _MAPPINGS:
        return Table
    return Annotated[Group, Factory()] if name == "Callable" else Any


def _type_of_class(found: Definition, depth: int = _MAX_DEPTH) -> Any:
    """Return Any if a plain value can be an instance of the class, else a node of the config."""
    assert isinstance(found.node, ast.ClassDef)
    names = {ast.unparse(base).rpartition(".")[2] for base in found.node.bases}
    if names & _NO_NODES or any(
        _type_of_base(base, found.module, depth) is Any for base in found.node.bases
    ):
        return Any
    call = [s for s in found.node.body if isinstance(s, sources.Function) and s.name == "__call__"]
    if "Protocol" in names and call and call[0].args.kwonlyargs:
        return Annotated[Group, Factory(tuple(a.arg for a in call[0].args.kwonlyargs))]
    return Group


def _type_of_base(node: ast.expr, scope: Module, depth: int) -> Any:
    """Return the type of a base class; a node of the config if it has no source."""
    found = sources.resolve(ast.unparse(node), scope) if isinstance(node, _NAMES) else None
    if isinstance(found, Definition) and isinstance(found.node, ast.ClassDef) and depth:
        return _type_of_class(found, depth - 1)
    return Group


def _subscript(name: str, items: Sequence[ast.expr], scope: Module, depth: int) -> Any:
    """Return the type of ``name[items]``."""
    if name == "Literal":
        return Literal[tuple(_constants(items, scope))]
    if name == "Annotated":
        base = convert(items[0], scope, depth)
        limits = [made for item in items[1:] if (made := _constraint(item, scope)) is not None]
        return Annotated[(base, *limits)] if limits else base  # type: ignore[return-value]
    if name == "Callable":
        return Annotated[Group, Factory()]
    if name in _MAPPINGS:
        return Table
    kinds = [convert(item, scope, depth) for item in items]
    if not kinds:  # tuple[()]
        return list[Any]
    if name == "Optional":
        return _union([kinds[0], None])
    if name == "Union":
        return _union(kinds)
    if name in ("tuple", "Tuple") and not isinstance(items[-1], ast.Constant):
        return Annotated[tuple[tuple(kinds)], _LAX]  # type: ignore[misc]
    if name in _LISTS:
        return list[kinds[0]]  # type: ignore[valid-type]
    return kinds[0] if name in _WRAPPERS else Any


def _constants(items: Sequence[ast.expr], scope: Module) -> list[Any]:
    values: list[Any] = []
    for item in items:
        try:
            values.append(ast.literal_eval(item))
        except ValueError:
            values.append(ast.unparse(item))
    return values


def _constraint(node: ast.expr, scope: Module) -> Any:
    """Return a constraint of annotated-types or pydantic, such as ``Ge(0)``; None for others."""
    if not isinstance(node, ast.Call):
        return None
    found = sources.resolve(ast.unparse(node.func), scope)
    package, _, name = found.rpartition(".") if isinstance(found, str) else ("", "", "")
    library = {"annotated_types": annotated_types, "pydantic": pydantic}.get(package)
    try:
        positional = [ast.literal_eval(argument) for argument in node.args]
        named = {k.arg or "": ast.literal_eval(k.value) for k in node.keywords}
        return getattr(library, name)(*positional, **named)
    except (AttributeError, TypeError, ValueError):
        return None
