"""Cost of bfloat16 in nats: the same weights scored in both precisions, and training in both.

``python benchmarks/precision.py [OVERRIDE ...]`` (make precision) trains ten seeds of the quick
experiment in float32 and in bf16-mixed and writes docs/measured/precision.json. Finished runs are
skipped: repeat the command to resume after an interruption.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy import stats

from cvae import noise
from cvae.data import MNISTDataModule
from cvae.models import VAE
from harness.config import instantiation
from harness.contract.sampler import Rows
from harness.run_folder import loading, reading

ROOT = Path(__file__).resolve().parents[1]
SEEDS = range(1, 11)
PRECISIONS = ("32-true", "bf16-mixed")
METRIC = "test/nll_k10"


def train_in_both_precisions(seed: int, overrides: list[str]) -> list[Path]:
    """Train a seed in both precisions in parallel, unless done; return the two run folders."""
    processes, folders = [], []
    setting = "-".join(["quick", *(re.sub(r"[^\w.=]", "_", override) for override in overrides)])
    for precision in PRECISIONS:
        folder = ROOT / "logs" / "bench" / "precision" / setting / f"{precision}-s{seed}"
        folders.append(folder)
        if reading.read_summary(folder).get("status") == "finished":
            continue
        arguments = [f"resume={folder}"]
        if not reading.holds_run(folder):
            arguments = ["logger=csv", "callbacks.figures=null", "device=cpu", "experiment=quick"]
            arguments += [
                f"hydra.run.dir={folder}",
                f"trainer.precision={precision}",
                f"seed={seed}",
            ]
            arguments += overrides
        command = [sys.executable, "src/train.py", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        quiet = subprocess.DEVNULL
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet))
    codes = [process.wait() for process in processes]  # wait for all, even if one fails
    if any(codes):
        raise SystemExit(f"seed {seed}: a run failed")
    return folders


@torch.no_grad()
def negative_elbo(model: VAE, data: MNISTDataModule, is_bfloat16: bool) -> float:
    """Return -ELBO in nats per test image, with the same noise in both precisions.

    Computes on the device of the model.
    """
    assert data.test is not None
    total, device = 0.0, model.output_bias.device
    test = data.test.to(device)
    for index in torch.arange(len(test), device=device).split(1000):
        batch = test[Rows(0, index, len(index))]
        eps = noise.standard_normal(
            index, (model.latent_dim,), seed=0, stream=noise.Stream.IMPORTANCE
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16):
            terms = model.terms(batch.x, batch.y if model.conditional else None, eps)
        total -= float(terms.elbo.double().sum())
    return total / len(test)


def main(overrides: list[str]) -> None:
    differences, nlls = [], []
    for seed in SEEDS:
        folders = train_in_both_precisions(seed, overrides)
        float32, bfloat16 = (reading.read_summary(folder)["metrics"][METRIC] for folder in folders)
        nlls.append(float32)
        differences.append(bfloat16 - float32)
        print(f"seed {seed}: {METRIC} {float32:.3f}, bf16-mixed {differences[-1]:+.3f}", flush=True)
    cfg = reading.load_config(folders[0])
    data: MNISTDataModule = instantiation.instantiate(cfg.data, seed=cfg.seed)
    data.prepare_data()
    data.setup()
    model = loading.load_run(folders[0])
    assert isinstance(model, VAE)
    negative_elbos = [negative_elbo(model, data, is_bfloat16) for is_bfloat16 in (False, True)]
    error = stdev(differences) / math.sqrt(len(SEEDS))
    half_width = float(stats.t.ppf(0.975, len(SEEDS) - 1)) * error
    document: dict[str, Any] = {
        "torch": torch.__version__,
        "experiment": " ".join(["quick", *overrides]),
        "seeds": len(SEEDS),
        "metric": METRIC,
        "float32_nats": round(mean(nlls), 3),
        "same_weights_difference_nats": round(negative_elbos[1] - negative_elbos[0], 5),
        "trained_difference_nats": round(mean(differences), 3),
        "trained_difference_95_percent": [
            round(mean(differences) + s * half_width, 3) for s in (-1, 1)
        ],
        "differences": [round(d, 3) for d in differences],
    }
    text = json.dumps(document, indent=2) + "\n"
    (ROOT / "docs/measured/precision.json").write_text(text, encoding="utf-8")
    print(json.dumps({k: v for k, v in document.items() if k != "differences"}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
