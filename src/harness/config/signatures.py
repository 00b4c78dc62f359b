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
        kind: returns its type for pydantic; called on first use, as it may read more files.
        default: its default; COMPUTED if that is not a literal.
    """

    def __init__(self, kind: Callable[[], Any], default: Any = REQUIRED) -> None:
        self._kind = kind
        self.default = default

    @functools.cached_property
    def kind(self) -> Any:
        """Type of the argument, for pydantic."""
        return self._kind()

    def with_kind(self, kind: Any) -> "Parameter":
        """Return this argument with another type."""
        return Parameter(lambda: kind, self.default)


@dataclass(frozen=True)
class Signature:
    """The arguments of a class or function that are passed by name.

    Args:
        target: dotted name.
        parameters: by name.
        takes_any: whether it has ``**kwargs``.
    """

    target: str
    parameters: Mapping[str, Parameter]
    takes_any: bool = False


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
    found = sources.definition(target)
    if found is None:
        _raise_if_missing(target)
    if not isinstance(found, Definition):
        return None
    made = _signature(found)
    return made and replace(made, target=target)


def _raise_if_missing(target: str) -> None:
    """Raise NotFoundError if the source of a module does not define the name."""
    module, _, name = target.rpartition(".")
    found = sources.module(module) if module else None
    if found is None and module and not sources.exists(module):
        _raise_if_missing(module)
    if found is None or not found.names or found.stars or {"__getattr__", name} & {*found.names}:
        return
    if not sources.exists(target):
        near = nearest_key(name, [*found.names, *sources.submodules(module)])
        hint = f"; did you mean {module}.{near}?" if near else ""
        raise NotFoundError(f"{module} has no {name}{hint}")


def _signature(found: Definition) -> Signature | None:
    node = found.node
    if isinstance(node, sources.Function):
        return _of_function(found, node, is_method=False)
    if not isinstance(node, ast.ClassDef):
        return None
    for name in ("__init__", "__new__"):
        if method := _method(node, name):
            return _of_function(found, method, is_method=True)
    if _is_dataclass(node):
        return _of_fields(found, node)
    if any(_makes_constructor(decorator, found) for decorator in node.decorator_list):
        return None
    if not any(True for _ in bases(found)):
        return Signature(found.name, {})
    inherited = _inherited(found)
    return inherited and replace(inherited, target=found.name)


def bases(found: Definition) -> Iterator[Definition | None]:
    """Yield the base classes that have source; None for one that cannot be read."""
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        name = _name_of(base)
        inside = sources.resolve(name, found.module) if name else None
        if isinstance(inside, Definition) and inside.node is found.node:
            yield None  # class AdamW(AdamW): the name in scope is the class itself
        elif isinstance(inside, Definition) and isinstance(inside.node, ast.ClassDef):
            yield inside
        elif name.rpartition(".")[2] not in ("object", "Protocol", "Generic", "ABC"):
            yield None


def _name_of(node: ast.expr) -> str:
    """Return the dotted name in an expression, without the parts of a call or subscript."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _method(node: ast.ClassDef, name: str) -> sources.Function | None:
    methods = [s for s in node.body if isinstance(s, sources.Function) and s.name == name]
    return methods[-1] if methods else None


def _of_function(found: Definition, node: sources.Function, is_method: bool) -> Signature:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [*zip(positional, [*defaults, *arguments.defaults], strict=True)]
    has_self = is_method or any(_name_of(d) == "classmethod" for d in node.decorator_list)
    named = [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    first, last = (
        {a.arg: _parameter(found, a.annotation, default) for a, default in part}
        for part in (pairs[has_self:], named)
    )
    inherited = _forwarded(found, node) if is_method else None
    takes_any = arguments.kwarg is not None
    others: Mapping[str, Parameter] = {}
    if inherited is not None:
        others = {n: p for n, p in inherited.parameters.items() if n not in (*first, *last)}
        takes_any = inherited.takes_any
    return Signature(found.name, {**first, **others, **last}, takes_any)


def _forwarded(found: Definition, node: sources.Function) -> Signature | None:
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
        if (inherited := _inherited(found)) is None:
            return None
        by_position = [a for a in call.args if not isinstance(a, ast.Starred)]
        given = {*list(inherited.parameters)[: len(by_position)], *(k.arg for k in call.keywords)}
        others = {n: p for n, p in inherited.parameters.items() if n not in given}
        return replace(inherited, parameters=others)
    return None


def _inherited(found: Definition) -> Signature | None:
    """Return the arguments of the first base class with a constructor; None if it has no source."""
    inherited = None
    for base in bases(found):
        if base is None or (inherited := _signature(base)) is None:
            return None  # the base that may define the constructor has no source
        if inherited.parameters or inherited.takes_any:
            return inherited
    return inherited


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_name_of(decorator).endswith("dataclass") for decorator in node.decorator_list)


