"""Write the JSON Schemas of the configuration files, and name them in the files.

Run ``make schemas``; a test checks that they are up to date.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from harness.config.composition import register_resolvers  # noqa: E402
from harness.config.editor import editor_schemas, schema_comment  # noqa: E402

FOLDER = ROOT / "docs" / "schemas"
COMMENT_PREFIX = "# yaml-language-server:"


def set_header(text: str, comment: str | None) -> str:
    """Return the text of a configuration file with the comment that names its schema.

    The comment is below the ``# @package`` line, which Hydra reads only above all other comments.
    """
    lines = [row for row in text.splitlines() if not row.startswith(COMMENT_PREFIX)]
    if comment is not None:
        first = next((number for number, row in enumerate(lines) if row.strip()), 0)
        has_package = bool(lines) and re.match(r"#\s*@package\b", lines[first].lstrip())
        lines.insert(first + 1 if has_package else 0, comment)
    return "\n".join(lines) + "\n"


def main() -> None:
    register_resolvers()
    conf = ROOT / "conf"
    FOLDER.mkdir(exist_ok=True)
    schemas = editor_schemas(conf)
    for path in FOLDER.glob("*.json"):
        if path.name not in schemas:
            path.unlink()
    for name, schema in schemas.items():
        (FOLDER / name).write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    for path in sorted(conf.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8-sig")  # without a byte order mark
        header = schema_comment(path, conf, FOLDER)
        if (changed := set_header(text, header)) != text:
            path.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
