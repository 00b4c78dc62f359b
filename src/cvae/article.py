"""The systems of the article side by side: what to train, and the table and figure of it."""

import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cvae import changes, comparison, runs
from cvae.launch import Share, confined, shares
from cvae.processes import INTERRUPTED, terminated_by_exception
from cvae.schema import CLAIMS, ConfigError, num_cpus

if TYPE_CHECKING:
    from PIL import Image as PILImage

DRAWN = ("autoencoder", "vae", "cvae")  # in the figure
SYSTEMS = (*DRAWN, "cvae_plain")  # in the table
PLANES = ("vae", "cvae")  # with a latent of two dimensions, for the picture of the plane
_CONF = runs.ROOT / "conf"
OUTPUT = "article.log"  # of a job that shares the terminal with others
_TRAINED, _EVALUATED = "article.txt", "evaluated.txt"  # what it was trained and evaluated with
_OURS = {  # what no word for a job may say, as the job does
    "train": ("model", "seed", "resume", "rerun", "sweep"),
    "evaluate": ("run", "claims"),
}
_TABLE = (  # the metrics of the article's claims that systems are compared by
    "test/elbo",
    "test/reconstruction",
    "test/nll_k50",
    "test/joint_nll_k50",
    "test/marginal_nll_k50",
    "test/generative_accuracy_k50",
    "test/generative_accuracy_k500",
    "samples/label_agreement",
    "samples/label_agreement_drawn",
    "samples/label_agreement_worst",
    "samples/rows_right",
    "samples/cas",
    "samples/cas_drawn",
    "latent/label_accuracy_logistic",
    "latent/label_accuracy_mlp",
    "style/r2_thickness",
    "style/r2_slant",
    "style/rho_thickness",
    "style/rho_slant",
    "style/correlation_thickness",
    "style/correlation_slant",
    "latent/mmd_ratio",
    "latent/mmd_ratio_train",
    "latent/normal_accuracy",
    "latent/active_units",
    "samples/recall",
    "samples/coverage",
    "samples/sd_thickness_ratio",
    "samples/sd_slant_ratio",
    "samples/nearest_train_distance",
    "samples/frechet_distance",
    "samples/frechet_distance_drawn",
    "samples/frechet_distance_gaussian",
    "samples/frechet_distance_mixture",
)


class Job(NamedTuple):
    """One run of several that are compared."""

    folder: Path
    train: list[str]  # overrides of train.py
    claims: Sequence[str] = ()  # that are measured on it
    evaluate: Sequence[str] = ()  # further overrides of evaluate.py


def jobs(
    folder: Path, seeds: Sequence[int], train: Sequence[str], evaluate: Sequence[str] = ()
) -> list[Job]:
    """Every system with every seed, and the two planes with the first.

    Args:
        train, evaluate: further overrides of train.py and evaluate.py.

    Raises:
        ConfigError: one of them says what makes the jobs differ.
    """
    for script, words in (("train", train), ("evaluate", evaluate)):
        for word in words:
            key = word.lstrip("+~").partition("=")[0].partition("@")[0]
            if key in _OURS[script] or key.startswith("hydra"):
                raise ConfigError(f"{script}=[{word}]: {key} is not for words that all jobs share")
    found = []
    for seed in seeds:
        for system in SYSTEMS:
            words = [f"model={system}", f"seed={seed}", *train]
            found.append(Job(folder / f"{system}-s{seed}", words, CLAIMS, evaluate))
    for system in PLANES:
        words = [f"model={system}", f"seed={seeds[0]}", *train, "model.latent_dim=2"]
        found.append(Job(folder / f"{system}-plane", words))
    return found


def is_trained(job: Job) -> bool:
    """Whether its run finished, of the same command."""
    finished = runs.read_summary(job.folder).get("status") == "finished"
    return finished and _is_of(job)


