"""Decode image files into unsigned bytes of one shape."""

from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from harness.contract.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = "PNG, JPEG, WebP or BMP"
Resize = Literal["fit", "stretch", "none"]
Shape = tuple[int, ...]  # (channels, height, width)

# position of the bit depth in a PNG file; Pillow reads 16-bit colors as 8 bits without a warning
_DEPTH_BYTE = 24
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # at most 8 bits a channel, grey or RGB
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def decode(path: Path, image_shape: Shape, resize: Resize) -> NDArray[np.uint8]:
    """Return an image as unsigned bytes (channels, height, width), rotated as its EXIF data say.

    Args:
        image_shape: (channels, height, width) to return, with 1 channel for grey or 3 for RGB.
        resize: "fit" scales the image to cover the shape and crops its center, "stretch" changes
            its proportions, "none" takes only images of this height and width.

    Raises:
        DataError: the file is damaged, has transparent pixels or 16 bits, is animated or CMYK, or
            has another size with resize="none".
    """
    try:
        with path.open("rb") as file:
            image = _resize(_open(path, file, image_shape[0]), path, image_shape, resize)
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a {FORMATS} image; replace or remove it") from None
    except Exception as error:  # Pillow raises errors of many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: damaged or unreadable image ({reason}); replace or remove it"
        ) from None
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)


def _open(path: Path, file: BinaryIO, num_channels: int) -> PILImage.Image:
    """Return the upright image, in grey or RGB."""
    header = file.read(_DEPTH_BYTE + 1)
    file.seek(0)
    image: PILImage.Image = PILImage.open(file, formats=("PNG", "JPEG", "WEBP", "BMP"))
    if image.mode in _DEEP_MODES or (image.format == "PNG" and header[_DEPTH_BYTE:] == b"\x10"):
        raise DataError(f"{path}: more than 8 bits a channel; convert the image to 8 bits")
    if image.mode not in _MODES:
        raise DataError(f"{path}: {image.mode} image; convert it to RGB")
    # cameras write MPO files, whose further frames are previews
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise DataError(f"{path}: animated image; save one frame of it")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            raise DataError(f"{path}: transparent pixels; save it on an opaque background")
    return image.convert("L" if num_channels == 1 else "RGB")


def _resize(
    image: PILImage.Image, path: Path, image_shape: Shape, resize: Resize
) -> PILImage.Image:
    size = image_shape[2], image_shape[1]
    if image.size == size:
        return image
    if resize == "none":
        width, height = image.size
        raise DataError(
            f"{path}: height {height} and width {width} differ from "
            f"data.image_shape={list(image_shape)}; set data.resize=fit or data.resize=stretch"
        )
    if resize == "stretch":
        return image.resize(size, PILImage.Resampling.BICUBIC)
    return ImageOps.fit(image, size, PILImage.Resampling.BICUBIC)
