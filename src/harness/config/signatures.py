"""Reads the arguments of a class or function from its source, without importing it."""

import ast
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from harness.config import annotations, sources
from harness.config.keys import nearest_key
from harness.config.sources import Definition

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()
COMPUTED: Any = type("Computed", (), {"__repr__": lambda self: "COMPUTED"})()  # not a literal


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
    if (
        parsed is None
        or not parsed.names
        or parsed.star_imports
        or {"__getattr__", name} & {*parsed.names}
    ):
        return
    if not sources.module_exists(target):
        near = nearest_key(name, [*parsed.names, *sources.submodules(module)])
        hint = f"; did you mean {module}.{near}?" if near else ""
        raise NotFoundError(f"{module} has no {name}{hint}")


def _signature(definition: Definition) -> Signature | None:
    node = definition.node
    if isinstance(node, sources.FunctionNode):
        return _signature_of_function(definition, node, is_method=False)
    if not isinstance(node, ast.ClassDef):
        return None
    for name in ("__init__", "__new__"):
        if method := _find_method(node, name):
            return _signature_of_function(definition, method, is_method=True)
    if _is_dataclass(node):
        return _signature_of_fields(definition, node)
    if any(_makes_constructor(decorator, definition) for decorator in node.decorator_list):
        return None
    if not any(True for _ in base_classes(definition)):
        return Signature(definition.name, {})
    inherited = _inherited_signature(definition)
    return inherited and replace(inherited, target=definition.name)


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


def _find_method(node: ast.ClassDef, name: str) -> sources.FunctionNode | None:
    methods = [s for s in node.body if isinstance(s, sources.FunctionNode) and s.name == name]
    return methods[-1] if methods else None


def _signature_of_function(
    definition: Definition, node: sources.FunctionNode, is_method: bool
) -> Signature:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [*zip(positional, [*defaults, *arguments.defaults], strict=True)]
    has_self = is_method or any(_dotted_name(d) == "classmethod" for d in node.decorator_list)
    named = [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    by_position, by_keyword = (
        {a.arg: _parameter(definition, a.annotation, default) for a, default in part}
        for part in (pairs[has_self:], named)
    )
    inherited = _forwarded_arguments(definition, node) if is_method else None
    takes_any_name = arguments.kwarg is not None
    others: Mapping[str, Parameter] = {}
    if inherited is not None:
        others = {
            n: p for n, p in inherited.parameters.items() if n not in (*by_position, *by_keyword)
        }
        takes_any_name = inherited.takes_any_name
    return Signature(definition.name, {**by_position, **others, **by_keyword}, takes_any_name)


def _forwarded_arguments(definition: Definition, node: sources.FunctionNode) -> Signature | None:
    """Return the arguments that ``super().__init__(..., **kwargs)`` takes, if the body calls it.

    A body that uses ``kwargs`` elsewhere, as in ``kwargs.pop("key")``, may take other arguments.
    """
    kwargs = node.args.kwarg
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name) and kwargs and n.id == kwargs.arg]
    if len(names) != 1:
        return None
    for call in ast.walk(node):
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__"):
            continue
        if not any(k.arg is None and k.value is names[0] for k in call.keywords):
            continue
        if (inherited := _inherited_signature(definition)) is None:
            return None
        by_position = [a for a in call.args if not isinstance(a, ast.Starred)]
        set_names = {
            *list(inherited.parameters)[: len(by_position)],
            *(k.arg for k in call.keywords),
        }
        others = {n: p for n, p in inherited.parameters.items() if n not in set_names}
        return replace(inherited, parameters=others)
    return None


def _inherited_signature(definition: Definition) -> Signature | None:
    """Return the arguments of the first base class with a constructor; None if it has no source."""
    inherited = None
    for base in base_classes(definition):
        if base is None or (inherited := _signature(base)) is None:
            return None  # the base that may define the constructor has no source
        if inherited.parameters or inherited.takes_any_name:
            return inherited
    return inherited


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_dotted_name(decorator).endswith("dataclass") for decorator in node.decorator_list)


def _makes_constructor(decorator: ast.expr, definition: Definition) -> bool:
    """Return whether a decorator of a class is one of attrs or pydantic."""
    name = _dotted_name(decorator)
    origin = sources.resolve_name(name, definition.module) if name else None
    dotted = origin.name if isinstance(origin, Definition) else origin or ""
    return dotted.partition(".")[0] in ("attr", "attrs", "pydantic")


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


def read_documentation(target: str) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and the description of each argument in it.

    The descriptions of base classes are included.
    """
    definition = sources.find_definition(target)
    if not isinstance(definition, Definition) or isinstance(definition.node, ast.expr):
        return "", {}
    text = ast.get_docstring(definition.node) or ""
    summary = " ".join(text.partition("\n\n")[0].split())
    if isinstance(definition.node, ast.ClassDef):
        return summary, _describe_arguments(definition)
    return summary, _read_args_section(definition.node)


def _describe_arguments(definition: Definition) -> dict[str, str]:
    """Return the descriptions of arguments in the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    assert isinstance(definition.node, ast.ClassDef)
    for base in filter(None, base_classes(definition)):
        texts = _describe_arguments(base) | texts
    return (
        texts
        | _read_args_section(definition.node)
        | _read_args_section(_find_method(definition.node, "__init__"))
    )


_ITEM = re.compile(r"^( *)(\*{0,2}\w+(?:, \w+)*)(?: \(.*?\))?:(?: |$)(.*)")


def _read_args_section(node: ast.ClassDef | sources.FunctionNode | None) -> dict[str, str]:
    """Return the description of each argument in the Args section of a docstring."""
    text = node and ast.get_docstring(node)
    lines = text.splitlines() if text else []
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r" *Args.*:", line)]
    descriptions: dict[str, str] = {}
    names: Sequence[str] = ()
    indent = -1
    for line in lines[starts[0] + 1 :] if starts else ():
        if line.strip() and not line.startswith(" "):
            break
        item = _ITEM.match(line)
        if item and (indent < 0 or len(item[1]) <= indent):
            indent, names = len(item[1]), item[2].split(", ")
            descriptions |= dict.fromkeys(names, item[3])
        elif names and line.strip():
            descriptions |= {name: f"{descriptions[name]} {line.strip()}".strip() for name in names}
    return descriptions