def is_evaluated(job: Job) -> bool:
    """Whether nothing is left to measure on the run."""
    if not job.claims:
        return True
    if _read(job.folder / _EVALUATED) != shlex.join(job.evaluate):
        return False
    found = runs.read_evaluation(job.folder)
    checkpoint = job.folder / "checkpoints" / str(found.get("checkpoint"))
    if not checkpoint.is_file() or runs.file_digest(checkpoint) != found["checkpoint_digest"]:
        return False
    return set(job.claims) <= {*found.get("seconds", {}), *found.get("left_out", {})}


def _is_of(job: Job) -> bool:
    """Whether its folder holds a run of its settings, as they are now."""
    return _read(job.folder / _TRAINED) == _described(*job.train)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


@lru_cache
def _described(*overrides: str) -> str:
    """A command's words, and a digest of the settings that they mean."""
    return f"{shlex.join(overrides)}\n{changes.fingerprint(_CONF, overrides)}\n"


def carry_out_all(
    all_jobs: Sequence[Job],
    num_parallel: int,
    tell: Callable[[Job, str], None],
    done: Callable[[Job], None] = lambda job: None,
) -> None:
    """Train and evaluate what is not done yet, some jobs at a time, each on its share of cores.

    Args:
        num_parallel: jobs at a time, each in a thread that says what it begins and what is done.

    Raises:
        ConfigError: a folder holds a run of other settings, or there are fewer cores.
        RunFailed: a command did not succeed; those beside it come to their end first.
    """
    if num_parallel > num_cpus():
        raise ConfigError(f"num_jobs={num_parallel}: this machine has {num_cpus()} cores")
    free: queue.SimpleQueue[Share] = queue.SimpleQueue()
    for share in shares(num_parallel):
        free.put(share)
    running: set[subprocess.Popen[bytes]] = set()
    shares_terminal = num_parallel > 1
    ended = threading.Event()

    def work(job: Job) -> None:
        share = free.get()
        try:
            for doing in carry_out(job, share, running, shares_terminal):
                if ended.is_set():
                    return
                tell(job, doing)
            done(job)
        except BaseException:
            ended.set()
            raise
        finally:
            free.put(share)

    with terminated_by_exception(), ThreadPoolExecutor(num_parallel) as pool:
        try:
            for future in as_completed([pool.submit(work, job) for job in all_jobs]):
                future.result()
        except (KeyboardInterrupt, SystemExit):
            ended.set()
            for process in list(running):
                process.terminate()
            raise


def carry_out(
    job: Job,
    share: Share,
    running: set[subprocess.Popen[bytes]],
    shares_terminal: bool = False,
) -> Iterator[str]:
    """Train and evaluate what is not done yet; says what it begins.

    A run that did not finish is launched again as it is archived.

    Args:
        share: cores and GPUs for it.
        running: holds the process that does it, while it does.
        shares_terminal: whether its output goes to a file in its folder, as others run beside it.

    Raises:
        ConfigError: the folder holds a run of other settings.
        RunFailed: a command did not succeed.
    """
    output = job.folder / OUTPUT if shares_terminal else None
    if not is_trained(job):
        is_there = runs.holds_run(job.folder)
        if is_there and not _is_of(job):
            raise ConfigError(f"{job.folder}: holds a run of other settings; name another folder=")
        yield f"training {job.folder.name}"
        job.folder.mkdir(parents=True, exist_ok=True)
        runs.write_text(job.folder / _TRAINED, _described(*job.train))
        where = [f"hydra.run.dir={job.folder}"]
        trusted = [word for word in job.train if word.startswith("trust=")]
        words = [f"rerun={job.folder}", *trusted] if is_there else [*job.train, *where]
        _run("train", words, share, output, running)
    if not is_evaluated(job):
        yield f"evaluating {job.folder.name}"
        claims = f"claims=[{','.join(job.claims)}]"
        _run("evaluate", [f"run={job.folder}", claims, *job.evaluate], share, output, running)
        runs.write_text(job.folder / _EVALUATED, shlex.join(job.evaluate))


