"""Check that the pages of site/ load nothing from another host. Run by ``make docs``."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

SITE = Path(__file__).resolve().parents[1] / "site"
_FOREIGN_URL = re.compile(r"\s*(?:\w+:)?//", re.ASCII)
_LOADING_TAGS = {"href": {"link"}, "src": set[str](), "srcset": set[str](), "data": {"object"}}
_URL_IN_CSS = re.compile(r"""url\(\s*["']?((?:\w+:)?//[^"')]+)|@import\s+["']((?:\w+:)?//[^"']+)""")


class _ForeignFileParser(HTMLParser):
    """HTML parser that collects the files a page loads from other hosts; links do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign_files: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            tags = _LOADING_TAGS.get(name)
            if tags is not None and (not tags or tag in tags) and _FOREIGN_URL.match(value or ""):
                self.foreign_files.append(f"<{tag} {name}={value}>")
            if name == "style":
                self.foreign_files += find_foreign_in_css(value or "")
            if name == "class" and "mermaid" in (value or "").split():
                self.foreign_files.append("a mermaid diagram, whose script comes from another host")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.foreign_files += find_foreign_in_css(data)


def find_foreign_in_css(text: str) -> list[str]:
    """Return the files of other hosts that a style sheet loads."""
    return [first or second for first, second in _URL_IN_CSS.findall(text)]


def find_foreign_in_page(text: str) -> list[str]:
    """Return the files an HTML page loads from other hosts: scripts, styles, fonts, pictures."""
    parser = _ForeignFileParser()
    parser.feed(text)
    return parser.foreign_files


def main() -> None:
    pages = sorted(SITE.rglob("*.html"))
    if not pages:
        sys.exit(f"{SITE} has no pages: run make docs")
    problems = [
        (page, file)
        for page in pages
        for file in find_foreign_in_page(page.read_text(encoding="utf-8"))
    ]
    for sheet in sorted(SITE.rglob("*.css")):
        css = sheet.read_text(encoding="utf-8")
        problems += [(sheet, file) for file in find_foreign_in_css(css)]
    for path, file in problems:
        print(f"{path.relative_to(SITE)} loads {file}: keep the file in docs/", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"{len(pages)} pages; open site/index.html")


if __name__ == "__main__":
    main()
