"""Save a view that compares runs on W&B: ``python src/dashboard.py entity=my-team``."""

from pathlib import Path

from omegaconf import DictConfig

from harness.command_line.entry_point import entry_point
from harness.config import paths
from harness.contract import files
from harness.contract.errors import RunFailed


@entry_point("dashboard")
def main(cfg: DictConfig) -> None:
    """Build the view; save it where an account is configured, else write what would be sent."""
    from harness.reports.dashboard import as_json, comparison
    from harness.tracking.wandb import has_wandb_account

    view = comparison(
        cfg.entity or "",
        cfg.project,
        cfg.name,
        compared=cfg.compared,
        by=cfg.by,
        curves=cfg.curves,
        along=cfg.along,
        pictures=cfg.pictures,
    )
    if cfg.entity is not None and has_wandb_account():
        try:
            print(view.save().url)
        except Exception as error:  # whatever W&B raises
            raise RunFailed(f"W&B: {' '.join(str(error).split())[:200]}") from error
        return
    written = Path(cfg.output)
    written.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(written, as_json(view))
    reason = "entity= is not set" if cfg.entity is None else "W&B is offline or has no account"
    print(f"{reason}: nothing was sent; the view is saved in {paths.shown(written)}")


if __name__ == "__main__":
    main()
