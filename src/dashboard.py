"""Save a view that compares runs on W&B: ``python src/dashboard.py entity=my-team``."""

from pathlib import Path

from harness.command_line.entry_point import entry_point
from harness.config import paths
from harness.contract import files
from harness.contract.errors import RunFailed
from harness.contract.settings import Name, Names


@entry_point("dashboard")
def main(
    entity: Name | None,
    project: Name,
    name: Name,
    output: Name,
    compared: Names,
    by: Name,
    curves: Names,
    along: Name,
    pictures: Names,
) -> None:
    """Save the view on W&B if entity and an account are set; else write it to a JSON file."""
    from harness.reports.dashboard import comparison_view, to_json
    from harness.tracking.wandb import has_wandb_account

    view = comparison_view(
        entity or "",
        project,
        name,
        compared=compared,
        by=by,
        curves=curves,
        along=along,
        pictures=pictures,
    )
    if entity is not None and has_wandb_account():
        try:
            print(view.save().url)
        except Exception as error:  # W&B can raise anything
            raise RunFailed(f"W&B: {' '.join(str(error).split())[:200]}") from error
        return
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, to_json(view))
    reason = "entity= is not set" if entity is None else "W&B is offline or has no account"
    print(f"{reason}: nothing was sent; the view is saved in {paths.display_path(path)}")


if __name__ == "__main__":
    main()
