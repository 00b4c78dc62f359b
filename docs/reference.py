"""Write docs/reference/settings.md from conf/ and its JSON Schemas.

Run ``make schemas``; a test checks that the page is up to date.
"""

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from harness.config.composition import register_resolvers  # noqa: E402
from harness.config.editor import editor_schemas  # noqa: E402
from harness.config.hydra_versions import INITIALIZE_OPTIONS  # noqa: E402
from harness.config.keys import format_value  # noqa: E402
from harness.config.libraries import TRAINER  # noqa: E402
from harness.config.schemas import describe_valid_values  # noqa: E402

CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "reference" / "settings.md"
INTRO = """# Settings

Every setting that `conf/` holds, with its value there. Set one on the command line:

```
python src/train.py model.latent_dim=8 optimizer=sgd model/prior=flow
```

`model.latent_dim=8` sets a value. `optimizer=sgd` chooses `conf/optimizer/sgd.yaml`. The types and
ranges are the annotations of the constructors ([how they are read](annotations.md)), and an editor
checks them in `conf/` too. `python src/train.py --cfg job` shows the composed values.
`make schemas` writes this page.
"""
GROUP_ORDER = (
    "data",
    "model",
    "optimizer",
    "scheduler",
    "trainer",
    "device",
    "logger",
    "callbacks",
)
LIBRARIES = ("torch.", "lightning.")  # a comment in conf/ says more than their docstrings
HYDRA_KEYS = {"defaults", "hydra", "_target_", "_partial_", "_args_", "_convert_", "_recursive_"}

Node = Mapping[str, Any]


def render_settings_page() -> str:
    """Return the text of docs/reference/settings.md."""
    register_resolvers()
    schemas = editor_schemas(CONF)
    parts = [INTRO, "\n## Top level of train.yaml\n\n"]
    with initialize_config_dir(str(CONF), **INITIALIZE_OPTIONS):
        properties = schemas["train.json"]["properties"]
        parts += _render_settings(properties, "", {"train": _compose_config()}, "train")
        for group in _list_groups():
            parts += [f"\n## `{group}`\n\n", *_render_choices(group)]
            parts += _render_classes(group, schemas)
        for script in sorted(path.stem for path in CONF.glob("*.yaml")):
            if script != "train" and f"{script}.json" in schemas:
                properties = schemas[f"{script}.json"]["properties"]
                parts.append(f"\n## `{script}.py`\n\n")
                parts += _render_settings(properties, "", {script: _compose_config(script)}, script)
    return re.sub(r"\n{3,}", "\n\n", "".join(parts))


def _list_groups() -> list[str]:
    """Return the groups of conf/ that a run chooses from, those in GROUP_ORDER first."""
    groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")}
    names = sorted(group for group in groups if not group.startswith("hydra"))
    tops = [*GROUP_ORDER, *(name for name in names if name.partition("/")[0] not in GROUP_ORDER)]
    return sorted(names, key=lambda name: tops.index(name.partition("/")[0]))


def _compose_config(name: str = "train") -> dict[str, Any]:
    """Return a composed config, or a file of a group, with its interpolations as written."""
    with warnings.catch_warnings():  # Hydra mistakes the file of a group for that of a script
        warnings.filterwarnings("ignore", message=".*missing `_self_`")
        config = compose(name)
    assert isinstance(config, DictConfig)
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _list_files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _render_choices(group: str) -> Iterator[str]:
    """Yield a table of the files of a group, with the comment at the top of each."""
    if len(files := _list_files(group)) < 2:
        return
    entries = OmegaConf.load(CONF / "train.yaml").defaults
    defaults = {key: value for entry in entries if isinstance(entry, DictConfig)
              for key, value in entry.items()}  # fmt: skip
    yield "| choice | what it is |\n|---|---|\n"
    for name in files:
        is_default = " (default)" if defaults.get(group) == name else ""
        yield f"| `{group}={name}`{is_default} | {_summarize_file(group, name)} |\n"


def _summarize_file(group: str, name: str) -> str:
    """Return the comment above the values of a file, without commands and directives."""
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    comment = re.match(r"(#.*\n)*", text)
    assert comment is not None
    lines = re.findall(r"# (?!@package|yaml-language-server|python src/)(.*)", comment[0])
    if group == "experiment":  # docs/measured has its hardware, minutes and nats
        return re.split("[;:(]", _format_cell(lines[0]))[0].strip()
    return _format_cell(" ".join(lines))


def _render_classes(group: str, schemas: Mapping[str, Node]) -> Iterator[str]:
    """Yield one table for each class that a group, or a node in it, may name."""
    if group == "trainer":
        nodes_by_file = {"default": _compose_config()["trainer"]}
        properties = schemas["trainer.json"]["properties"]
        yield from _render_settings(properties, "trainer.", nodes_by_file, group, TRAINER)
        return
    schema = schemas.get(f"{group.replace('/', '.')}.json")
    if schema is None:
        return
    nodes_by_file = {
        file: _select_group(_compose_config(f"{group}/{file}"), group)
        for file in _list_files(group)
    }
    key = group.replace("/", ".")
    if "definitions" not in schema:
        yield from _render_by_class(key, nodes_by_file, schema, group)
        return
    inner = schema["definitions"]["node"]
    for name in dict.fromkeys(name for nodes in nodes_by_file.values() for name in nodes or {}):
        nodes = {file: node[name] for file, node in nodes_by_file.items() if name in (node or {})}
        yield from _render_by_class(f"{key}.{name}", dict([*nodes.items()][:1]), inner, group)


