"""Facts about this package that the harness reads without importing torch.

docs/design/harness.md lists the names that the harness reads. The constructors of this
package define types and ranges of settings.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvae.versions import upgraded as upgraded

FUNCTIONS = ("lightning_module.warmup_cosine",)  # that configs in run folders may call
FREE = ("callbacks.figures", "compile", "test_num_samples")  # do not affect the training trajectory
LESS_MEMORY = (  # settings to lower when memory runs out
    "data.batch_size, data.eval_batch_size, test_num_samples or model.network.hidden_dim"
)
_DENSITIES = ("ContinuousBernoulli", "Gaussian")  # their nats are not those of probabilities
_MODELS = ("cvae.models.Autoencoder", "cvae.models.VAE", "cvae.models.CVAE")
MNIST_SETS = ("MNIST", "FashionMNIST", "KMNIST", "EMNIST")  # names in cvae.digits.SETS
_DATA_MODULES = (
    "cvae.data.MNISTDataModule",
    "cvae.data.ImagesDataModule",
    "cvae.image_folder.ImageFolderDataModule",
    "cvae.coloured_mnist.ColouredMNISTDataModule",
    "cvae.rotated_mnist.RotatedMNISTDataModule",
)
_CALLBACKS = ("cvae.callbacks.EMA", "cvae.callbacks.Figures")  # these log no metric


def _class_name(node: Any) -> str:
    """Return the class name of a node, such as VAE; empty for no class, or for a wrong value."""
    return _target(node).rpartition(".")[2]


def _target(node: Any) -> str:
    return str(node.get("_target_") or "") if isinstance(node, Mapping) else ""


def run_name(cfg: Mapping[str, Any]) -> str:
    """Return a readable name of a run, such as cvae-mlp-adversary-z32-s1."""
    model, data = cfg["model"], cfg["data"]
    nodes = [model, *(model.get(part) for part in ("network", "prior", "penalty"))]
    classes = [_class_name(node) for node in (*nodes, data.get("augmentation")) if node]
    parts = [name for name in classes if name != "StandardNormal"]
    parts += [f"z{model['latent_dim']}"] if "latent_dim" in model else []
    parts += [str(data["name"])] if data.get("name") not in ("MNIST", "", None) else []
    return "-".join([*parts, f"s{cfg['seed']}"]).lower()


def _nats_suffix(cfg: Mapping[str, Any]) -> str:
    """Return the suffix of metric names in nats: _density if the likelihood is a density."""
    return "_density" if _class_name(cfg["model"].get("likelihood") or {}) in _DENSITIES else ""


def monitor(cfg: Mapping[str, Any]) -> str:
    """Return val/elbo, or val/reconstruction for a plain autoencoder; a density adds _density."""
    quantity = "reconstruction" if _target(cfg["model"]) == _MODELS[0] else "elbo"
    return f"val/{quantity}{_nats_suffix(cfg)}"


def validation_metrics(cfg: Mapping[str, Any]) -> Sequence[str]:
    """Return the validation metrics; empty if your own model or callback may log others."""
    model, callbacks = cfg["model"], (cfg.get("callbacks") or {}).values()
    targets = [_target(node) for node in callbacks if node]
    library = ("lightning.", "harness.")
    has_own = any(not t.startswith(library) and t not in _CALLBACKS for t in targets)
    if has_own or _target(model) not in _MODELS or not _is_from_library(model.get("likelihood")):
        return ()
    reconstruction = f"val/reconstruction{_nats_suffix(cfg)}"
    if _target(model) == _MODELS[0]:
        return (reconstruction,)
    metrics = (f"val/elbo{_nats_suffix(cfg)}", reconstruction, "val/kl")
    return metrics + (("val/penalty",) if model.get("penalty") else ())


def _is_from_library(likelihood: Any) -> bool:
    return not likelihood or _target(likelihood).startswith("cvae.likelihoods.")


def problems(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each invalid setting and for each contradiction between settings."""
    data, model = cfg["data"], cfg["model"]
    if _target(data) == _DATA_MODULES[0] and data.get("name", "MNIST") not in MNIST_SETS:
        yield f"data.name={data['name']}: must be one of {', '.join(MNIST_SETS)}"
    prior = model.get("prior") or {}
    if _target(prior) == "cvae.priors.Flow" and model["latent_dim"] < 2:
        yield f"model.latent_dim={model['latent_dim']}: must be at least 2 with model/prior=flow"
    prior_takes_y = _target(prior) == "cvae.priors.Conditional" or prior.get("conditional") is True
    if prior_takes_y and _target(model) in _MODELS[:2]:
        yield f"model={_class_name(model).lower()}: a prior that depends on y needs model=cvae"
    condition = model.get("condition") or {}
    if _class_name(condition) == "Quadrants" and _target(model) in _MODELS[:2]:
        yield f"model={_class_name(model).lower()}: data/condition=quadrants needs model=cvae"
    columns = condition.get("columns")
    if isinstance(columns, Mapping):
        yield from (f"data.condition.columns{text}" for text in column_problems(columns))
    is_known = _target(condition) in ("cvae.conditions.Attributes", "cvae.given_pixels.Quadrants")
    has_label = not is_known or _target(model) in _MODELS[:2]
    if _class_name(model.get("penalty") or {}) == "LabelwiseAdversary" and not has_label:
        yield (
            "model/penalty=labelwise_adversary: must be adversary or none, as y is not one label"
        )
    yield from _pixel_problems(data, model)
    maximized = [
        metric for metric in validation_metrics(cfg) if not metric.endswith(("kl", "penalty"))
    ]
    if cfg.get("mode") == "min" and cfg["monitor"] in (None, *maximized):
        yield f"mode=min: must be max, as {' and '.join(maximized) or monitor(cfg)} are maximized"
    trainer, schedule = cfg["trainer"], _class_name(cfg.get("scheduler") or {})
    has_no_end = trainer["max_epochs"] in (None, -1) and trainer["max_steps"] == -1
    if has_no_end and schedule == "warmup_cosine":
        shown = "null" if trainer["max_epochs"] is None else trainer["max_epochs"]
        yield (
            f"trainer.max_epochs={shown}: the schedule needs an end; set trainer.max_epochs or "
            "trainer.max_steps, or use scheduler=constant"
        )


