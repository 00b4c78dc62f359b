"""Measure a trained run on the test set: ``python src/evaluate.py run=logs/latest``."""

from omegaconf import DictConfig

from harness.command_line.entry_point import entry_point
from harness.contract.files import file_digest
from harness.run_folder import loading
from harness.run_folder.reading import update_evaluation
from harness.run_folder.trust import inside


@entry_point("evaluate", less_memory="num_samples or num_generated")
def main(cfg: DictConfig) -> None:
    """Rebuild model and data from the run alone; print a table, write evaluation.json."""
    run_dir, checkpoint = loading.find_run(cfg.run)

    from cvae.evaluation import report
    from cvae.evaluation.pictures import save_pictures
    from cvae.models import Autoencoder
    from harness.tracking.evaluation import mirror

    model, archived = loading.load_model(checkpoint, cfg.trust, Autoencoder)
    data = loading.load_data(archived, cfg.trust)
    claims = [cfg.claims] if isinstance(cfg.claims, str) else cfg.claims
    subject, found = report.measure(model, data, claims, cfg.num_samples, cfg.num_generated)
    measured, measured_on = (
        report.as_json(found),
        {
            "checkpoint": checkpoint.name,
            "checkpoint_digest": file_digest(checkpoint),
            "test_digest": data.test.digest(),
            "num_generated": cfg.num_generated,
        },
    )
    # files first: printing fails if the terminal is gone, and a full disk must not cost the table
    try:
        written = update_evaluation(run_dir, measured_on, measured)
        examples, with_style = data.examples(), "style" in measured["seconds"]
        folder = inside(run_dir, "figures")
        drawn = save_pictures(subject, examples, with_style, folder) if cfg.figures else {}
    finally:
        images = f"{len(subject.test.labels):,} test images of {data.dataset}"
        report.print_table(found, title=f"{archived.name}: {images}")
    print(written)
    mirror(run_dir, archived, cfg.trust, measured["metrics"], drawn, report.COLUMNS)


if __name__ == "__main__":
    main()
