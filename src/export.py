"""Publish a trained model: ``python src/export.py run=logs/latest``."""

from pathlib import Path

from omegaconf import DictConfig

from cvae import runs, trust
from cvae.cli import entry_point


@entry_point("export")
def main(cfg: DictConfig) -> None:
    """Write weights, config, the decoder for other runtimes, and a model card."""
    run_dir, checkpoint = runs.find_run(cfg.run)

    from cvae import export

    model, archived = runs.load_model(checkpoint, cfg.trust)
    folder = Path(cfg.output) if cfg.output else trust.inside(run_dir, "export")
    config = runs.plain(archived)
    evaluation = runs.read_evaluation(run_dir)
    is_of_these = evaluation.get("checkpoint_digest") == runs.file_digest(checkpoint)
    metrics = evaluation["metrics"] if is_of_these else {}
    summary = runs.read_summary(run_dir)
    if runs.name_in(run_dir, checkpoint) != summary.get("checkpoint"):  # only that one was tested
        summary.pop("metrics", None)
    with export.into(folder) as fresh:
        export.save_model(model, config, fresh)
        differences = export.save_decoder(model, fresh)
        export.save_card(model, config, summary, metrics, fresh)
    for name, difference in differences.items():
        print(f"{name}: within {difference:.1e} of PyTorch")
    print(runs.shown(folder))


if __name__ == "__main__":
    main()
