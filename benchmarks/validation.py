"""What recipes are chosen by: the importance-weighted bound on the validation images of a run."""

import json
from pathlib import Path

from cvae import runs
from cvae.evaluation.likelihood import split_nlls
from cvae.models import VAE

NUM_SAMPLES = 100


def validation_nll(run_dir: Path) -> float:
    """Nats per image of the best checkpoint, by 100 samples; kept in validation.json."""
    checkpoint = runs.find_run(run_dir)[1]
    digest, kept = runs.file_digest(checkpoint), run_dir / "validation.json"
    if kept.exists():
        found = json.loads(kept.read_text())
        if (found["checkpoint_digest"], found["num_samples"]) == (digest, NUM_SAMPLES):
            return float(found["nll"])
    model, cfg = runs.load_model(checkpoint)
    assert isinstance(model, VAE)
    data = runs.load_data(cfg)
    data.prepare_data()
    data.setup()
    nlls = split_nlls(model, data.splits()["validation"], [NUM_SAMPLES])[NUM_SAMPLES]
    nll = float(nlls.double().mean())
    runs.write_json(kept, {"nll": nll, "num_samples": NUM_SAMPLES, "checkpoint_digest": digest})
    return nll
