"""Make the folder ``pretrained/`` from a finished run: ``make pretrained RUN=logs/latest``.

It stores the best weights as float16, evaluates the stored weights with evaluate.py, and writes a
model card with the measured metrics, and the digests of all files.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvae.evaluation.claim import Metric
from cvae.models import Autoencoder
from harness.config.paths import ROOT, display_path
from harness.contract import exported
from harness.contract.errors import ConfigError, RunFailed
from harness.contract.files import atomic_write_files, write_json, write_text
from harness.run_folder import exported_folder, loading, reading

CARD = "README.md"
FILES = (CARD, exported.CONFIG, reading.EVALUATION, exported.WEIGHTS)
_DIGITS = {"%": 2, "nats": 2, "bits": 4, "dims": 0}  # decimals by unit; 3 for others
_MARKS = {"met": "met", "near": "within two s.e.", "missed": "not met"}


def make_pretrained(run: str, folder: Path, arguments: Sequence[str] = ()) -> None:
    """Write weights, config, measured values, card and digests into a folder.

    Args:
        run: the run folder or checkpoint.
        folder: the folder to write; its other files stay.
        arguments: settings of evaluate.py.

    Raises:
        ConfigError: there is no such run.
        RunFailed: the evaluation failed; the folder is unchanged.
    """
    run_dir, checkpoint = loading.find_run(run)
    model, archived = loading.load_model(checkpoint, model_class=Autoencoder)
    summary = reading.read_checkpoint_summary(run_dir, checkpoint)
    config = exported_folder.portable_config(reading.to_plain(archived), summary)
    (ROOT / "logs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "logs", prefix=".pretrained-") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        exported.save(model.state_dict(), config, new, half=True)
        write_json(new / reading.EVALUATION, evaluate(new, arguments))
        write_text(new / CARD, model_card(config, reading.read_evaluation(new)))
        exported.write_digests(new, FILES)
        with atomic_write_files(folder) as replacing:
            for name in (*FILES, exported.DIGESTS):
                shutil.copyfile(new / name, replacing / name)


def evaluate(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run evaluate.py on an exported folder and return its results."""
    script = str(ROOT / "src" / "evaluate.py")
    command = [sys.executable, script, f"run='{folder}'", "figures=false", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise RunFailed("evaluate.py failed: no file was changed")
    return reading.read_evaluation(exported_folder.output_dir(folder))


def model_card(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return the model card: use, measured values, training and limits.

    Args:
        config: the published config.
        evaluation: content of evaluation.json.
    """
    model, training = config["model"], config["training"]
    model_name, data = model["_target_"].rpartition(".")[2], config["data"]["name"]
    is_conditional = model_name == "CVAE"
    label, y = (" label=7", "y=7, ") if is_conditional else ("", "")
    generate = f"python src/generate.py run=pretrained{label}"
    trained_elbo = training.get("metrics", {}).get("test/elbo")
    measured_elbo = evaluation["metrics"].get("test/elbo", {}).get("value")
    rounding = ""
    if trained_elbo is not None and measured_elbo is not None:
        change = measured_elbo - trained_elbo
        rounding = f" Rounding to float16 changed `test/elbo` by {change:+.4f} nats."
    rows = "\n".join(map(_row, evaluation["metrics"].items()))
    missed = [name for name, entry in evaluation["metrics"].items() if _is_missed(entry)]
    limits = f" Targets not met: {', '.join(f'`{name}`' for name in missed)}." if missed else ""
    is_averaged = config.get("callbacks", {}).get("ema")
    weights = "an exponential moving average at" if is_averaged else "those at"
    return f"""---
license: mit
library_name: pytorch
pipeline_tag: unconditional-image-generation
datasets: [{data.lower()}]
tags: [{model_name.lower()}, {data.lower()}]
---

# {config["name"]}

{model_name} on {data}: {training["num_parameters"]:,} parameters, {model["latent_dim"]} latent \
dimensions. The weights are stored as float16 and loaded as float32.

## Use

```bash
{generate:<46}# a picture of samples
{"python src/evaluate.py run=pretrained":<46}# the table below
{"python src/train.py weights=pretrained":<46}# start from these weights
```

```python
from cvae import load_pretrained

model = load_pretrained()
images = model.sample({y}num_samples=10)  # pixel means in [0, 1]
```

Commands write to `logs/pretrained/` and do not change this folder.

## Measured

| metric | value ± s.e. | target | real data |
|---|---|---|---|
{rows}

Measured with the stored weights on the test images of {data}, with \
{evaluation["num_generated"]:,} samples per label. Standard errors are over images or samples. \
The targets are those of the default model. The last column is the value of real images, or of \
chance. [Metrics](../docs/reference/metrics.md) explains each metric; `evaluation.json` has the \
unrounded values.{rounding}

## Training

{training["epochs"]} epochs, {training["images_seen"]:,} images, {training["device"]}, precision \
{training["precision"]}, seed {config["seed"]}. The weights are {weights} the best \
`{config["monitor"]}`. `config.json` holds all settings, the versions of libraries and the commit.

## Files

`sha256sum --check SHA256SUMS` checks the files; loading checks the weights and the config. \
`make pretrained RUN=logs/latest` creates this folder from a run.

## Limits

The model generates images like those of {data} only. The values are those of one run.{limits}
"""


def _metric(entry: Mapping[str, Any]) -> Metric:
    return Metric(**{key: value for key, value in entry.items() if key != "claim"})


def _is_missed(entry: Mapping[str, Any]) -> bool:
    return "value" in entry and _metric(entry).status == "missed"


def _row(item: tuple[str, Mapping[str, Any]]) -> str:
    """Return the table row of a metric in evaluation.json."""
    name, entry = item
    if "value" not in entry:  # not finite
        return f"| `{name}` | | | |"
    metric = _metric(entry)
    digits = _DIGITS.get(metric.unit, 3)
    unit = f" {metric.unit}" if metric.unit in ("%", "nats", "bits") else ""

    def format_value(value: float, digits: int = digits) -> str:
        return f"{metric.scale * value:.{digits}f}"

    error = "" if metric.standard_error is None else f" ± {format_value(metric.standard_error)}"
    floor = "" if metric.floor is None else f"{format_value(metric.floor)}{unit}"
    return f"| `{name}` | {format_value(metric.value)}{error}{unit} | {_target(metric)} | {floor} |"


def _target(metric: Metric) -> str:
    digits = 1 if metric.unit == "%" else 2
    bounds = (("≥", metric.at_least), ("≤", metric.at_most))
    shown = [f"{sign} {metric.scale * b:.{digits}f}" for sign, b in bounds if b is not None]
    return f"{', '.join(shown)}: {_MARKS[metric.status or 'met']}" if shown else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--run", default="logs/latest", help="run folder or checkpoint")
    add("--output", type=Path, default=ROOT / "pretrained", help="folder to write")
    add("arguments", nargs="*", metavar="KEY=VALUE", help="settings of evaluate.py")
    options = parser.parse_args()
    try:
        make_pretrained(options.run, options.output.resolve(), options.arguments)
    except (ConfigError, RunFailed) as error:
        raise SystemExit(f"error: {error}") from None
    print(display_path(options.output.resolve()))


if __name__ == "__main__":
    main()