def _run(
    script: str,
    overrides: Sequence[str],
    share: Share,
    output: Path | None,
    running: set[subprocess.Popen[bytes]],
) -> None:
    command = [sys.executable, str(runs.ROOT / "src" / f"{script}.py"), *overrides]
    with confined(share) as environment, output.open("ab") if output else nullcontext() as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        running.add(process)
        try:
            code = process.wait()
        finally:
            running.remove(process)
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        where = f"; see {output}" if output else ""
        raise runs.RunFailed(f"{shlex.join(command)} ended with code {code}{where}")


def table(all_jobs: Sequence[Job]) -> str:
    """The comparison in Markdown, with targets and real data, and what it was measured with."""
    read = {
        system: [
            comparison.read_run(j.folder)
            for j in all_jobs
            if j.claims and j.train[0] == f"model={system}"
        ]
        for system in SYSTEMS
    }
    groups = [
        comparison.group(system, [r for r in found if isinstance(r, comparison.Run)])
        for system, found in read.items()
    ]
    broken = [r for found in read.values() for r in found if isinstance(r, comparison.Broken)]
    known = comparison.metric_names(groups)
    targets, floors = _beside(all_jobs)
    extra = {"target, CVAE": targets, "real data": floors}
    text = comparison.markdown(groups, [m for m in _TABLE if m in known], broken, extra)
    summaries = [s for job in all_jobs if (s := runs.read_summary(job.folder))]
    minutes = sum(s.get("seconds", 0.0) for s in summaries) / 60
    measured = [runs.read_evaluation(j.folder).get("seconds", {}) for j in all_jobs]
    minutes_evaluating = sum(sum(seconds.values()) for seconds in measured) / 60
    devices = ", ".join(sorted({str(s.get("device")) for s in summaries}))
    digests = ", ".join(sorted({str(s.get("test_digest")) for s in summaries}))
    seeds = sum(1 for j in all_jobs if j.claims) // len(SYSTEMS)
    plural = "" if seeds == 1 else "s"
    return (
        f"Mean ± s.d. over {seeds} seed{plural}; {devices}; {minutes:.0f} minutes of training and "
        f"{minutes_evaluating:.0f} of evaluation, added up over runs; test set {digests}. The "
        f"latent of a plain autoencoder is its code.\n\n{text}"
    )


def _beside(all_jobs: Sequence[Job]) -> tuple[dict[str, str], dict[str, str]]:
    """Target and real data of every metric, as text; those of the CVAE where it has it."""
    targets: dict[str, str] = {}
    floors: dict[str, str] = {}
    for system in (*SYSTEMS, "cvae"):
        found: dict[str, list[dict[str, Any]]] = {}
        for job in (j for j in all_jobs if j.claims and j.train[0] == f"model={system}"):
            for name, metric in runs.read_evaluation(job.folder).get("metrics", {}).items():
                found.setdefault(name, []).append(metric)
        for name, metrics in found.items():
            shown = dict(metrics[0])
            for key in ("floor", "at_least", "at_most"):
                if known := [m[key] for m in metrics if key in m]:
                    shown[key] = sum(known) / len(known)
            targets[name] = comparison.target(shown)
            floors[name] = comparison.shown_floor(shown)
    return targets, floors


def figure(all_jobs: Sequence[Job]) -> "PILImage.Image":
    """The article's pictures, from the first seed of its systems."""
    from cvae import figures

    folders = {job.folder.name: job.folder for job in all_jobs}
    first = {j.train[0].removeprefix("model="): j.folder for j in reversed(all_jobs) if j.claims}
    models = {system: runs.load_run(first[system]) for system in DRAWN if system in first}
    planes = {system: runs.load_run(folders[f"{system}-plane"]) for system in PLANES}
    cfg = runs.load_config(first["cvae"])
    data = runs.load_data(cfg)
    data.prepare_data()
    data.setup()
    many = next(iter(data.test_dataloader()))
    return figures.systems(models, planes, data.examples(), many)
