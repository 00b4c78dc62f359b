"""Draw the diagram of the conditional VAE, docs/images/cvae.svg: ``python docs/diagram.py``."""

from pathlib import Path

PATH = Path(__file__).resolve().parent / "images" / "cvae.svg"
WIDTH, HEIGHT = 700, 292
MIDDLE = 124  # y of the row from x to π
LABEL_ROW, TERM_ROW = 214, 36

# pages embed the file as an image, so it has its own background, light or dark
STYLE = """
.page { fill: #ffffff; } .box { fill: #f3f5f8; stroke: #57606a; stroke-width: 1.3; }
.net { fill: #dbe9fb; stroke: #1f5fa8; stroke-width: 1.5; }
.term { fill: #fdf0e3; stroke: #b35900; stroke-width: 1.3; stroke-dasharray: 5 3; }
.arrow { fill: none; stroke: #57606a; stroke-width: 1.5; marker-end: url(#head); }
.up { fill: none; stroke: #b35900; stroke-width: 1.3; stroke-dasharray: 5 3; }
.line { fill: none; stroke: #57606a; stroke-width: 1.5; }
#head path { fill: #57606a; }
text { fill: #1f2328; font: 14px Helvetica, Arial, sans-serif; text-anchor: middle; }
.symbol { font: italic 16px Georgia, "Times New Roman", serif; }
.small { font-size: 12.5px; } .loss { fill: #b35900; }
@media (prefers-color-scheme: dark) {
.page { fill: #151b23; } .box { fill: #212830; stroke: #9198a1; }
.net { fill: #16304f; stroke: #6cb0ff; } .term { fill: #36240f; stroke: #f0a45a; }
.arrow, .line { stroke: #9198a1; } #head path { fill: #9198a1; } .up { stroke: #f0a45a; }
text { fill: #e6edf3; } .loss { fill: #f0a45a; }
}
"""
DESCRIPTION = (
    "Image x and label y enter the encoder, which returns mu and sigma. z = mu + sigma eps and "
    "the label y enter the decoder, which returns p(x | z, y). The loss is "
    "-log p(x | z, y) + KL(q(z | x, y) || N(0, I))."
)


def draw_box(css_class: str, left: int, right: int, middle: int, height: int, *lines: str) -> str:
    """Return a rounded box with centered lines; a formula or letter is a symbol."""
    rows = [
        f'<rect class="{css_class}" x="{left}" y="{middle - height // 2}" width="{right - left}" '
        f'height="{height}" rx="8"/>'
    ]
    center, top = (left + right) // 2, middle + 6 - 10 * (len(lines) - 1)
    for row_number, line in enumerate(lines):
        line_class = "" if line.replace(" ", "").isalpha() and len(line) > 1 else "symbol"
        rows.append(draw_text(center, top + 20 * row_number, line, line_class))
    return "\n".join(rows)


def draw_text(x: int, y: int, content: str, css_class: str = "", anchor: str = "middle") -> str:
    class_attribute = f' class="{css_class}"' if css_class else ""
    style = f' style="text-anchor: {anchor}"' if anchor != "middle" else ""
    return f'<text{class_attribute} x="{x}" y="{y}"{style}>{content}</text>'


def draw_path(css_class: str, *points: tuple[int, int]) -> str:
    return f'<path class="{css_class}" d="M' + " L".join(f"{x},{y}" for x, y in points) + '"/>'


def draw_diagram() -> str:
    """Return the diagram as the text of an SVG file."""
    parts = [
        '<rect class="page" width="100%" height="100%" rx="10"/>',
        draw_box("box", 16, 72, MIDDLE, 60, "x", "image"),
        draw_box("net", 102, 202, MIDDLE, 74, "encoder", "q(z | x, y)"),
        draw_box("box", 232, 288, MIDDLE, 60, "μ, σ"),
        draw_box("box", 318, 422, MIDDLE, 60, "z = μ + σ ε"),
        draw_box("net", 452, 552, MIDDLE, 74, "decoder", "p(x | z, y)"),
        draw_box("box", 582, 684, MIDDLE, 60, "π", "pixel means"),
        draw_box("box", 16, 72, LABEL_ROW, 48, "y", "label"),
    ]
    for left, right in ((72, 102), (202, 232), (288, 318), (422, 452), (552, 582)):
        parts.append(draw_path("arrow", (left, MIDDLE), (right - 3, MIDDLE)))
    # the label, to both networks
    for center in (152, 502):
        corner, end = (center, LABEL_ROW), (center, MIDDLE + 40)
        parts.append(draw_path("arrow", (72, LABEL_ROW), corner, end))
    # the noise, and both terms of the loss
    parts += [
        draw_text(384, TERM_ROW + 5, "ε ~ N(0, I)", "symbol"),
        draw_path("arrow", (370, TERM_ROW + 14), (370, MIDDLE - 33)),
        draw_box("term", 176, 318, TERM_ROW, 38, "KL(q ‖ N(0, I))"),
        draw_path("up", (260, MIDDLE - 30), (260, TERM_ROW + 19)),
        draw_box("term", 544, 684, TERM_ROW, 38, "−log p(x | z, y)"),
        draw_path("up", (633, MIDDLE - 30), (633, TERM_ROW + 19)),
        draw_text(16, TERM_ROW + 1, "loss: sum of both", "small loss", "start"),
        draw_text(16, TERM_ROW + 17, "terms, nats per image", "small loss", "start"),
    ]
    # sampling uses only the decoder, the right half of the diagram
    parts += [
        draw_path("line", (318, 240), (318, 248), (684, 248), (684, 240)),
        draw_text(501, 270, "draw a 7: sample z ~ N(0, I), set y = 7, decode", "small"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
        f"<title>Conditional variational autoencoder</title>\n<desc>{DESCRIPTION}</desc>\n"
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse"><path d="M0,0 L10,5 L0,10 z"/></marker>'
        "</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PATH.write_text(draw_diagram(), encoding="utf-8")
