"""Finds definitions in source files by dotted name, without importing anything.

``importlib.util.find_spec`` imports the parents of a module, and an import of torch takes seconds.
This module asks the finders for one level at a time and parses the files.
"""

import ast
import builtins
import functools
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from harness.config.paths import SOURCE

_MAX_IMPORTS = 20  # imports to follow
# packages that annotations.py knows by name, and classes of torch that take long to find
_KNOWN_PACKAGES = {"annotated_types", "builtins", "pydantic", "typing_extensions"}
_KNOWN_PACKAGES |= sys.stdlib_module_names
_KNOWN_NAMES = ("torch.Tensor", "torch.device", "torch.dtype")
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DefinedNode = ast.ClassDef | FunctionNode | ast.expr
_UNKNOWN = ast.Constant(...)


@dataclass(frozen=True)
class ParsedModule:
    """A parsed source file.

    Args:
        name: dotted name.
        is_package: whether the file is an ``__init__.py``.
        is_library: whether it belongs to an installed package.
        names: what the module defines, by name: a class, a function, the value of an assignment, or
            the dotted name of an import. ``...`` if its value is not known.
        star_imports: modules of its ``from ... import *``.
    """

    name: str
    is_package: bool = False
    is_library: bool = False
    names: dict[str, DefinedNode | str] = field(default_factory=dict)
    star_imports: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Definition:
    """A class, function or value, and the module that defines it."""

    module: ParsedModule
    node: DefinedNode

    @property
    def name(self) -> str:
        return f"{self.module.name}.{getattr(self.node, 'name', '')}"


class SourceError(Exception):
    """A file that cannot be parsed; the message says where."""


@functools.cache
def _find_spec(name: str) -> ModuleSpec | None:
    """Return the spec of a module, asking the import system for one level at a time."""
    parent, _, _ = name.rpartition(".")
    path: Sequence[str] | None = None
    if parent:
        above = _find_spec(parent)
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
    return package in sys.builtin_module_names or _find_spec(package) is not None


def module_exists(name: str) -> bool:
    """Return whether there is a module of a dotted name."""
    with suppress(ValueError, KeyError, ImportError, AttributeError):
        return _find_spec(name) is not None
    return False


def submodules(name: str) -> list[str]:
    """Return the names of the modules in a package."""
    spec = _find_spec(name)
    folders = spec.submodule_search_locations if spec else None
    return [found.name for found in pkgutil.iter_modules(folders)] if folders else []


