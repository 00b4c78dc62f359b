"""Reads the arguments of a class or function from its source, without importing it."""

import ast
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from harness.config import annotations, sources
from harness.config.keys import nearest_key
from harness.config.sources import Definition

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()
COMPUTED: Any = type("Computed", (), {"__repr__": lambda self: "COMPUTED"})()  # not a literal
_CONSTRUCTOR_PACKAGES = ("attr", "attrs", "pydantic")  # whose decorators make constructors


class Parameter:
    """One argument of a class or function.

    Args:
        read_type: returns its type for pydantic; called on first use, as it may read more files.
        default: its default; COMPUTED if that is not a literal.
    """

    def __init__(self, read_type: Callable[[], Any], default: Any = REQUIRED) -> None:
        self._read_type = read_type
        self.default = default

    @functools.cached_property
    def value_type(self) -> Any:
        """Type of the argument, for pydantic."""
        return self._read_type()

    def with_type(self, value_type: Any) -> "Parameter":
        """Return this argument with another type."""
        return Parameter(lambda: value_type, self.default)


@dataclass(frozen=True)
class Signature:
    """The arguments of a class or function that are passed by name.

    Args:
        target: dotted name.
        parameters: by name.
        takes_any_name: whether it has ``**kwargs``.
    """

    target: str
    parameters: Mapping[str, Parameter]
    takes_any_name: bool = False


class NotFoundError(Exception):
    """A name that a source file does not define; the message suggests the nearest."""


@functools.cache
def signature(target: str) -> Signature | None:
    """Return the arguments of a class or function, or None if there is no source to read.

    Args:
        target: dotted name, such as ``torch.optim.AdamW``.

    Raises:
        NotFoundError: the source of its module does not define it.
        SourceError: a file is not valid Python.
    """
    definition = sources.find_definition(target)
    if definition is None:
        _raise_if_missing(target)
    if not isinstance(definition, Definition):
        return None
    result = _signature(definition)
    return result and replace(result, target=target)


def _raise_if_missing(target: str) -> None:
    """Raise NotFoundError if the source of a module does not define the name."""
    module, _, name = target.rpartition(".")
    parsed = sources.parse_module(module) if module else None
    if parsed is None and module and not sources.module_exists(module):
        _raise_if_missing(module)
    names = parsed and sources.all_names(parsed)
    if names and name not in names and not sources.module_exists(target):
        near = nearest_key(name, [*names, *sources.submodules(module)])
        hint = f"; did you mean {module}.{near}?" if near else ""
        raise NotFoundError(f"{module} has no {name}{hint}")


def _signature(definition: Definition) -> Signature | None:
    node = definition.node
    if isinstance(node, sources.FunctionNode):
        return _signature_of_function(definition, node)
    if not isinstance(node, ast.ClassDef):
        return None
    result = _signature_of_constructor(_resolution_order(definition))
    return result and replace(result, target=definition.name)


def _resolution_order(definition: Definition) -> list[Definition | None]:
    """Return a class and its bases in the order in which Python looks up a constructor.

    None stands for bases that cannot be read. A base that occurs twice keeps its last place.
    """
    order: list[Definition | None] = [definition]
    for base in base_classes(definition):
        order += [None] if base is None else _resolution_order(base)
    nodes = [entry and entry.node for entry in order]
    return [e for i, e in enumerate(order) if e is None or e.node not in nodes[i + 1 :]]


def _signature_of_constructor(order: Sequence[Definition | None]) -> Signature | None:
    """Return the arguments of the first constructor in a resolution order; None if not known."""
    for number, definition in enumerate(order):
        if definition is None or not isinstance(definition.node, ast.ClassDef):
            return None
        node = definition.node
        if _has_unreadable_constructor(definition, node):
            return None
        for name in ("__init__", "__new__"):
            if method := find_method(node, name):
                return _signature_of_function(definition, method, order[number + 1 :])
        if _is_dataclass(node):
            return _signature_of_fields(definition, node)
    return Signature(order[0].name, {}) if order and order[0] else None


def _has_unreadable_constructor(definition: Definition, node: ast.ClassDef) -> bool:
    """Return whether a constructor is made by a decorator, by an assignment, or under an ``if``."""
    if any(_changes_arguments(decorator, definition) for decorator in node.decorator_list):
        return True
    is_simple = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    others = [inner for s in node.body if not isinstance(s, is_simple) for inner in ast.walk(s)]
    return any(
        (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.id == "__init__")
        or (isinstance(n, sources.FunctionNode) and n.name == "__init__")
        for n in others
    )


def base_classes(definition: Definition) -> Iterator[Definition | None]:
    """Yield the base classes that have source; None for one that cannot be read."""
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        name = _dotted_name(base)
        resolved = sources.resolve_name(name, definition.module) if name else None
        if isinstance(resolved, Definition) and resolved.node is definition.node:
            yield None  # class AdamW(AdamW): the name in scope is the class itself
        elif isinstance(resolved, Definition) and isinstance(resolved.node, ast.ClassDef):
            yield resolved
        elif name.rpartition(".")[2] not in ("object", "Protocol", "Generic", "ABC"):
            yield None


