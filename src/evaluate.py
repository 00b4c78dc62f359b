"""Score a trained run on the test set: ``python src/evaluate.py run=logs/latest``."""

from omegaconf import DictConfig

from cvae import runs
from cvae.cli import entry_point


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Rebuild model and data from the run alone, print a table, write evaluation.json."""
    run_dir, checkpoint = runs.find_run(cfg.run)

    from cvae.evaluation.report import print_table, score

    model, archived = runs.load_model(checkpoint, cfg.trust)
    data = runs.load_data(archived, cfg.trust)
    scores = score(model, data, num_samples=cfg.num_samples)
    print_table(
        scores, title=f"{archived.name}: {len(data.test):,} test images of {archived.data.name}"
    )
    written = run_dir / "evaluation.json"
    runs.write_json(
        written, {"checkpoint": checkpoint.name, "num_samples": cfg.num_samples, **scores}
    )
    print(written)


if __name__ == "__main__":
    main()
