"""Save a view that compares runs on W&B: ``python src/dashboard.py entity=my-team``."""

from pathlib import Path

from omegaconf import DictConfig

from cvae import runs
from cvae.cli import entry_point


@entry_point("dashboard")
def main(cfg: DictConfig) -> None:
    """Build the view; save it where an account is configured, else write what would be sent."""
    from cvae.dashboard import as_json, comparison
    from cvae.loggers import has_wandb_account

    view = comparison(cfg.entity or "", cfg.project, cfg.name)
    if has_wandb_account() and cfg.entity is not None:
        print(view.save().url)
        return
    written = Path(cfg.output)
    written.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(written, as_json(view))
    print(f"no account or no entity=: nothing was sent; what would be is in {runs.shown(written)}")


if __name__ == "__main__":
    main()
