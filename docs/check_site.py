"""Check that the pages of site/ load nothing from another host. Run by ``make docs``."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

SITE = Path(__file__).resolve().parents[1] / "site"
_FOREIGN = re.compile(r"\s*(?:\w+:)?//", re.ASCII)
_LOADING = {"href": {"link"}, "src": set[str](), "srcset": set[str](), "data": {"object"}}
_IN_CSS = re.compile(r"""url\(\s*["']?((?:\w+:)?//[^"')]+)|@import\s+["']((?:\w+:)?//[^"']+)""")


class _Loads(HTMLParser):
    """HTML parser that collects the files a page loads from other hosts; links do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            tags = _LOADING.get(name)
            if tags is not None and (not tags or tag in tags) and _FOREIGN.match(value or ""):
                self.found.append(f"<{tag} {name}={value}>")
            if name == "style":
                self.found += foreign_in_css(value or "")
            if name == "class" and "mermaid" in (value or "").split():
                self.found.append("a mermaid diagram, whose script comes from another host")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += foreign_in_css(data)


def foreign_in_css(text: str) -> list[str]:
    """Return the files of other hosts that a style sheet loads."""
    return [first or second for first, second in _IN_CSS.findall(text)]


def foreign_in_page(text: str) -> list[str]:
    """Return the files an HTML page loads from other hosts: scripts, styles, fonts, pictures."""
    page = _Loads()
    page.feed(text)
    return page.found


def main() -> None:
    pages = sorted(SITE.rglob("*.html"))
    if not pages:
        sys.exit(f"{SITE} has no pages: run make docs")
    found = [
        (page, what) for page in pages for what in foreign_in_page(page.read_text(encoding="utf-8"))
    ]
    for sheet in sorted(SITE.rglob("*.css")):
        found += [(sheet, what) for what in foreign_in_css(sheet.read_text(encoding="utf-8"))]
    for path, what in found:
        print(f"{path.relative_to(SITE)} loads {what}: keep the file in docs/", file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"{len(pages)} pages; open site/index.html")


if __name__ == "__main__":
    main()
