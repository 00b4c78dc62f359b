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
from harness.config.sources import Definition, ParsedModule

ConfigNode = dict[str, Any]  # a node of the config
AnyMapping = dict[Any, Any]  # a mapping, whose keys may be numbers
_LAX = pydantic.Strict(False)  # a list in YAML may be a tuple in code
_MAX_DEPTH = 30
_NAME_NODES = ast.Name | ast.Attribute
_TYPES_BY_NAME: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Path": Annotated[str, annotated_types.MinLen(1)],
    "PurePath": Annotated[str, annotated_types.MinLen(1)],
    "PathLike": Annotated[str, annotated_types.MinLen(1)],
    "LiteralString": str,
}
_LIST_NAMES = {"list", "tuple", "set", "frozenset", "Sequence", "Iterable", "Collection"}
_LIST_NAMES |= {"List", "Tuple", "Set", "MutableSequence"}
_MAPPING_NAMES = {"dict", "Dict", "Mapping", "MutableMapping", "OrderedDict"}
_WRAPPER_NAMES = {"Final", "ClassVar", "Required", "NotRequired"}
_SCALAR_BASES = {"int", "float", "bool", "str", "bytes"}
_SCALAR_BASES |= {"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"}
# bases whose subclasses may have plain values
_PLAIN_VALUE_BASES = {"TypedDict", "NamedTuple"} | _SCALAR_BASES


@dataclass(frozen=True)
class Factory:
    """Marker of an argument that is a ``_partial_`` node, which the code calls.

    Args:
        arguments: keyword-only arguments of the protocol's ``__call__``, which the code passes;
            None for a Callable, which names no arguments.
    """

    arguments: tuple[str, ...] | None = None


def type_of_annotation(node: ast.expr | None, scope: ParsedModule, depth: int = _MAX_DEPTH) -> Any:
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
                return type_of_annotation(ast.parse(text, mode="eval").body, scope, depth - 1)
            except SyntaxError:
                return Any
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union_type(
                [type_of_annotation(side, scope, depth - 1) for side in (left, right)]
            )
        case ast.Subscript(value=ast.Name() | ast.Attribute() as value, slice=inside):
            items = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return _type_of_subscript(_known_name(value, scope), items, scope, depth - 1)
        case ast.Name() | ast.Attribute():
            return _type_of_name(node, scope, depth - 1)
    return Any


def _union_type(types: Sequence[Any]) -> Any:
    if any(item is Any for item in types):
        return Any
    return functools.reduce(operator.or_, (type(None) if t is None else t for t in types))


def _known_name(node: ast.expr, scope: ParsedModule) -> str:
    """Return the last part of a name if it is from a known package, else ''."""
    resolved = sources.resolve_name(ast.unparse(node), scope)
    return resolved.rpartition(".")[2] if isinstance(resolved, str) else ""


def _type_of_name(node: ast.expr, scope: ParsedModule, depth: int) -> Any:
    resolved = sources.resolve_name(ast.unparse(node), scope)
    if isinstance(resolved, Definition):
        if isinstance(resolved.node, ast.ClassDef):
            return _type_of_class(resolved)
        if isinstance(resolved.node, ast.expr):
            return type_of_annotation(resolved.node, resolved.module, depth)
        return Any
    package, _, name = (resolved or "").rpartition(".")
    if package.startswith("torch"):
        return Any if name in ("device", "dtype") else ConfigNode  # torch takes "cpu" for a device
    if name in _TYPES_BY_NAME:
        return _TYPES_BY_NAME[name]
    if name in _LIST_NAMES:
        return list[Any]
    if name in _MAPPING_NAMES:
        return AnyMapping
    return Annotated[ConfigNode, Factory()] if name == "Callable" else Any


def _type_of_class(definition: Definition, depth: int = _MAX_DEPTH) -> Any:
    """Return Any if a plain value can be an instance of the class, else a node of the config."""
    assert isinstance(definition.node, ast.ClassDef)
    names = {ast.unparse(base).rpartition(".")[2] for base in definition.node.bases}
    if names & _PLAIN_VALUE_BASES or any(
        _type_of_base(base, definition.module, depth) is Any for base in definition.node.bases
    ):
        return Any
    call = [
        s
        for s in definition.node.body
        if isinstance(s, sources.FunctionNode) and s.name == "__call__"
    ]
    if "Protocol" in names and call and call[0].args.kwonlyargs:
        return Annotated[ConfigNode, Factory(tuple(a.arg for a in call[0].args.kwonlyargs))]
    return ConfigNode


def _type_of_base(node: ast.expr, scope: ParsedModule, depth: int) -> Any:
    """Return the type of a base class; a node of the config if it has no source."""
    resolved = (
        sources.resolve_name(ast.unparse(node), scope) if isinstance(node, _NAME_NODES) else None
    )
    if isinstance(resolved, Definition) and isinstance(resolved.node, ast.ClassDef) and depth:
        return _type_of_class(resolved, depth - 1)
    return ConfigNode


def _type_of_subscript(
    name: str, items: Sequence[ast.expr], scope: ParsedModule, depth: int
) -> Any:
    """Return the type of ``name[items]``."""
    if name == "Literal":
        values = _literal_values(items, scope)
        return Any if values is None else Literal[tuple(values)]
    if name == "Annotated":
        base = type_of_annotation(items[0], scope, depth)
        limits = [limit for item in items[1:] if (limit := _constraint(item, scope)) is not None]
        return Annotated[(base, *limits)] if limits else base  # type: ignore[return-value]
    if name == "Callable":
        return Annotated[ConfigNode, Factory()]
    if name in _MAPPING_NAMES:
        return AnyMapping
    types = [type_of_annotation(item, scope, depth) for item in items]
    if not types:  # tuple[()]
        return list[Any]
    if name == "Optional":
        return _union_type([types[0], None])
    if name == "Union":
        return _union_type(types)
    if name in ("tuple", "Tuple") and not isinstance(items[-1], ast.Constant):
        return Annotated[tuple[tuple(types)], _LAX]  # type: ignore[misc]
    if name in _LIST_NAMES:
        return list[types[0]]  # type: ignore[valid-type]
    return types[0] if name in _WRAPPER_NAMES else Any


def _literal_values(items: Sequence[ast.expr], scope: ParsedModule) -> list[Any] | None:
    """Return the values in ``Literal[...]``, or None if they are not constants in the source."""
    values: list[Any] = []
    for item in items:
        node: Any = item
        if isinstance(item, _NAME_NODES):
            definition = sources.resolve_name(ast.unparse(item), scope)
            node = definition.node if isinstance(definition, Definition) else None
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError):
            return None
        values += value if isinstance(value, tuple) else [value]
    return values


def _constraint(node: ast.expr, scope: ParsedModule) -> Any:
    """Return a constraint of annotated-types or pydantic, such as ``Ge(0)``; None for others."""
    if not isinstance(node, ast.Call):
        return None
    resolved = sources.resolve_name(ast.unparse(node.func), scope)
    package, _, name = resolved.rpartition(".") if isinstance(resolved, str) else ("", "", "")
    library = {"annotated_types": annotated_types, "pydantic": pydantic}.get(package)
    try:
        positional = [ast.literal_eval(argument) for argument in node.args]
        named = {k.arg or "": ast.literal_eval(k.value) for k in node.keywords}
        return getattr(library, name)(*positional, **named)
    except (AttributeError, TypeError, ValueError):
        return None