def _select_group(config: Node, group: str) -> Any:
    """Return the node of a group, such as model/network, in a composed config."""
    node: Any = config
    for name in group.split("/"):
        node = node.get(name) or {}
    return node


def _render_by_class(
    key: str, nodes_by_file: Mapping[str, Any], schema: Node, group: str
) -> Iterator[str]:
    """Yield one table for each class that a schema allows and a file names."""
    for case in schema["allOf"][:-1]:
        target = case["if"]["properties"]["_target_"]["const"]
        nodes = {
            file: node
            for file, node in nodes_by_file.items()
            if node and node["_target_"] == target
        }
        if nodes:
            summary = _format_cell(case["then"].get("description", ""))
            yield f"\n### `{target}`\n\n" + (f"{summary}\n\n" if summary else "")
            properties = case["then"]["properties"]
            yield from _render_settings(properties, f"{key}.", nodes, group, target)


def _render_settings(
    properties: Node, prefix: str, nodes_by_file: Mapping[str, Node], source: str, target: str = ""
) -> Iterator[str]:
    """Yield a table of settings: those of conf/, then the names of all others.

    Args:
        properties: JSON Schema of each setting, by name.
        prefix: text before a name on the command line, such as ``model.``.
        nodes_by_file: composed values, by the name of the file that they come from.
        source: file or group whose comments describe settings.
        target: dotted name of the class.
    """
    names = [name for name in properties if name not in HYDRA_KEYS]
    present = [name for name in names if any(name in node for node in nodes_by_file.values())]
    comments = _read_comments(source, nodes_by_file)
    if present:
        yield "| setting | value | allowed | meaning |\n|---|---|---|---|\n"
    for name in present:
        schema = properties[name]
        if "$ref" in schema:
            group = (prefix + name).replace(".", "/")
            yield f"| `{prefix}{name}` | | a group | see [`{group}`](#{group.replace('/', '')}) |\n"
            continue
        meanings = [schema.get("description"), comments.get(name)]
        if target.startswith(LIBRARIES):
            meanings.reverse()
        meaning = _format_cell(next(filter(None, meanings), ""))
        allowed = _describe_allowed(schema["anyOf"][0])
        values = _format_values(nodes_by_file, name)
        yield f"| `{prefix}{name}` | {values} | {allowed} | {meaning} |\n"
    if others := [name for name in names if name not in present]:
        yield f"\nAlso accepted: {', '.join(f'`{name}`' for name in others)}.\n"


def _describe_allowed(schema: Node) -> str:
    """Return the values that a JSON Schema allows, as short text."""
    text = describe_valid_values(schema).replace(" that is not empty", "")
    return _format_cell(text)


def _format_values(nodes_by_file: Mapping[str, Node], name: str) -> str:
    """Return the value of a setting, or that of each file where they differ."""
    by_value: dict[str, list[str]] = {}
    for file, node in nodes_by_file.items():
        if name in node:
            text = format_value(node[name]).replace("'", "")
            by_value.setdefault(f"`{text}`", []).append(file)
    if len(by_value) == 1:
        return _format_cell(next(iter(by_value)))
    cells = (f"{value} ({', '.join(files)})" for value, files in by_value.items())
    return _format_cell("<br>".join(cells))


def _read_comments(source: str, nodes_by_file: Iterable[str]) -> dict[str, str]:
    """Return the comment after or above each setting in the files of a group."""
    paths = [CONF / f"{source}.yaml", *(CONF / source / f"{file}.yaml" for file in nodes_by_file)]
    texts = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    comments: dict[str, str] = {}
    for text in texts:
        values = re.sub(r"\A(#.*\n)*", "", text)  # without the comment about the file
        for above, name, after in re.findall(r"(?: *# (.+)\n)? *(\w+):(?:.*? # (.+))?", values):
            comments.setdefault(name, after or above)
    return comments


def _format_cell(text: str) -> str:
    """Return the first sentence of a description as a cell of a Markdown table."""
    text = re.sub(r":math:`(.+?)`", r"$\1$", " ".join(text.split()))
    text = re.sub(r":\w+:`~?[\w.]*?(\w+)`|`(\w+) <\S+>`_", r"`\1\2`", text)
    text = re.sub(r"\bNone\b", "null", text.replace("``", "`")).replace("|", r"\|")
    return re.split(r"(?<!et al)\.(?: |$)", text, maxsplit=1)[0]


def main() -> None:
    PAGE.write_text(render_settings_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
