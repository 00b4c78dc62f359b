"""Save the latents of a split: ``python src/embed.py run=logs/latest split=test``."""

from pathlib import Path
from typing import Literal

from harness.command_line.entry_point import entry_point
from harness.config.paths import display_path
from harness.contract.settings import Name, Trust
from harness.run_folder import loading
from harness.run_folder.trust import resolve_inside


@entry_point("embed")
def main(
    run: Name, trust: Trust, split: Literal["train", "validation", "test"], output: Name | None
) -> None:
    """Write mean, sd, labels and indices (and w if the prior is not N(0, I)) to an .npz file."""
    run_dir, checkpoint = loading.find_run(run)

    from cvae.embedding import embed, save
    from cvae.models import Autoencoder

    model, archived = loading.load_model(checkpoint, trust, Autoencoder)
    name = "-".join(filter(None, (split, loading.checkpoint_suffix(run_dir, checkpoint))))
    path = Path(output) if output else resolve_inside(run_dir, f"latents/{name}.npz")
    save(embed(model, loading.load_data(archived, trust), split), path)
    print(display_path(path))


if __name__ == "__main__":
    main()