def _pixel_problems(data: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if the likelihood does not fit the pixels."""
    shape, binarization = data.get("image_shape"), data.get("binarization")
    channels = shape[0] if isinstance(shape, Sequence) and len(shape) == 3 else None
    if channels not in (None, 1, 3):
        yield f"data.image_shape={shape}: must have 1 or 3 channels, then height and width"
    if channels == 3 and binarization == "dynamic":
        yield "data.binarization=dynamic: must be none, as color images are not binarized"
        return
    likelihood = model.get("likelihood")
    if _target(model) not in _MODELS or not _is_from_library(likelihood) or binarization is None:
        return
    name = _class_name(likelihood or {"_target_": ".Bernoulli"})
    if name == "Bernoulli" and channels == 3:
        yield (
            "model/likelihood=bernoulli: must be discretized_logistic, continuous_bernoulli or "
            "gaussian for color images"
        )
    elif name == "Bernoulli" and binarization == "none":
        yield (
            "data.binarization=none: must be dynamic with model/likelihood=bernoulli; for grey or "
            "color pixels use model/likelihood=discretized_logistic, continuous_bernoulli or "
            "gaussian"
        )
    if name != "Bernoulli" and binarization == "dynamic":
        yield f"data.binarization=dynamic: must be none, as {name} is not for binary pixels"


def column_problems(columns: Mapping[str, Any]) -> Iterator[str]:
    """Yield each problem of the columns of Attributes, as text to append to their key."""
    if not columns:
        yield ": must name at least one attribute"
    for name, classes in columns.items():
        if not re.fullmatch(r"[^\W\d][\w-]*", str(name)):
            yield f".{name}: the name must have only letters, digits, _ and -"
        elif classes != "continuous" and (type(classes) is not int or classes < 1):
            yield f".{name}={classes}: must be a number of classes, or continuous"


def next_commands(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Return the overrides to suggest after a run, by script."""
    condition = cfg["model"].get("condition") or {}
    requested = "label=all num_samples=10"
    if _target(cfg["model"]) in _MODELS[:2]:
        requested = "num_samples=10"
    elif _class_name(condition) == "Quadrants":  # generate.py has no images to complete
        return {"evaluate": ""}
    elif columns := condition.get("columns"):
        if "continuous" in columns.values():  # the config does not hold its range
            return {"evaluate": ""}
        requested = f"condition='{{{', '.join(f'{name}: 0' for name in columns)}}}'"
    return {"generate": requested, "evaluate": ""}


def has_data(data: Mapping[str, Any]) -> bool:
    """Return whether ``data_dir`` has the files of the data set."""
    if _target(data) not in _DATA_MODULES:  # your own class may need no files
        return True
    folder, name = Path(str(data.get("data_dir"))), str(data.get("name"))
    name = "MNIST" if _target(data) in _DATA_MODULES[3:] else name  # both are made from its files
    has_folder = any((folder / name / part).is_dir() for part in ("raw", "train"))
    return has_folder or (folder / f"{name}.npz").is_file()


def bytes_per_row(data: Mapping[str, Any]) -> int:
    """Return the bytes of an image and its one-hot label in float32, and its int64 index."""
    return 4 * (math.prod(data.get("image_shape") or [0]) + (data.get("num_classes") or 0)) + 8
