"""Measure a trained run on the test set: ``python src/evaluate.py run=logs/latest``."""

from typing import Annotated, Literal

from annotated_types import Ge, Interval, MinLen

from cvae.evaluation.settings import QUICK, Accelerator, Claim
from harness.command_line.entry_point import entry_point
from harness.contract.files import file_digest
from harness.contract.settings import Name, Trust
from harness.run_folder import loading
from harness.run_folder.reading import update_evaluation
from harness.run_folder.trust import resolve_inside


@entry_point("evaluate", less_memory="num_samples or num_generated")
def main(
    run: Name,
    trust: Trust,
    claims: Literal["quick"] | Claim | Annotated[list[Claim], MinLen(1)] | None,
    num_samples: Annotated[int, Interval(ge=1, le=1_000_000)],
    num_generated: Annotated[int, Ge(10)],
    figures: bool,
    accelerator: Accelerator,
) -> None:
    """Load model and data from the run folder; print a table and write evaluation.json."""
    run_dir, checkpoint = loading.find_run(run)

    from cvae.evaluation import report
    from cvae.evaluation.device import choose_device
    from cvae.evaluation.pictures import save_pictures
    from cvae.models import Autoencoder
    from harness.tracking.evaluation import copy_to_wandb

    device = choose_device(accelerator)
    model, archived = loading.load_model(checkpoint, trust, Autoencoder)
    data = loading.load_data(archived, trust)
    chosen = [claims] if isinstance(claims, str) else claims
    if claims == "quick":
        chosen = list(QUICK)
    subject, results = report.measure(model, data, chosen, num_samples, num_generated, device)
    measured = report.to_json(results)
    measured_on = {
        "checkpoint": checkpoint.name,
        "checkpoint_digest": file_digest(checkpoint),
        "test_digest": data.test.digest(),
        "num_generated": num_generated,
    }
    # write first, because printing fails if the terminal is closed; print even if writing fails
    try:
        written = update_evaluation(run_dir, measured_on, measured)
        examples, folder = data.examples(), resolve_inside(run_dir, "figures")
        pictures = save_pictures(subject, examples, measured["seconds"], folder) if figures else {}
    finally:
        images = f"{len(subject.test.labels):,} test images of {data.dataset}"
        report.print_table(results, title=f"{archived.name}: {images}")
    print(written)
    copy_to_wandb(run_dir, archived, trust, measured["metrics"], pictures, report.COLUMNS)


if __name__ == "__main__":
    main()
