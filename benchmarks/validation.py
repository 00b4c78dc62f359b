"""What recipes are chosen by, with no look at the test images.

``python benchmarks/validation.py RUN ...`` measures runs of a CVAE; those of the ablations too.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from cvae.bounds import split_nlls
from cvae.evaluation.label_control import label_control
from cvae.evaluation.latent_independence import latent_independence
from cvae.evaluation.oracle import Oracle
from cvae.evaluation.subject import Subject
from cvae.models import CVAE, VAE
from harness.contract.errors import ConfigError
from harness.run_folder import loading
from harness.run_folder.trust import Trust

NUM_SAMPLES = 100
ALTERNATIVES = "alternatives"  # what the library does without: beside this file


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
    model, cfg = loading.load_model(loading.find_run(run_dir)[1], trusted)
    data = loading.load_data(cfg, trusted)
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


def main(run_dirs: list[str]) -> None:
    """The probe of the label keeps its best epoch by the images that it is scored on."""
    if not run_dirs:
        raise SystemExit("which run? python benchmarks/validation.py RUN ...")
    for run_dir in run_dirs:
        try:
            subject = _subject(Path(run_dir), ALTERNATIVES)
        except ConfigError as error:
            raise SystemExit(str(error)) from None
        if not isinstance(subject.model, CVAE):
            raise SystemExit(f"{run_dir}: no CVAE")
        control, read = label_control(subject), latent_independence(subject)
        means, drawn = (control[f"samples/label_agreement{end}"].value for end in ("", "_drawn"))
        print(
            f"{run_dir}: {_nll(subject):.2f} nats (validation, K = {NUM_SAMPLES}); right digits "
            f"{means:.2%}, drawn {drawn:.2%}; label read by a perceptron "
            f"{read['latent/label_accuracy_mlp'].value:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
