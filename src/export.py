"""Export a trained model for publication: ``python src/export.py run=logs/latest``."""

from pathlib import Path

from harness.command_line.entry_point import entry_point
from harness.config.paths import display_path
from harness.contract.files import atomic_write_files, file_digest
from harness.contract.settings import Name, Trust
from harness.run_folder import exported_folder, loading, reading
from harness.run_folder.trust import resolve_inside


@entry_point("export")
def main(run: Name, trust: Trust, output: Name | None) -> None:
    """Write weights, config, the parts of the model for other runtimes, and a model card."""
    run_dir, checkpoint = loading.find_run(run)

    from cvae import export, onnx_export
    from cvae.models import Autoencoder

    model, archived = loading.load_model(checkpoint, trust, Autoencoder)
    folder = Path(output) if output else resolve_inside(run_dir, "export")
    summary = reading.read_checkpoint_summary(run_dir, checkpoint)
    config = exported_folder.portable_config(reading.to_plain(archived), summary)
    summary = {**config["training"], "metrics": {}, **summary}
    # an exported folder may hold its own evaluation.json
    evaluation = reading.read_evaluation(run_dir) or reading.read_evaluation(checkpoint.parent)
    is_current = evaluation.get("checkpoint_digest") == file_digest(checkpoint)
    metrics = evaluation["metrics"] if is_current else {}
    with atomic_write_files(folder) as temporary:
        export.save_model(model, config, temporary)
        differences = onnx_export.save_onnx(model, temporary)
        differences |= export.save_program(model, temporary)
        export.save_card(model, config, summary, metrics, temporary)
    for name, difference in differences.items():
        print(f"{name}: within {difference:.1e} of PyTorch")
    print(display_path(folder))


if __name__ == "__main__":
    main()
