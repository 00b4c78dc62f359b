"""Writes the README's tables from the files that the measuring commands leave in docs/.

``python docs/tables.py``; a test holds the README to it.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def faults(document: dict[str, Any]) -> str:
    """What was promised, what was injected, and how much of it survived (make test-long)."""
    promises: dict[str, list[dict[str, Any]]] = {}
    for row in document["faults"]:
        promises.setdefault(row["promise"], []).append(row)
    rows = []
    for promise, kinds in promises.items():
        injected, survived = (sum(row[k] for row in kinds) for k in ("injected", "survived"))
        what = "; ".join(f"{row['fault']} {row['injected']:,}" for row in kinds)
        rows.append((promise, what, f"{survived:,} of {injected:,}"))
    return markdown(("promise", "faults injected", "survived"), rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"faults": faults}


def with_tables(text: str) -> str:
    """The text with every marked table made anew from its file."""

    def made(match: re.Match[str]) -> str:
        document = json.loads((DOCS / f"{match[2]}.json").read_text())
        return match[1] + TABLES[match[2]](document) + match[3]

    return TABLE.sub(made, text)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
