"""Scores on the validation images, to select recipes without the test images.

``python benchmarks/validation.py RUN ...`` measures runs of a CVAE, including ablations.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from cvae.bounds import split_nlls
from cvae.evaluation.label_control import label_control
from cvae.evaluation.latent_independence import latent_independence
from cvae.evaluation.sampled import SampledSubject as Subject
from cvae.models import CVAE, VAE
from harness.contract.errors import ConfigError
from harness.run_folder import loading
from harness.run_folder.trust import Trust

NUM_SAMPLES = 100
ALTERNATIVES = "alternatives"  # trusted package: alternatives.py in this folder


class Scores(NamedTuple):
    """Validation scores of the best checkpoint of a run."""

    nll: float  # nats per validation image, importance-weighted with K = 100
    label_agreement: float  # share of 10,000 decoder means with the oracle's label


def validation_nll(run_dir: Path, trusted: Trust = None) -> float:
    """Return the nll of the best checkpoint of a run in nats per validation image, K = 100."""
    return _nll(_load_subject(run_dir, trusted))


def validation_scores(run_dir: Path, trusted: Trust = None) -> Scores:
    """Return nll and label agreement of the best checkpoint of a run."""
    subject = _load_subject(run_dir, trusted)
    return Scores(_nll(subject), label_control(subject)["samples/label_agreement"].value)


def _load_subject(run_dir: Path, trusted: Trust) -> Subject:
    """Load the best checkpoint of a run, with the validation images as test images."""
    model, cfg = loading.load_model(loading.find_run(run_dir)[1], trusted)
    data = loading.load_data(cfg, trusted)
    data.prepare_data()
    data.setup()
    splits = {**data.splits(), "test": data.splits()["validation"]}
    cache = data.data_dir / data.dataset / "oracle"
    return Subject(model, **splits, cache=cache)


def _nll(subject: Subject) -> float:
    assert isinstance(subject.model, VAE)
    nll = split_nlls(subject.model, subject.validation, [NUM_SAMPLES])[NUM_SAMPLES]
    return float(nll.double().mean())


def main(run_dirs: list[str]) -> None:
    """Print the scores of runs. The MLP probe is selected and scored on the same images."""
    if not run_dirs:
        raise SystemExit("no run given: python benchmarks/validation.py RUN ...")
    for run_dir in run_dirs:
        try:
            subject = _load_subject(Path(run_dir), ALTERNATIVES)
        except ConfigError as error:
            raise SystemExit(str(error)) from None
        if not isinstance(subject.model, CVAE):
            raise SystemExit(f"{run_dir}: must be a run of a CVAE")
        control, probes = label_control(subject), latent_independence(subject)
        means, drawn = (control[f"samples/label_agreement{end}"].value for end in ("", "_drawn"))
        print(
            f"{run_dir}: {_nll(subject):.2f} nats (validation, K = {NUM_SAMPLES}); label agreement "
            f"{means:.2%}, of binary samples {drawn:.2%}; MLP probe accuracy on z "
            f"{probes['latent/label_accuracy_mlp'].value:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
