"""Generate digits: ``python src/generate.py run=logs/latest label=7 num_samples=16``."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, MinLen

from harness.command_line.entry_point import entry_point
from harness.config.paths import path_exists
from harness.contract.errors import ConfigError
from harness.contract.settings import Name, Natural, Trust, Weight
from harness.run_folder import loading
from harness.run_folder.reading import BEST
from harness.run_folder.trust import resolve_inside


@entry_point("generate", less_memory="num_samples")
def main(
    run: Name,
    trust: Trust,
    label: Literal["all"] | Natural | Annotated[list[Natural], MinLen(1)] | None,
    condition: dict[Name, float | list[float]] | None,
    num_samples: Annotated[int, Interval(ge=1, le=10_000)],
    seed: Annotated[int, Interval(ge=0, le=9223372036854775807)],
    temperature: Weight,
    sample_pixels: bool,
    npy: bool,
    output: Name | None,
) -> None:
    """Sample images from a trained model into a PNG, and a .npy file if requested."""
    if isinstance(label, list) and len(set(label)) < len(label):
        raise ConfigError(f"label={label}: must have no duplicates")
    run_dir, checkpoint = loading.find_run(run)

    from cvae.models import Autoencoder
    from cvae.sampling import file_name, generate, requested_rows, save

    model, _ = loading.load_model(checkpoint, trust, Autoencoder)
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    rows = requested_rows(model, label, condition)
    settings = (num_samples, seed, temperature, sample_pixels)
    images = generate(model, rows, *settings)
    other = "" if checkpoint == run_dir / BEST else checkpoint.stem
    name = file_name(label, condition, *settings, other)
    picture = Path(output) if output else resolve_inside(run_dir, f"generated/{name}")
    existing = [path for path in (picture, picture.with_suffix(".npy")) if path_exists(path)]
    for path in save(images, picture, [row.name for row in rows], npy=npy):
        print(path)
        if output and path in existing:
            print(f"{path}: replaced", file=sys.stderr)


if __name__ == "__main__":
    main()