@functools.cache
def parse_module(name: str) -> ParsedModule | None:
    """Return the parsed file of a module, or None if there is no source to read.

    Raises:
        SourceError: the file is not valid Python.
    """
    try:
        spec = _find_spec(name)
        origin = Path(spec.origin or "") if spec else Path()
        if origin.suffix != ".py":
            return ParsedModule(name, True) if spec and spec.submodule_search_locations else None
        tree = ast.parse(origin.read_bytes(), str(origin))
    except SyntaxError as error:
        raise SourceError(f"{error.filename or name}, line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError, KeyError, ImportError, AttributeError):
        return None
    parsed = ParsedModule(name, origin.name == "__init__.py", _is_library(origin))
    for statement in _flatten_statements(tree.body):
        _add_names(parsed, statement)
    parsed.names.update(dict.fromkeys(_ambiguous_names(tree.body), _UNKNOWN))
    return parsed


def _is_library(path: Path) -> bool:
    """Return whether a file is neither in src/ nor in the current folder."""
    is_own = any(path.is_relative_to(folder) for folder in (SOURCE, Path.cwd()))
    return not is_own or "site-packages" in path.parts


def all_names(parsed: ParsedModule) -> list[str] | None:
    """Return the names in a module; None if there may be others."""
    names = [*parsed.names]
    for star in parsed.star_imports:
        imported = parse_module(star)
        others = None if imported is None or imported is parsed else all_names(imported)
        if others is None:
            return None
        names += others
    return None if "__getattr__" in names or not names else names


def _flatten_statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, with those under if, try, with and loops."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            handlers = [h.body for h in getattr(statement, "handlers", [])]
            # fallbacks first, so that the body replaces them
            for part in (*handlers, statement.orelse, statement.body):
                yield from _flatten_statements(part)
        elif isinstance(statement, ast.With | ast.For | ast.While):
            yield from _flatten_statements(statement.body)
        else:
            yield statement


def _ambiguous_names(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the classes and functions that several branches of an ``if`` or ``try`` define."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            handlers = [h.body for h in getattr(statement, "handlers", [])]
            branches = [[*_flatten_statements(b)] for b in (*handlers, statement.orelse)]
            for name in _defined_names(_flatten_statements(statement.body)):
                if any(name in _bound_names(branch) for branch in branches):
                    yield name


def _defined_names(statements: Iterable[ast.stmt]) -> list[str]:
    return [s.name for s in statements if isinstance(s, ast.ClassDef | FunctionNode)]


def _bound_names(statements: Iterable[ast.stmt]) -> set[str]:
    bound = ParsedModule("")
    for statement in statements:
        _add_names(bound, statement)
    return {*bound.names}


def _add_names(parsed: ParsedModule, statement: ast.stmt) -> None:
    match statement:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            parsed.names[statement.name] = statement
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                is_name = isinstance(target, ast.Name)
                for part in ast.walk(target):  # the value of a name in a tuple is not read
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                        parsed.names[part.id] = value if is_name else _UNKNOWN
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            parsed.names[name] = value
        case ast.Import(names=aliases):
            for alias in aliases:
                local = alias.asname or alias.name.partition(".")[0]
                parsed.names[local] = alias.name if alias.asname else local
        case ast.ImportFrom(names=aliases):
            source = _imported_module(parsed, statement)
            for alias in aliases:
                if alias.name == "*":
                    parsed.star_imports.append(source)
                else:
                    parsed.names[alias.asname or alias.name] = f"{source}.{alias.name}"


def _imported_module(parsed: ParsedModule, statement: ast.ImportFrom) -> str:
    """Return the module that a ``from ... import`` names."""
    if not statement.level:
        return statement.module or ""
    parts = parsed.name.split(".")
    parts = parts[: len(parts) - statement.level + parsed.is_package]
    return ".".join([*parts, *filter(None, [statement.module])])


def missing_packages(name: str) -> list[str]:
    """Return the packages that a module of your own imports and that are not installed.

    Imports under ``if`` and ``try`` do not count. The list is empty for a module of a library.
    """
    spec = _find_spec(name)
    origin = Path((spec and spec.origin) or "")
    if origin.suffix != ".py" or "site-packages" in origin.parts:
        return []
    body = ast.parse(origin.read_bytes()).body
    names = [a.name for s in body if isinstance(s, ast.Import) for a in s.names]
    names += [s.module or "" for s in body if isinstance(s, ast.ImportFrom) and not s.level]
    return [package for package in names if not is_installed(package)]


def find_definition(dotted: str, max_imports: int = _MAX_IMPORTS) -> Definition | str | None:
    """Return the definition of a dotted name, following imports; None if there is no such name.

    A built-in, or a name in a module without source, is returned as its dotted name.

    Raises:
        SourceError: a file on the way is not valid Python.
    """
    if dotted.partition(".")[0] in _KNOWN_PACKAGES or dotted in _KNOWN_NAMES or max_imports == 0:
        return dotted
    parts = dotted.split(".")
    for length in range(len(parts) - 1, 0, -1):
        parsed = parse_module(".".join(parts[:length]))
        if parsed is None:
            continue
        return _find_member(parsed, parts[length:], max_imports)
    return dotted if is_installed(dotted) else None


def _find_member(
    parsed: ParsedModule, path: Sequence[str], max_imports: int
) -> Definition | str | None:
    node = parsed.names.get(path[0])
    if node is None:
        for star in parsed.star_imports:
            if imported := find_definition(".".join([star, *path]), max_imports - 1):
                return imported
        if "__getattr__" in parsed.names:  # defines names on access
            return ".".join([parsed.name, *path])
        return None
    if isinstance(node, str):
        return find_definition(".".join([node, *path[1:]]), max_imports - 1)
    if isinstance(node, ast.Name | ast.Attribute):
        return resolve_name(
            ast.unparse(node) + "".join(f".{p}" for p in path[1:]), parsed, max_imports - 1
        )
    for name in path[1:]:
        body = node.body if isinstance(node, ast.ClassDef) else []
        inner = (s for s in body if isinstance(s, ast.ClassDef | FunctionNode) and s.name == name)
        node = next(inner, None)  # type: ignore[arg-type]
        if node is None:
            return None
    return Definition(parsed, node)


def resolve_name(
    name: str, scope: ParsedModule, max_imports: int = _MAX_IMPORTS
) -> Definition | str | None:
    """Return the definition of a dotted name in the code of a module."""
    first = name.partition(".")[0]
    if first not in scope.names and not scope.star_imports and hasattr(builtins, first):
        return f"builtins.{name}"
    resolved = find_definition(f"{scope.name}.{name}", max_imports)
    if resolved is None and hasattr(builtins, first):
        return f"builtins.{name}"
    return resolved
