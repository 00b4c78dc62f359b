"""Code and commands in docs/article-in-code.md match the project, and its pictures are small."""

import re
import runpy
import textwrap

import pytest
import torch
from PIL import Image as PILImage

from cvae import figures
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "article-in-code.md").read_text(encoding="utf-8")
EXCERPTS = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)


def find_excerpt_end(part: str, source: str, start: int) -> int:
    """Return the end of the first match of these lines, at any indentation, or -1."""
    for indent in range(0, 17, 4):
        lines = "\n" + textwrap.indent(part, " " * indent)
        if (place := source.find(lines, start)) >= 0:
            return place + len(lines) - 1  # its last line break starts the next match
    return -1


@pytest.mark.parametrize(("file", "excerpt"), EXCERPTS, ids=lambda text: text.split("\n")[0])
def test_excerpts_occur_in_the_file_they_name(file: str, excerpt: str) -> None:
    source, end = "\n" + (ROOT / file).read_text(encoding="utf-8"), 0
    for part in re.split(r"^ *\.\.\.\n", excerpt, flags=re.MULTILINE):
        end = find_excerpt_end(part, source, end)
        assert end >= 0, f"not in {file}, in this order:\n{part}"


def test_every_python_block_names_its_file() -> None:
    assert PAGE.count("```python") == len(EXCERPTS) > 5


def test_the_diagram_is_what_its_script_draws() -> None:
    script = runpy.run_path(str(DOCS / "diagram.py"))
    assert script["PATH"].read_text(encoding="utf-8") == script["draw_diagram"]()


def test_pictures_are_small() -> None:
    names = re.findall(r"!\[[^]]*\]\(images/([^)]+)\)", PAGE)
    sizes = {name: (DOCS / "images" / name).stat().st_size for name in names}
    assert max(sizes.values()) < 120_000
    assert sum(sizes.values()) < 500_000


def test_training_commands_are_valid() -> None:
    from hydra import compose, initialize_config_dir

    from harness.command_line.hooks import TrainChecks
    from harness.config.composition import register_resolvers
    from harness.config.hydra_versions import INITIALIZE_OPTIONS
    from harness.config.paths import CONF

    commands = re.findall(r"^python src/train\.py ([^#\n]*)", PAGE, re.MULTILINE)
    assert commands
    register_resolvers()
    with initialize_config_dir(str(CONF), **INITIALIZE_OPTIONS):
        for overrides in commands:
            TrainChecks().check_run(compose("train", overrides.split()))


def test_the_walk_puts_z_where_its_labels_say(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plane:
        """Decode z to an image of two pixels, its two dimensions."""

        def sample(self, y: int, z: torch.Tensor) -> torch.Tensor:
            return z[:, None, None]

    def check(
        tiles: torch.Tensor, rows: list[str], columns: list[str], title: str
    ) -> PILImage.Image:
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                assert tiles[i, j, 0, 0].tolist() == pytest.approx(
                    [float(column), float(row)], abs=0.1
                )
        titles.append(title)
        return PILImage.new("L", (10, 10))

    titles: list[str] = []
    script = runpy.run_path(str(DOCS / "pictures.py"))
    monkeypatch.setattr(figures, "image_grid", check)
    script["draw_walk"](Plane())
    assert [title[:7] for title in titles] == ["Label 2", "Label 7"]
