"""Tests of decoding single image files."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from cvae.image_files import Resize, decode
from harness.contract.errors import DataError
from tests.tally import Promise

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
SHAPE = (3, 6, 8)


def save_image(path: Path, array: Any, mode: str | None = None, **options: Any) -> Path:
    picture = PILImage.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(path, **options)
    return path


def write_16_bit_png(path: Path) -> None:
    """Write a PNG of 16 bits a channel in RGB, which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(6 * (1 + 8 * 6)))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_lossless_files_keep_their_pixels(suffix: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    path = save_image(tmp_path / f"x.{suffix}", RGB, **options)
    assert np.array_equal(decode(path, SHAPE, "none"), np.moveaxis(RGB, 2, 0))


def test_a_jpeg_is_decoded_with_small_errors(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    found = decode(save_image(tmp_path / "x.JPG", flat, format="JPEG"), (3, 16, 16), "none")
    assert np.abs(found.astype(int) - np.moveaxis(flat, 2, 0)).max() <= 3


def test_opaque_alpha_palette_grey_and_1_bit_images_convert_without_loss(tmp_path: Path) -> None:
    expected = np.moveaxis(RGB, 2, 0)
    opaque = np.dstack([RGB, np.full((6, 8), 255, np.uint8)])
    assert np.array_equal(decode(save_image(tmp_path / "a.png", opaque), SHAPE, "none"), expected)
    few = (RGB // 128) * 255  # eight colors, which the palette of Pillow has exactly
    palette = save_image(tmp_path / "p.png", few, "P")
    with PILImage.open(palette) as picture:
        assert picture.mode == "P"
    assert np.array_equal(decode(palette, SHAPE, "none"), np.moveaxis(few, 2, 0))
    grey = save_image(tmp_path / "l.png", GREY)
    assert np.array_equal(decode(grey, SHAPE, "none"), np.stack([GREY] * 3))
    assert np.array_equal(decode(grey, (1, 6, 8), "none"), GREY[None])
    bits = save_image(tmp_path / "b.png", (GREY > 127) * np.uint8(255), "1")
    assert np.array_equal(decode(bits, (1, 6, 8), "none")[0], (GREY > 127) * 255)


def test_one_channel_is_the_luma_of_colors(tmp_path: Path) -> None:
    found = decode(save_image(tmp_path / "x.png", RGB), (1, 6, 8), "none")
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found[0] - luma).max() < 1


def test_the_orientation_in_the_exif_data_is_applied(tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6  # the camera was rotated by 90 degrees
    path = save_image(tmp_path / "x.png", RGB, exif=exif)
    turned = np.rot90(RGB, -1)
    assert np.array_equal(decode(path, (3, 8, 6), "none"), np.moveaxis(turned, 2, 0))


def test_resize_fits_or_stretches(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20, 0] = 255  # a red square in the middle
    path = save_image(tmp_path / "x.png", wide)
    fitted = decode(path, (3, 5, 5), "fit")
    assert fitted.shape == (3, 5, 5)
    assert (fitted[0, :, 1:4] > 240).all()
    assert (fitted[1:] == 0).all()
    stretched = decode(path, (3, 5, 15), "stretch")
    assert (stretched[0, :, 6:9] > 200).all()
    assert (stretched[0, :, [0, 1, 2, 12, 13, 14]] == 0).all()
    tall = decode(path, (1, 20, 5), "fit")
    assert tall.shape == (1, 20, 5)


def write_transparent(path: Path) -> None:
    save_image(path, np.dstack([RGB, np.arange(48, dtype=np.uint8).reshape(6, 8)]))


def write_animated(path: Path) -> None:
    frames = [PILImage.fromarray(RGB), PILImage.fromarray(255 - RGB)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def write_truncated(path: Path) -> None:
    save_image(path, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:2000])


Case = tuple[str, Callable[[Path], object], str]
UNSUITABLE_FILES: list[Case] = [
    ("x.png", lambda p: p.write_bytes(b"<html>"), "not a PNG, JPEG, WebP or BMP image; replace"),
    ("x.png", lambda p: save_image(p, RGB, "P", format="GIF"), "not a PNG"),
    ("x.png", write_truncated, "damaged or unreadable"),
    ("x.jpg", write_truncated, "damaged or unreadable"),
    ("x.webp", write_truncated, "damaged or unreadable|not a PNG"),
    ("x.png", lambda p: p.mkdir(), "damaged or unreadable"),
    ("x.png", lambda p: None, "damaged or unreadable"),
    ("x.png", write_16_bit_png, "more than 8 bits a channel; convert the image to 8 bits"),
    ("x.png", lambda p: save_image(p, GREY.astype(np.uint16) * 257), "more than 8 bits a channel"),
    ("x.jpg", lambda p: save_image(p, RGB, "CMYK"), "CMYK image; convert it to RGB"),
    ("x.png", write_transparent, "transparent pixels; save it on an opaque background"),
    ("x.png", lambda p: save_image(p, np.dstack([GREY, GREY])), "transparent pixels"),
    ("x.png", lambda p: save_image(p, RGB // 128 * 255, "P", transparency=0), "transparent pixels"),
    ("x.png", lambda p: save_image(p, GREY, transparency=int(GREY[0, 0])), "transparent pixels"),
    ("x.png", write_animated, "animated image; save one frame"),
    ("x.webp", write_animated, "animated image; save one frame"),
    (
        "x.png",
        lambda p: save_image(p, RGB[:, :5]),
        "height 6 and width 5 differ from data.image_shape=",
    ),
]


@pytest.mark.fault(Promise.DATA, "an image file that is damaged or of an unsuitable kind")
@pytest.mark.parametrize(("name", "write", "message"), UNSUITABLE_FILES)
def test_unsuitable_files_are_rejected_by_name(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        decode(tmp_path / name, SHAPE, "none")
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resize", ["fit", "stretch"])
def test_only_resize_none_rejects_other_sizes(resize: Resize, tmp_path: Path) -> None:
    assert decode(save_image(tmp_path / "x.png", RGB[:, :5]), SHAPE, resize).shape == SHAPE
