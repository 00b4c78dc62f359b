"""Griffe extension of the site: reStructuredText in docstrings becomes Markdown."""

import logging
import re
from typing import Any

import griffe

_BLOCK = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)


def to_markdown(text: str) -> str:
    """Return a docstring with its formulas, roles and literal blocks as Markdown."""
    text = _BLOCK.sub(lambda match: f"{match[1]}$$\n{match[2]}\n{match[1]}$$", text)
    text = re.sub(r":math:`([^`]+)`", lambda match: f"${match[1]}$", text)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"(?<=\w)::$", ":", text, flags=re.MULTILINE)


class _FailOnWarning(logging.Handler):
    """Fails the build on a warning, such as a documented argument that does not exist."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError(record.getMessage())


class Docstrings(griffe.Extension):
    """Converts the docstring of every object that the pages show."""

    def __init__(self) -> None:
        logging.getLogger("mkdocs.plugins.griffe").addHandler(_FailOnWarning(logging.WARNING))

    def on_object(self, *, obj: griffe.Object, **arguments: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
