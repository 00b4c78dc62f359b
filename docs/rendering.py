"""Markdown extension of the site: formulas as MathML, and no links to files outside docs/.

The pages stay plain Markdown that GitHub renders too. A formula that cannot be converted fails the
build. A link to a file that the site does not have, such as ``../src/train.py``, becomes text.
"""

import html
import posixpath
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from math_core import LatexError, LatexToMathML
from zensical.extensions.context import ContextPreprocessor

_CONVERTER = LatexToMathML(fancy_error=False)


class _Rendering(Treeprocessor):
    def run(self, root: Element) -> None:
        context = ContextPreprocessor.from_markdown(self.md)
        path = context.page.path if context else ""
        for element in root.iter():
            if element.get("class") == "arithmatex":
                try:
                    mathml = _mathml(element.text or "")
                except LatexError as error:
                    raise ValueError(f"{path}: {element.text}: {error}") from None
                element.text = self.md.htmlStash.store(mathml)
            elif element.tag == "a" and _is_outside(element.get("href") or "", path):
                element.tag = "span"
                del element.attrib["href"]


def _mathml(text: str) -> str:
    r"""Return MathML of a formula in ``\(...\)`` or, as a block, in ``\[...\]``."""
    is_block = text.startswith(r"\[")
    formula = html.unescape(text[2:-2]) if is_block else text[2:-2]
    return _CONVERTER.convert_with_local_state(formula.strip(), displaystyle=is_block)


def _is_outside(href: str, page: str) -> bool:
    """Return whether a link leads out of docs/; ``page`` is the path of its page in docs/."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), href))
    return href.startswith("../") and target.startswith("../")


class Rendering(Extension):
    """Registers the conversion to run after all other syntax."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.treeprocessors.register(_Rendering(md), "rendering", -10)


def makeExtension(**options: Any) -> Rendering:  # noqa: N802
    """Return the extension; Python-Markdown calls this function of the module."""
    return Rendering(**options)