def _dotted_name(node: ast.expr) -> str:
    """Return the dotted name in an expression, without the parts of a call or subscript."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def find_method(node: ast.ClassDef, name: str) -> sources.FunctionNode | None:
    methods = [s for s in node.body if isinstance(s, sources.FunctionNode) and s.name == name]
    return methods[-1] if methods else None


def _signature_of_function(
    definition: Definition,
    node: sources.FunctionNode,
    later_bases: Sequence[Definition | None] | None = None,
) -> Signature:
    """Return the arguments of a function, or of a constructor.

    Args:
        later_bases: for a constructor, the classes that follow in the resolution order.
    """
    if any(_changes_arguments(decorator, definition) for decorator in node.decorator_list):
        return Signature(definition.name, {}, takes_any_name=True)
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [*zip(positional, [*defaults, *arguments.defaults], strict=True)]
    is_classmethod = any(_dotted_name(d) == "classmethod" for d in node.decorator_list)
    has_self = later_bases is not None or is_classmethod
    named = [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    by_position, by_keyword = (
        {a.arg: _parameter(definition, a.annotation, default) for a, default in part}
        for part in (pairs[has_self:], named)
    )
    inherited = _forwarded_arguments(definition, node, later_bases) if later_bases else None
    takes_any_name = arguments.kwarg is not None
    others: Mapping[str, Parameter] = {}
    if inherited is not None:
        others = {
            n: p for n, p in inherited.parameters.items() if n not in (*by_position, *by_keyword)
        }
        takes_any_name = inherited.takes_any_name
    return Signature(definition.name, {**by_position, **others, **by_keyword}, takes_any_name)


def _forwarded_arguments(
    definition: Definition, node: sources.FunctionNode, later_bases: Sequence[Definition | None]
) -> Signature | None:
    """Return the arguments of the constructor that the body calls with its ``**kwargs``.

    Return None if the body uses ``kwargs`` elsewhere, as in ``kwargs.pop("key")``, because it may
    take other arguments.
    """
    kwargs = node.args.kwarg
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name) and kwargs and n.id == kwargs.arg]
    if len(names) != 1:
        return None
    for call in ast.walk(node):
        if not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".__init__")):
            continue
        if not any(k.arg is None and k.value is names[0] for k in call.keywords):
            continue
        called = call.func.value if isinstance(call.func, ast.Attribute) else call.func
        positional = [a for a in call.args if not isinstance(a, ast.Starred)]
        if isinstance(called, ast.Call) and _dotted_name(called) == "super":
            inherited = _signature_of_constructor(later_bases)
        else:  # Base.__init__(self, **kwargs)
            base = sources.resolve_name(ast.unparse(called), definition.module)
            inherited = _signature(base) if isinstance(base, Definition) else None
            positional = positional[1:]
        if inherited is None:
            return None
        set_names = {
            *list(inherited.parameters)[: len(positional)],
            *(k.arg for k in call.keywords),
        }
        others = {n: p for n, p in inherited.parameters.items() if n not in set_names}
        return replace(inherited, parameters=others)
    return None


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(
        _dotted_name(decorator).endswith("dataclass") and "init=False" not in ast.unparse(decorator)
        for decorator in node.decorator_list
    )


def _changes_arguments(decorator: ast.expr, definition: Definition) -> bool:
    """Return whether a decorator may change arguments: one of your own, of attrs or of pydantic."""
    name = _dotted_name(decorator)
    origin = sources.resolve_name(name, definition.module) if name else None
    dotted = origin.name if isinstance(origin, Definition) else origin or ""
    is_own = isinstance(origin, Definition) and not origin.module.is_library
    package = dotted.partition(".")[0]
    return package in _CONSTRUCTOR_PACKAGES or (is_own and package != "harness")


def _signature_of_fields(definition: Definition, node: ast.ClassDef) -> Signature:
    """Return the arguments of a dataclass: its annotated fields, after those of its bases."""
    parameters: dict[str, Parameter] = {}
    for base in filter(None, base_classes(definition)):
        if isinstance(base.node, ast.ClassDef) and _is_dataclass(base.node):
            parameters |= _signature_of_fields(base, base.node).parameters
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                is_argument, default = _read_field(annotation, value)
                if is_argument:
                    parameters[name] = _parameter(definition, annotation, default)
    return Signature(definition.name, parameters)


def _read_field(annotation: ast.expr, value: ast.expr | None) -> tuple[bool, ast.expr | None]:
    """Return whether a field of a dataclass is an argument, and its default."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with suppress(SyntaxError):
            annotation = ast.parse(annotation.value, mode="eval").body
    if _dotted_name(annotation).rpartition(".")[2] in ("ClassVar", "KW_ONLY"):
        return False, None
    if not (isinstance(value, ast.Call) and _dotted_name(value).rpartition(".")[2] == "field"):
        return True, value
    options = {keyword.arg: keyword.value for keyword in value.keywords}
    is_argument = ast.unparse(options.get("init", ast.Constant(True))) != "False"
    return is_argument, options.get("default", value if "default_factory" in options else None)


def _parameter(
    definition: Definition, annotation: ast.expr | None, default: ast.expr | None
) -> Parameter:
    value = REQUIRED if default is None else COMPUTED
    if default is not None:
        with suppress(ValueError):
            value = ast.literal_eval(default)

    def read_type() -> Any:
        converted = annotations.type_of_annotation(annotation, definition.module)
        return converted | None if value is None and converted not in (Any, None) else converted

    return Parameter(read_type, value)
