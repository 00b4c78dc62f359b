"""Explore a trained model in the browser: ``python src/explore.py run=logs/latest``."""

from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from harness.command_line.entry_point import entry_point
from harness.config.paths import display_path
from harness.contract.settings import Name, Trust
from harness.run_folder import loading
from harness.run_folder.trust import resolve_inside


@entry_point("explore")
def main(
    run: Name,
    trust: Trust,
    output: Name | None,
    port: Annotated[int, Interval(ge=0, le=65535)],
    open: bool,
    serve: bool,
) -> None:
    """Write a folder with a web page and the model, and serve it on this machine."""
    run_dir, checkpoint = loading.find_run(run)

    from cvae import explorer
    from cvae.models import Autoencoder

    model, archived = loading.load_model(checkpoint, trust, Autoencoder)
    explorer.check_supported(model)
    folder = Path(output) if output else resolve_inside(run_dir, "explorer")
    server = explorer.bind(folder, port) if serve else None  # early: the port may be in use
    data = loading.load_data(archived, trust)
    size = explorer.write_folder(model, data, str(archived.name), folder)
    print(f"{display_path(folder)}: {size / 1e6:.1f} MB")
    if server:
        explorer.serve(server, open)


if __name__ == "__main__":
    main()
