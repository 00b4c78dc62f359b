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
    if cfg.entity is not None and has_wandb_account():
        try:
            print(view.save().url)
        except Exception as error:  # whatever W&B raises
            raise runs.RunFailed(f"W&B: {' '.join(str(error).split())[:200]}") from error
        return
    written = Path(cfg.output)
    written.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(written, as_json(view))
    reason = "entity= is not set" if cfg.entity is None else "W&B is offline or has no account"
    print(f"{reason}: nothing was sent; the view is saved in {runs.shown(written)}")


if __name__ == "__main__":
    main()
