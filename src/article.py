"""The systems of the article, trained, evaluated and compared: ``python src/article.py``."""

from pathlib import Path

from omegaconf import DictConfig

from cvae import article, files, runs
from cvae.cli import as_hydra_takes, check, entry_point


@entry_point("article")
def main(cfg: DictConfig) -> None:
    """Skip what is finished, do the rest, write the table and the figure."""
    train, evaluate = (as_hydra_takes(cfg[name] or []) for name in ("train", "evaluate"))
    jobs = article.jobs(Path(cfg.folder), list(cfg.seeds), train, evaluate)
    check("evaluate", evaluate)
    for job in jobs:
        check("train", job.train)

    def tell(job: article.Job, doing: str) -> None:
        print(f"{jobs.index(job) + 1}/{len(jobs)} {doing}", flush=True)

    article.carry_out_all(jobs, cfg.num_jobs, tell)
    output = Path(cfg.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(output.with_name(f"{output.name}.md"), article.table(jobs))
    with files.replacing(output.with_name(f"{output.name}.png")) as file:
        article.figure(jobs).save(file, format="PNG", optimize=True)
    print(f"{output}.md .png")


if __name__ == "__main__":
    main()
