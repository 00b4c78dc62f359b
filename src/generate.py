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
from harness.run_folder.trust import resolve_inside


@entry_point("generate", less_memory="num_samples")
def main(
    run: Name,
    trust: Trust,
    label: Literal["all"] | Natural | Annotated[list[Natural], MinLen(1)] | None,
    condition: dict[Name, float | list[float]] | None,
    num_samples: Annotated[int, Interval(ge=1, le=10_000)] | None,
    seed: Annotated[int, Interval(ge=0, le=9223372036854775807)],
    temperature: Weight,
    sample_pixels: bool,
    npy: bool,
    film: bool,
    morph: Natural | list[Natural] | None,
    output: Name | None,
) -> None:
    """Sample images from a trained model into a PNG or a film; write a .npy file if requested."""
    if isinstance(label, list) and len(set(label)) < len(label):
        raise ConfigError(f"label={label}: must have no duplicates")
    run_dir, checkpoint = loading.find_run(run)

    from cvae.generation import Request
    from cvae.models import Autoencoder

    settings = (num_samples, seed, temperature, sample_pixels, npy, film, morph)
    request = Request(label, condition, *settings)
    model, archived = loading.load_model(checkpoint, trust, Autoencoder)
    request = request.for_model(model)
    name = request.file_name(loading.checkpoint_suffix(run_dir, checkpoint))
    picture = Path(output) if output else resolve_inside(run_dir, f"generated/{name}")
    existing = [path for path in (picture, picture.with_suffix(".npy")) if path_exists(path)]
    data = loading.load_data(archived, trust) if morph is not None else None
    for path in request.save(model, data, picture):
        print(path)
        if output and path in existing:
            print(f"{path}: replaced", file=sys.stderr)


if __name__ == "__main__":
    main()
