"""What recipes are chosen by, with no look at the test images."""

from pathlib import Path
from typing import NamedTuple

from cvae import runs
from cvae.evaluation.claim import Subject
from cvae.evaluation.label_control import label_control
from cvae.evaluation.likelihood import split_nlls
from cvae.evaluation.oracle import Oracle
from cvae.models import VAE
from cvae.trust import Trust

NUM_SAMPLES = 100


class Scores(NamedTuple):
    """Of the best checkpoint of a run."""

    nll: float  # nats per validation image, the importance-weighted bound of 100 samples
    label_agreement: float  # share of 10,000 decoder means that the oracle takes for their label


def validation_nll(run_dir: Path, trusted: Trust = None) -> float:
    """Nats per validation image of the best checkpoint of a run, by 100 samples."""
    return _nll(_subject(run_dir, trusted))


def validation_scores(run_dir: Path, trusted: Trust = None) -> Scores:
    """The same, and whether samples are of the digit asked for, by the oracle."""
    subject = _subject(run_dir, trusted)
    return Scores(_nll(subject), label_control(subject)["samples/label_agreement"].value)


def _subject(run_dir: Path, trusted: Trust) -> Subject:
    """A run's best checkpoint, with the validation images in the place of the test images."""
    model, cfg = runs.load_model(runs.find_run(run_dir)[1], trusted)
    data = runs.load_data(cfg, trusted)
    data.prepare_data()
    data.setup()
    splits = {**data.splits(), "test": data.splits()["validation"]}
    cache = data.data_dir / data.dataset / "oracle"
    oracle = Oracle(splits["train"], splits["validation"], model.num_classes, cache)
    return Subject(model, **splits, oracle=oracle)


def _nll(subject: Subject) -> float:
    assert isinstance(subject.model, VAE)
    found = split_nlls(subject.model, subject.validation, [NUM_SAMPLES])[NUM_SAMPLES]
    return float(found.double().mean())
