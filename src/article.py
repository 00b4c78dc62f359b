"""The systems of the article, trained, evaluated and compared: ``python src/article.py``."""

from pathlib import Path

from omegaconf import DictConfig

from cvae import article, files, runs
from cvae.cli import entry_point


@entry_point("article")
def main(cfg: DictConfig) -> None:
    """Skip what is finished, do the rest, write the table and the figure."""
    jobs = article.jobs(Path(cfg.folder), list(cfg.seeds), list(cfg.train or []))
    for i, job in enumerate(jobs, start=1):
        for doing in article.carry_out(job, list(cfg.evaluate or [])):
            print(f"{i}/{len(jobs)} {doing}", flush=True)
    output = Path(cfg.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(output.with_name(f"{output.name}.md"), article.table(jobs))
    with files.replacing(output.with_name(f"{output.name}.png")) as file:
        article.figure(jobs).save(file, format="PNG", optimize=True)
    print(f"{output}.md .png")


if __name__ == "__main__":
    main()
