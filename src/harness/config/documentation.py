"""Reads the descriptions of a class and of its arguments from docstrings, without importing it."""

import ast
import re
from collections.abc import Sequence

from harness.config import sources
from harness.config.signatures import base_classes, find_method
from harness.config.sources import Definition


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
        | _read_args_section(find_method(definition.node, "__init__"))
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
