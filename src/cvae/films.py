"""Films of samples while z moves along a closed loop, and morphs between two test images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from cvae.data import MNISTDataModule
from cvae.figures import image_grid, shorten_name
from cvae.models import Autoencoder
from cvae.sampling import Row, Samples, decode_rows, wrap_row
from cvae.types import Image, Latent
from harness.contract.errors import ConfigError
from harness.contract.files import atomic_write, make_output_error
from harness.contract.sampler import Rows

NUM_FRAMES = 60
FRAME_MILLISECONDS = 66  # a film loops in 4 seconds
_SCALE = 3  # screen pixels for each pixel of an image in a film
_MAX_COLUMNS = 10  # conditions next to each other


class Ends(NamedTuple):
    """The two test images of a morph, and their z."""

    positions: tuple[int, int]
    labels: tuple[int, int]
    x: Image
    z: Latent

    @property
    def title(self) -> str:
        first, last = map("{} (label {})".format, self.positions, self.labels)
        return f"From test image {first} to {last}"


def closed_loop(
    num_loops: int, latent_dim: int, seed: int, temperature: float = 1.0
) -> Float[Tensor, "num_frames num_loops latent_dim"]:
    r"""Return z along closed loops. Each point is a sample of N(0, temperature² I).

    .. math:: z(t) = a \cos 2 \pi t + b \sin 2 \pi t, \quad a, b \sim N(0, temperature^2 I)

    The first frame, a, is the z that :func:`cvae.sampling.generate` samples with the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(num_loops, latent_dim, generator=generator) for _ in range(2))
    angle = (2 * math.pi / NUM_FRAMES * torch.arange(NUM_FRAMES))[:, None, None]
    return temperature * (a * angle.cos() + b * angle.sin())


def interpolate(
    start: Float[Tensor, " latent_dim"],
    end: Float[Tensor, " latent_dim"],
    fractions: Float[Tensor, " num_points"],
) -> Float[Tensor, "num_points latent_dim"]:
    """Return points from ``start`` to ``end``, spherical in direction and linear in length.

    On a straight line between two independent samples of N(0, I), the middle is shorter than a
    sample by a factor of 0.7, and decodes to a more average image.

    Args:
        fractions: positions on the path, from 0 at the start to 1 at the end.
    """
    fraction = fractions[:, None].to(start)
    lengths = start.norm(), end.norm()
    cosine = start @ end / (lengths[0] * lengths[1]).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).arccos()
    if float(lengths[0] * lengths[1]) == 0 or float(angle.sin()) < 1e-3:
        return start + fraction * (end - start)  # parallel or opposite: no unique arc
    arc = ((1 - fraction) * angle).sin() * (start / lengths[0])
    arc += (fraction * angle).sin() * (end / lengths[1])
    return arc / angle.sin() * (lengths[0] + fraction * (lengths[1] - lengths[0]))


@torch.no_grad()
def load_ends(model: Autoencoder, data: MNISTDataModule, positions: Sequence[int]) -> Ends:
    """Return two test images and their z: the posterior mean given their own y, or the code.

    Raises:
        ConfigError: a position is not in the test set.
    """
    first, last = positions
    data.prepare_data()
    data.setup()
    assert data.test is not None
    size = len(data.test)
    if max(positions) >= size:
        raise ConfigError(
            f"morph={first},{last}: must be positions in the test set, from 0 to {size - 1}"
        )
    batch = data.test[Rows(0, torch.tensor([first, last]), 2)]
    z = model.embed(batch.x.to(model.output_bias), batch.y if model.conditional else None)
    labels = data.test.labels[[first, last]].tolist()
    return Ends((first, last), (labels[0], labels[1]), batch.x, z)


def draw_loops(
    model: Autoencoder,
    rows: Sequence[Row],
    num_loops: int,
    seed: int,
    temperature: float = 1.0,
    sample_pixels: bool = False,
) -> list[PILImage.Image]:
    """Return the frames of a film of z along closed loops, the same for every row.

    Args:
        rows: the requested conditions, from :func:`cvae.sampling.requested_rows`.
    """
    loops = closed_loop(num_loops, model.latent_dim, seed, temperature)
    return [_draw_frame(decode_rows(model, rows, z, seed, sample_pixels), rows) for z in loops]


def draw_morph(
    model: Autoencoder, rows: Sequence[Row], ends: Ends, seed: int, sample_pixels: bool = False
) -> list[PILImage.Image]:
    """Return the frames of a film of z from one test image to the other and back."""
    fractions = 0.5 - 0.5 * (2 * math.pi / NUM_FRAMES * torch.arange(NUM_FRAMES)).cos()
    points = interpolate(ends.z[0], ends.z[1], fractions)
    images = decode_rows(model, rows, points, seed, sample_pixels)
    return [_draw_frame(images[:, i : i + 1], rows, ends) for i in range(NUM_FRAMES)]


def draw_strip(
    model: Autoencoder,
    rows: Sequence[Row],
    ends: Ends,
    num_columns: int,
    seed: int,
    sample_pixels: bool = False,
) -> PILImage.Image:
    """Draw a row for each condition, with columns from one test image to the other."""
    fractions = torch.linspace(0, 1, num_columns)
    points = interpolate(ends.z[0], ends.z[1], fractions)
    images = decode_rows(model, rows, points, seed, sample_pixels)
    first, last = (x.expand(len(rows), 1, *x.shape) for x in ends.x.to(images))
    labels = ("test", *(f"{fraction:.2g}" for fraction in fractions.tolist()), "test")
    tiles = torch.cat((first, images, last), dim=1)
    names = [row.name for row in rows]
    return image_grid(tiles, names, labels, f"{ends.title}. Column: fraction of the path.")


def _draw_frame(images: Samples, rows: Sequence[Row], ends: Ends | None = None) -> PILImage.Image:
    """Draw a frame: one row of all conditions if they are few and have one image each."""
    names = [row.name for row in rows]
    if len(rows) == 1 and ends is None:
        return image_grid(scale=_SCALE, **wrap_row(images[0], names[0])._asdict())
    width = images.shape[-1] * _SCALE
    names_fit = all(shorten_name(name, width) == name for name in names)
    is_one_row = images.shape[1] == 1 and len(rows) <= _MAX_COLUMNS and names_fit
    tiles = images.transpose(0, 1) if is_one_row else images
    titles = names if is_one_row else [""] * tiles.shape[1]
    title = ""
    if ends is not None:
        first, last = (x.expand(len(tiles), 1, *x.shape) for x in ends.x.to(images))
        tiles = torch.cat((first, tiles, last), dim=1)
        titles, title = ["test", *titles, "test"], ends.title
    return image_grid(tiles, () if is_one_row else names, titles, title, scale=_SCALE)


def save_film(frames: Sequence[PILImage.Image], output: Path) -> None:
    """Save a film as an animated WebP, without loss.

    Raises:
        ConfigError: the file cannot be written, or its name has the suffix of another format.
    """
    if output.suffix != ".webp":
        raise ConfigError(f"output={output}: a film must end in .webp")
    first, *others = (frame.convert("RGB") for frame in frames)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as file:
            first.save(
                file,
                format="WEBP",
                save_all=True,
                append_images=others,
                duration=FRAME_MILLISECONDS,
                loop=0,
                lossless=True,
            )
    except OSError as error:
        raise make_output_error(output, error) from None
