"""Labelled grids of images, and the texts that label them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from torch import Tensor

SCALE = 2  # screen pixels for each pixel of an image
FONT_SIZE = 13
_PAGE_COLOR = "#ffffff"
_GAP = 2  # screen pixels between images
_TEXT_COLOR, _GAP_COLOR = "#000000", "#808080"
_MAX_NAME = 12  # characters of a class name

Tiles = Float[Tensor, "rows columns channels height width"]
Names = Sequence[str] | None  # of the classes


def image_grid(
    tiles: Tiles,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    scale: int = SCALE,
    num_blank: int = 0,
    on_baseline: bool = False,
    font_size: int = FONT_SIZE,
) -> PILImage.Image:
    """Draw a labelled grid of grey or color images in [0, 1].

    Args:
        scale: screen pixels for each pixel of an image.
        num_blank: tiles at the end of the last row to leave blank.
        on_baseline: whether to align column labels at their baseline, for words.
        font_size: height of the text in screen pixels.
    """
    font = ImageFont.load_default(font_size)
    rows, columns, channels, height, width = tiles.shape
    cell_width, cell_height = width * scale + _GAP, height * scale + _GAP
    left = 8 + max((round(font.getlength(text)) + 6 for text in row_labels), default=0)
    top = 6 + (font_size + 8) * (bool(title) + bool(column_labels))
    title_width = round(font.getlength(title)) + 16
    size = (
        max(left + columns * cell_width + _GAP + 8, title_width),
        top + rows * cell_height + _GAP + 8,
    )
    page = PILImage.new("L" if channels == 1 else "RGB", size, _PAGE_COLOR)
    draw = ImageDraw.Draw(page)
    right, bottom = left + columns * cell_width + _GAP - 1, top + rows * cell_height + _GAP - 1
    draw.rectangle((left, top, right, bottom), fill=_GAP_COLOR)
    pixels = (tiles.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    arrays = (pixels[:, :, 0] if channels == 1 else pixels.movedim(2, 4)).numpy()
    for i in range(rows):
        for j in range(columns):
            tile = PILImage.fromarray(arrays[i, j]).resize((width * scale, height * scale), 0)
            page.paste(tile, (left + _GAP + j * cell_width, top + _GAP + i * cell_height))
    if num_blank:
        x, y = right + 1 - num_blank * cell_width, bottom + 1 - cell_height
        draw.rectangle((x, y, right, bottom), fill=_PAGE_COLOR)
    if title:
        draw.text((8, 5), title, fill=_TEXT_COLOR, font=font)
    for i, text in enumerate(row_labels):
        y = top + _GAP + i * cell_height + height * scale // 2
        draw.text((left - 6, y), text, fill=_TEXT_COLOR, font=font, anchor="rm")
    for j, text in enumerate(column_labels):
        x = left + _GAP + j * cell_width + width * scale // 2
        draw.text(
            (x, top - 4), text, fill=_TEXT_COLOR, font=font, anchor="ms" if on_baseline else "mb"
        )
    return page


def join_panels(
    panels: Sequence[PILImage.Image], title: str, font_size: int = FONT_SIZE
) -> PILImage.Image:
    """Join panels of equal size, at most five in a row, with as few empty places as possible."""
    columns = min((5, 4, 3), key=lambda n: -len(panels) % n) if len(panels) > 5 else len(panels)
    font, top = ImageFont.load_default(font_size), font_size + 12
    width, height = panels[0].size
    page_width = max(columns * width, round(font.getlength(title)) + 16)
    page_height = top + -(-len(panels) // columns) * height
    page = PILImage.new(panels[0].mode, (page_width, page_height), _PAGE_COLOR)
    ImageDraw.Draw(page).text((8, 6), title, fill=_TEXT_COLOR, font=font)
    for i, panel in enumerate(panels):
        page.paste(panel, (i % columns * width, top + i // columns * height))
    return page


def shorten_name(name: str, width: float = float("inf")) -> str:
    """Return a name of at most 12 characters, and at most ``width`` screen pixels."""
    font = ImageFont.load_default(FONT_SIZE)
    shown = name.encode("utf-8", "replace").decode("utf-8")  # file names may hold invalid text
    is_cut = len(shown) > _MAX_NAME
    shown = shown[: _MAX_NAME - 1] if is_cut else shown
    while len(shown) > 1 and font.getlength(shown + "…" * is_cut) > width:
        shown, is_cut = shown[:-1], True
    return shown + "…" * is_cut


def class_labels(classes: Sequence[int], names: Names, width: float = float("inf")) -> list[str]:
    """Return the labels of classes: their names, or their numbers if there are no names."""
    return [str(c) if names is None else shorten_name(names[c], width) for c in classes]