def _makes_constructor(decorator: ast.expr, found: Definition) -> bool:
    """Return whether a decorator of a class is one of attrs or pydantic."""
    name = _name_of(decorator)
    origin = sources.resolve(name, found.module) if name else None
    dotted = origin.name if isinstance(origin, Definition) else origin or ""
    return dotted.partition(".")[0] in ("attr", "attrs", "pydantic")


def _of_fields(found: Definition, node: ast.ClassDef) -> Signature:
    """Return the arguments of a dataclass: its annotated fields, after those of its bases."""
    parameters: dict[str, Parameter] = {}
    for base in filter(None, bases(found)):
        if isinstance(base.node, ast.ClassDef) and _is_dataclass(base.node):
            parameters |= _of_fields(base, base.node).parameters
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=value):
                is_argument, default = _field(kind, value)
                if is_argument:
                    parameters[name] = _parameter(found, kind, default)
    return Signature(found.name, parameters)


def _field(annotation: ast.expr, value: ast.expr | None) -> tuple[bool, ast.expr | None]:
    """Return whether a field of a dataclass is an argument, and its default."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with suppress(SyntaxError):
            annotation = ast.parse(annotation.value, mode="eval").body
    if _name_of(annotation).rpartition(".")[2] in ("ClassVar", "KW_ONLY"):
        return False, None
    if not (isinstance(value, ast.Call) and _name_of(value).rpartition(".")[2] == "field"):
        return True, value
    options = {keyword.arg: keyword.value for keyword in value.keywords}
    is_argument = ast.unparse(options.get("init", ast.Constant(True))) != "False"
    return is_argument, options.get("default", value if "default_factory" in options else None)


def _parameter(
    found: Definition, annotation: ast.expr | None, default: ast.expr | None
) -> Parameter:
    value = REQUIRED if default is None else COMPUTED
    if default is not None:
        with suppress(ValueError):
            value = ast.literal_eval(default)

    def kind() -> Any:
        made = annotations.convert(annotation, found.module)
        return made | None if value is None and made not in (Any, None) else made

    return Parameter(kind, value)


def documentation(target: str) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and the description of each argument in it.

    The descriptions of base classes are included.
    """
    found = sources.definition(target)
    if not isinstance(found, Definition) or isinstance(found.node, ast.expr):
        return "", {}
    text = ast.get_docstring(found.node) or ""
    summary = " ".join(text.partition("\n\n")[0].split())
    return summary, _texts(found) if isinstance(found.node, ast.ClassDef) else _documented(
        found.node
    )


def _texts(found: Definition) -> dict[str, str]:
    """Return the descriptions of arguments in the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    assert isinstance(found.node, ast.ClassDef)
    for base in filter(None, bases(found)):
        texts = _texts(base) | texts
    return texts | _documented(found.node) | _documented(_method(found.node, "__init__"))


_ITEM = re.compile(r"^( *)(\*{0,2}\w+(?:, \w+)*)(?: \(.*?\))?:(?: |$)(.*)")


def _documented(node: ast.ClassDef | sources.Function | None) -> dict[str, str]:
    """Return the description of each argument in the Args section of a docstring."""
    text = node and ast.get_docstring(node)
    lines = text.splitlines() if text else []
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r" *Args.*:", line)]
    found: dict[str, str] = {}
    names: Sequence[str] = ()
    indent = -1
    for line in lines[starts[0] + 1 :] if starts else ():
        if line.strip() and not line.startswith(" "):
            break
        item = _ITEM.match(line)
        if item and (indent < 0 or len(item[1]) <= indent):
            indent, names = len(item[1]), item[2].split(", ")
            found |= dict.fromkeys(names, item[3])
        elif names and line.strip():
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found
