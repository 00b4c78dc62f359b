"""A table over runs and seeds: ``python src/compare.py runs="logs/train/**"``."""

from pathlib import Path

from omegaconf import DictConfig

from harness.command_line.entry_point import entry_point
from harness.config import paths
from harness.contract import files
from harness.contract.errors import ConfigError
from harness.reports import comparison, run_results


@entry_point("compare")
def main(cfg: DictConfig) -> None:
    """Read run folders alone; print a table, write it as Markdown, CSV and PNG."""
    found = [run_results.read_run(folder) for folder in run_results.find_folders(cfg.runs)]
    broken = [f for f in found if isinstance(f, run_results.Broken)]
    usable = [f for f in found if isinstance(f, run_results.Run)]
    if not usable:
        reasons = "; ".join(f"{b.folder.name}: {b.reason}" for b in broken[:3])
        raise ConfigError(f"runs={cfg.runs}: none of {len(broken)} can be compared ({reasons})")
    groups = comparison.grouped(usable)
    known = comparison.metric_names(groups, cfg.first)
    comparison.check_metrics(cfg.metrics or [], known, "metrics")
    comparison.check_metrics([cfg.sort] if cfg.sort else [], known, "sort")
    metrics = list(cfg.metrics or known)
    groups = comparison.sort_groups(groups, cfg.sort or metrics[0], cfg.lower_is_better)
    output = Path(cfg.output) if cfg.output else run_results.default_output(cfg.runs)
    # files first: printing fails if the terminal is gone, and a full disk must not cost the table
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        tables = {"md": comparison.markdown(groups, metrics, broken)}
        tables["csv"] = comparison.as_csv(groups, metrics)
        for suffix, text in tables.items():
            files.write_text(output.with_name(f"{output.name}.{suffix}"), text)
        comparison.save_plot(groups, metrics, output.with_name(f"{output.name}.png"))
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written ({error.strerror})") from None
    finally:
        comparison.print_table(groups, metrics, broken, asked=bool(cfg.metrics))
    print(f"{paths.shown(output)}.md .csv .png")


if __name__ == "__main__":
    main()
