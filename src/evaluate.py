"""Measure a trained run on the test set: ``python src/evaluate.py run=logs/latest``."""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cvae import files, runs
from cvae.cli import entry_point
from cvae.schema import CLAIMS
from cvae.trust import Trust, inside


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Rebuild model and data from the run alone; print a table, write evaluation.json."""
    run_dir, checkpoint = runs.find_run(cfg.run)

    from cvae.evaluation import report
    from cvae.evaluation.claim import Subject
    from cvae.evaluation.oracle import Oracle
    from cvae.evaluation.pictures import pictures

    model, archived = runs.load_model(checkpoint, cfg.trust)
    data = runs.load_data(archived, cfg.trust)
    data.prepare_data()
    data.setup()
    splits = data.splits()
    claims = [cfg.claims] if isinstance(cfg.claims, str) else list(cfg.claims or CLAIMS)
    cache = data.data_dir / Path(data.dataset).name / "oracle"
    with report.progress_bar() as progress:
        oracle = Oracle(splits["train"], splits["validation"], model.num_classes, cache, progress)
        subject = Subject(
            model,
            **splits,
            oracle=oracle,
            num_samples=cfg.num_samples,
            num_generated=cfg.num_generated,
            progress=progress,
        )
        found = report.evaluate(subject, claims, with_targets=archived.data.get("name") == "MNIST")
    measured_on = {
        "checkpoint": checkpoint.name,
        "checkpoint_digest": runs.file_digest(checkpoint),
        "test_digest": data.test.digest(),
        "num_generated": cfg.num_generated,
    }
    measured = report.as_json(found)
    # files first: printing fails if the terminal is gone, and a full disk must not cost the table
    try:
        written = runs.update_evaluation(run_dir, measured_on, measured)
        drawn = pictures(subject, data.examples(), "style" in claims) if cfg.figures else {}
        for name, picture in drawn.items():
            path = inside(run_dir, f"figures/{name}.png")
            path.parent.mkdir(exist_ok=True)
            with files.replacing(path) as file:
                picture.save(file, format="PNG", optimize=True)
    finally:
        report.print_table(
            found,
            title=f"{archived.name}: {len(subject.test.labels):,} test images of {data.dataset}",
        )
    print(written)
    mirror(run_dir, archived, cfg.trust, measured["metrics"], drawn)


def mirror(
    run_dir: Path,
    archived: DictConfig,
    trust: Trust,
    metrics: dict[str, Any],
    drawn: dict[str, Any],
) -> None:
    """Add what was measured to the run on Weights & Biases, if it has one."""
    loggers = archived.get("logger")
    if not isinstance(loggers, DictConfig) or not loggers.get("wandb"):
        return

    from cvae.loggers import log_evaluation, wandb_mode

    if mode := wandb_mode(run_dir):
        where = {"save_dir": str(run_dir), "resume": "allow", "mode": mode}
        start = partial(runs.instantiate_read, loggers, "wandb", trust, **where)
        log_evaluation(start, metrics, drawn)


if __name__ == "__main__":
    main()
