"""What recipes are chosen by: the importance-weighted bound on the validation images of a run."""

import json
from pathlib import Path

import torch
from torch.nn.functional import one_hot

from cvae import runs
from cvae.evaluation.likelihood import BATCH, importance_weighted_nll
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
    images = data.splits()["validation"]
    nll = 0.0
    for index in torch.arange(len(images.labels)).split(BATCH):
        x = images.inputs[index].float() / 255
        y = one_hot(images.labels[index], data.num_classes).float() if model.conditional else None
        nll += float(importance_weighted_nll(model, x, y, index, NUM_SAMPLES).double().sum())
    nll /= len(images.labels)
    runs.write_json(kept, {"nll": nll, "num_samples": NUM_SAMPLES, "checkpoint_digest": digest})
    return nll
