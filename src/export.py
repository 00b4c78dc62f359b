"""Publish a trained model: ``python src/export.py run=logs/latest``."""

from pathlib import Path

from omegaconf import DictConfig

from harness.command_line.entry_point import entry_point
from harness.config.paths import shown
from harness.contract.files import file_digest, replacing_files
from harness.run_folder import loading, reading, trust


@entry_point("export")
def main(cfg: DictConfig) -> None:
    """Write weights, config, the decoder for other runtimes, and a model card."""
    run_dir, checkpoint = loading.find_run(cfg.run)

    from cvae import export
    from cvae.models import Autoencoder

    model, archived = loading.load_model(checkpoint, cfg.trust, Autoencoder)
    folder = Path(cfg.output) if cfg.output else trust.inside(run_dir, "export")
    config, evaluation = reading.plain(archived), reading.read_evaluation(run_dir)
    is_of_these = evaluation.get("checkpoint_digest") == file_digest(checkpoint)
    metrics = evaluation["metrics"] if is_of_these else {}
    summary = reading.read_summary(run_dir)
    if reading.name_in(run_dir, checkpoint) != summary.get("checkpoint"):  # only that was tested
        summary.pop("metrics", None)
    with replacing_files(folder) as fresh:
        export.save_model(model, config, fresh)
        differences = export.save_decoder(model, fresh)
        export.save_card(model, config, summary, metrics, fresh)
    for name, difference in differences.items():
        print(f"{name}: within {difference:.1e} of PyTorch")
    print(shown(folder))


if __name__ == "__main__":
    main()
