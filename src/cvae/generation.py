"""Requests to generate.py: samples, films and morphs."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from cvae import films, sampling
from cvae.conditions import OneHot
from cvae.data import MNISTDataModule
from cvae.models import Autoencoder
from cvae.sampling import Label, Values
from harness.contract.errors import ConfigError

_NUM_SAMPLES = 16  # default for each condition
_NUM_COLUMNS = 11  # default of a strip from one test image to the other
_MAX_LOOPS = 100  # for each condition of a film
_MAX_NAME = 100  # characters of the condition in a file name


@dataclasses.dataclass(frozen=True)
class Request:
    """The settings of generate.py, as conf/generate.yaml describes them.

    Raises:
        ConfigError: ``morph`` or ``num_samples`` is invalid, or two settings contradict each other.
    """

    label: Label
    condition: Mapping[str, Values] | None
    num_samples: int | None
    seed: int
    temperature: float = 1.0
    sample_pixels: bool = False
    npy: bool = False
    film: bool = False
    morph: int | list[int] | None = None

    def __post_init__(self) -> None:
        count, ends = self.num_samples, self.morph
        if ends is not None and (isinstance(ends, int) or len(ends) != 2 or ends[0] == ends[1]):
            raise ConfigError(
                f"morph={ends}: must be two positions in the test set, such as morph=12,345"
            )
        if self.npy and (self.film or self.morph):
            kind = "a film" if self.film else "a morph"
            raise ConfigError(f"npy=true: {kind} has no array of samples; remove it")
        if self.morph and self.temperature != 1:
            raise ConfigError(
                f"temperature={self.temperature} has no effect with morph=: remove it"
            )
        if self.morph and self.film and count is not None:
            raise ConfigError(f"num_samples={count} has no effect on a film of morph=: remove it")
        if self.morph and count == 1:
            raise ConfigError(
                "num_samples=1: must be at least 2, because it counts the columns of morph="
            )
        if self.film and count is not None and count > _MAX_LOOPS:
            raise ConfigError(f"num_samples={count}: must be at most {_MAX_LOOPS} in a film")

    def for_model(self, model: Autoencoder) -> "Request":
        """Return the request with its label for this model.

        A film or morph without a label gets "all". A list of one label becomes that label.
        """
        label = self.label
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        has_labels = model.conditional and isinstance(model.condition, OneHot)
        if label is None and has_labels and (self.film or self.morph):
            label = "all"
        return dataclasses.replace(self, label=label)

    def file_name(self, checkpoint: str = "") -> str:
        """Return a file name that is different for each picture.

        Args:
            checkpoint: name of the checkpoint, if it is not the best one.
        """
        label = "none" if self.label is None else str(self.label)
        if isinstance(self.label, list):
            label = "-".join(map(str, self.label))
        parts = [f"label-{label}"]
        if self.condition is not None:
            values = {k: str(v).strip("[]").replace(", ", "_") for k, v in self.condition.items()}
            parts = [f"{name}-{text}" for name, text in values.items()]
        if len("-".join(parts)) > _MAX_NAME:
            digest = hashlib.sha256("-".join(parts).encode()).hexdigest()[:8]
            parts = ["-".join(parts)[:_MAX_NAME], digest]
        if isinstance(self.morph, list):
            parts += [f"morph-{'-'.join(map(str, self.morph))}"]
        parts += [f"seed-{self.seed}"]
        default = None if self.film or self.morph else _NUM_SAMPLES
        is_default = self.num_samples in (None, default)
        parts += [] if is_default else [f"samples-{self.num_samples}"]
        parts += [f"temperature-{self.temperature}"] if self.temperature != 1 else []
        parts += ["sampled"] if self.sample_pixels else []
        parts += [checkpoint] if checkpoint else []
        return "-".join(parts) + (".webp" if self.film else ".png")

    def save(self, model: Autoencoder, data: MNISTDataModule | None, output: Path) -> list[Path]:
        """Save the samples, film or morph, and return the written files.

        Args:
            data: the data of the run; only needed for a morph.

        Raises:
            ConfigError: the label or condition does not fit the model, a test image does not
                exist, or the file cannot be written.
        """
        rows = sampling.requested_rows(model, self.label, self.condition)
        if isinstance(self.morph, list):
            assert data is not None
            ends = films.load_ends(model, data, self.morph)
            options = (self.seed, self.sample_pixels)
            count = self.num_samples or _NUM_COLUMNS
            if self.film:
                films.save_film(films.draw_morph(model, rows, ends, *options), output)
            else:
                strip = films.draw_strip(model, rows, ends, count, *options)
                sampling.save_picture(strip, output)
            return [output]
        count = self.num_samples or (1 if self.film and len(rows) > 1 else _NUM_SAMPLES)
        settings = (count, self.seed, self.temperature, self.sample_pixels)
        if self.film:
            films.save_film(films.draw_loops(model, rows, *settings), output)
            return [output]
        images = sampling.generate(model, rows, *settings)
        return sampling.save(images, output, [row.name for row in rows], npy=self.npy)
