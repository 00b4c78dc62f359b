"""Compare runs, averaged over seeds: ``python src/compare.py runs="logs/train/**"``."""

from pathlib import Path

from harness.command_line.entry_point import entry_point
from harness.config import paths
from harness.contract import files
from harness.contract.errors import ConfigError
from harness.contract.settings import Name, Names
from harness.reports import comparison, comparison_plot, run_results


@entry_point("compare")
def main(
    runs: Name,
    metrics: Names | None,
    sort: Name | None,
    output: Name | None,
    first: Names,
    lower_is_better: Names,
) -> None:
    """Print a table of the metrics in run folders; write it as Markdown and CSV, and plot it."""
    results = [run_results.read_run(folder) for folder in run_results.find_folders(runs)]
    excluded = [f for f in results if isinstance(f, run_results.Excluded)]
    usable = [f for f in results if isinstance(f, run_results.Run)]
    if not usable:
        reasons = "; ".join(f"{b.folder.name}: {b.reason}" for b in excluded[:3])
        raise ConfigError(
            f"runs={runs}: none of {len(excluded)} folders can be compared ({reasons})"
        )
    usable, repeats = run_results.drop_repeats(usable)
    excluded += repeats
    groups = comparison.group_runs(usable)
    known = comparison.metric_names(groups, first)
    comparison.check_metrics(metrics or [], known, "metrics")
    comparison.check_metrics([sort] if sort else [], known, "sort")
    columns = list(metrics or known)
    groups = comparison.sort_groups(groups, sort or columns[0], lower_is_better)
    path = Path(output) if output else run_results.default_output(runs)
    # write first, because printing fails if the terminal is closed; print even if writing fails
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = {"md": comparison.to_markdown(groups, columns, excluded)}
        tables["csv"] = comparison.to_csv(groups, columns)
        for suffix, text in tables.items():
            files.write_text(path.with_name(f"{path.name}.{suffix}"), text)
        picture = path.with_name(f"{path.name}.png")
        comparison_plot.save_plot(groups, columns, picture, lower_is_better)
    except OSError as error:
        raise files.make_output_error(path, error) from None
    finally:
        comparison.print_table(groups, columns, excluded, show_all=bool(metrics))
    print(f"{paths.display_path(path)}.md .csv .png")


if __name__ == "__main__":
    main()
