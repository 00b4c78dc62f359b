"""Finds definitions in source files by dotted name, without importing anything.

``importlib.util.find_spec`` imports the parents of a module, and an import of torch takes seconds.
This module asks the finders for one level at a time and parses the files.
"""

import ast
import builtins
import functools
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_MAX_STEPS = 20  # imports to follow
# packages that annotations.py knows by name, and classes of torch that take long to find
_KNOWN = {"annotated_types", "builtins", "pydantic", "typing_extensions"} | sys.stdlib_module_names
_KNOWN_NAMES = ("torch.Tensor", "torch.device", "torch.dtype")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Statement = ast.ClassDef | Function | ast.expr


@dataclass(frozen=True)
class Module:
    """A parsed source file.

    Args:
        name: dotted name.
        is_package: whether the file is an ``__init__.py``.
        names: what the module defines, by name: a class, a function, the value of an assignment, or
            the dotted name of an import.
        stars: modules of its ``from ... import *``.
    """

    name: str
    is_package: bool = False
    names: dict[str, Statement | str] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Definition:
    """A class, function or value, and the module that defines it."""

    module: Module
    node: Statement

    @property
    def name(self) -> str:
        return f"{self.module.name}.{getattr(self.node, 'name', '')}"


class SourceError(Exception):
    """A file that cannot be parsed; the message says where."""


@functools.cache
def _spec(name: str) -> ModuleSpec | None:
    """Return the spec of a module, asking the import system for one level at a time."""
    parent, _, _ = name.rpartition(".")
    path: Sequence[str] | None = None
    if parent:
        above = _spec(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        path = list(above.submodule_search_locations)
    elif found := PathFinder.find_spec(name, [*sys.path, str(Path.cwd())]):
        return found
    for finder in sys.meta_path:
        if (find := getattr(finder, "find_spec", None)) and (found := find(name, path)):
            return found if isinstance(found, ModuleSpec) else None
    return None


def is_installed(name: str) -> bool:
    """Return whether the top-level package of a dotted name can be found."""
    package = name.partition(".")[0]
    return package in sys.builtin_module_names or _spec(package) is not None


def exists(name: str) -> bool:
    """Return whether there is a module of a dotted name."""
    with suppress(ValueError, KeyError, ImportError, AttributeError):
        return _spec(name) is not None
    return False


def submodules(name: str) -> list[str]:
    """Return the names of the modules in a package."""
    spec = _spec(name)
    folders = spec.submodule_search_locations if spec else None
    return [found.name for found in pkgutil.iter_modules(folders)] if folders else []


@functools.cache
def module(name: str) -> Module | None:
    """Return the parsed file of a module, or None if there is no source to read.

    Raises:
        SourceError: the file is not valid Python.
    """
    try:
        spec = _spec(name)
        origin = Path(spec.origin or "") if spec else Path()
        if origin.suffix != ".py":
            return Module(name, True) if spec and spec.submodule_search_locations else None
        tree = ast.parse(origin.read_bytes(), str(origin))
    except SyntaxError as error:
        raise SourceError(f"{error.filename or name}, line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError, KeyError, ImportError, AttributeError):
        return None
    parsed = Module(name, origin.name == "__init__.py")
    for statement in _statements(tree.body):
        _add(parsed, statement)
    return parsed


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, with those under if, try, with and loops."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            handlers = [h.body for h in getattr(statement, "handlers", [])]
            # fallbacks first, so that the body replaces them
            for part in (*handlers, statement.orelse, statement.body):
                yield from _statements(part)
        elif isinstance(statement, ast.With | ast.For | ast.While):
            yield from _statements(statement.body)
        else:
            yield statement


def _add(module: Module, statement: ast.stmt) -> None:
    match statement:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            module.names[statement.name] = statement
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                is_name = isinstance(target, ast.Name)
                for part in ast.walk(target):  # the value of a name in a tuple is not read
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                        module.names[part.id] = value if is_name else ast.Constant(...)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            module.names[name] = value
        case ast.Import(names=aliases):
            for alias in aliases:
                local = alias.asname or alias.name.partition(".")[0]
                module.names[local] = alias.name if alias.asname else local
        case ast.ImportFrom(names=aliases):
            source = _absolute(module, statement)
            for alias in aliases:
                if alias.name == "*":
                    module.stars.append(source)
                else:
                    module.names[alias.asname or alias.name] = f"{source}.{alias.name}"


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    """Return the module that a ``from ... import`` names."""
    if not statement.level:
        return statement.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - statement.level + module.is_package]
    return ".".join([*parts, *filter(None, [statement.module])])


def missing_packages(name: str) -> list[str]:
    """Return the packages that a module of your own imports and that are not installed.

    Imports under ``if`` and ``try`` do not count, and neither do the modules of libraries.
    """
    spec = _spec(name)
    origin = Path((spec and spec.origin) or "")
    if origin.suffix != ".py" or "site-packages" in origin.parts:
        return []
    body = ast.parse(origin.read_bytes()).body
    names = [a.name for s in body if isinstance(s, ast.Import) for a in s.names]
    names += [s.module or "" for s in body if isinstance(s, ast.ImportFrom) and not s.level]
    return [package for package in names if not is_installed(package)]


def definition(dotted: str, steps: int = _MAX_STEPS) -> Definition | str | None:
    """Return the definition of a dotted name, following imports; None if there is no such name.

    A built-in, or a name in a module without source, is returned as its dotted name.

    Raises:
        SourceError: a file on the way is not valid Python.
    """
    if dotted.partition(".")[0] in _KNOWN or dotted in _KNOWN_NAMES or steps == 0:
        return dotted
    parts = dotted.split(".")
    for length in range(len(parts) - 1, 0, -1):
        found = module(".".join(parts[:length]))
        if found is None:
            continue
        return _member(found, parts[length:], steps)
    return dotted if is_installed(dotted) else None


def _member(found: Module, path: Sequence[str], steps: int) -> Definition | str | None:
    node = found.names.get(path[0])
    if node is None:
        for star in found.stars:
            if inside := definition(".".join([star, *path]), steps - 1):
                return inside
        if "__getattr__" in found.names:  # defines names on access
            return ".".join([found.name, *path])
        return None
    if isinstance(node, str):
        return definition(".".join([node, *path[1:]]), steps - 1)
    if isinstance(node, ast.Name | ast.Attribute):
        return resolve(ast.unparse(node) + "".join(f".{p}" for p in path[1:]), found, steps - 1)
    for name in path[1:]:
        body = node.body if isinstance(node, ast.ClassDef) else []
        inner = (s for s in body if isinstance(s, ast.ClassDef | Function) and s.name == name)
        node = next(inner, None)  # type: ignore[arg-type]
        if node is None:
            return None
    return Definition(found, node)


def resolve(name: str, scope: Module, steps: int = _MAX_STEPS) -> Definition | str | None:
    """Return the definition of a dotted name in the code of a module."""
    first = name.partition(".")[0]
    if first not in scope.names and not scope.stars and hasattr(builtins, first):
        return f"builtins.{name}"
    found = definition(f"{scope.name}.{name}", steps)
    if found is None and hasattr(builtins, first):
        return f"builtins.{name}"
    return found
