"""The oracle: a classifier of real digits, whose word and whose features other claims rest on.

It never sees a generated image, and no test image while it learns or is selected.
"""

import hashlib
import io
import logging
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from cvae import noise
from cvae.types import Image, Split
from harness.contract import files

log = logging.getLogger(__name__)

_ORACLE = "oracle"  # name of its file
_NUM_FEATURES = 128
_ORACLE_EPOCHS = 5
SHORT_EPOCHS = 2  # of the classifiers that are trained for each model
_BATCH_SIZE = 128
_MIN_BATCHES = 20  # in an epoch
_LEARNING_RATE = 6e-3  # peak
_RISE = 0.2  # share of the steps over which it rises
_WEIGHT_DECAY = 0.02
_MAX_SHIFT = 2  # pixels, in training
_LABEL_SMOOTHING = 0.05
_SEED = 0
_ROWS = 1000  # images at a time when nothing is learned

Pixels = UInt8[Tensor, "_ channel height width"]
Labels = Int64[Tensor, " _"]
Features = Float[Tensor, "_ num_features"]
Progress = Callable[[str, float], None]  # what is being done, and which share of it is


class Classifier(nn.Module):
    """A small convolutional network for images of one channel and any size from 8 x 8."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(3),
        )
        self.to_features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 9, _NUM_FEATURES, bias=False),
            nn.BatchNorm1d(_NUM_FEATURES),
        )
        self.head = nn.Linear(_NUM_FEATURES, num_classes)

    def features(self, x: Image) -> Features:
        """What Frechet distance, recall and coverage are taken in: the layer before the logits."""
        return F.relu(self.to_features(self.maps(x)))

    def forward(self, x: Image) -> Float[Tensor, "batch num_classes"]:
        return self.head(self.features(x))


class Prediction(NamedTuple):
    labels: Labels
    features: Features


@torch.no_grad()
def predict(classifier: Classifier, images: Float[Tensor, "n 1 height width"]) -> Prediction:
    """Classes and features of images in [0, 1]."""
    features = [classifier.features(x) for x in images.split(_ROWS)]
    labels = [classifier.head(f).argmax(1) for f in features]
    return Prediction(torch.cat(labels), torch.cat(features))


def accuracy(predicted: Labels, labels: Labels, num_classes: int) -> float:
    """Share of labels that agree."""
    return float(multiclass_accuracy(predicted, labels, num_classes, average="micro"))


def _shifted(x: Image, generator: torch.Generator) -> Image:
    """Every image moved by up to ``_MAX_SHIFT`` pixels either way, zeros moving in."""
    height, width = x.shape[2:]
    padded = F.pad(x, [_MAX_SHIFT] * 4)
    offset = torch.randint(2 * _MAX_SHIFT + 1, (2, len(x)), generator=generator)
    rows = offset[0][:, None] + torch.arange(height)
    columns = offset[1][:, None] + torch.arange(width)
    image = torch.arange(len(x))[:, None, None]
    return padded[image, 0, rows[:, :, None], columns[:, None, :]][:, None]


def _one_cycle(share: float) -> float:
    """The learning rate by the share of steps done: a linear rise, then half a cosine to 0."""
    if share < _RISE:
        return 0.04 + 0.96 * share / _RISE
    return 0.5 * (1 + math.cos(math.pi * (share - _RISE) / (1 - _RISE)))


@torch.enable_grad()
def train_classifier(
    train: tuple[Pixels, Labels],
    validation: tuple[Pixels, Labels] | None,
    num_classes: int,
    num_epochs: int,
    binarized_share: float,
    progress: Progress | None = None,
) -> Classifier:
    """Train on labelled images; without validation images, whose best epoch is kept, to the end.

    Args:
        binarized_share: of the training images whose pixels are drawn from Bernoulli(pixel / 255),
            anew at every visit; the others stay grey.
    """
    pixels, labels = train
    generator = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng([]):
        torch.manual_seed(_SEED)
        model = Classifier(num_classes)
    # of a small set, small batches: but at least two images in each
    num_batches = max(len(pixels) // _BATCH_SIZE, min(_MIN_BATCHES, len(pixels) // 2))
    total = num_epochs * num_batches
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step / total))
    best, best_state = -1.0, model.state_dict()
    for epoch in range(num_epochs):
        model.train()
        order = torch.randperm(len(pixels), generator=generator)
        for i, index in enumerate(order.tensor_split(num_batches)):
            grey = pixels[index]
            x = grey.float() / 255.0
            if binarized_share:
                drawn = noise.bernoulli(grey.flatten(1), index, seed=_SEED, epoch=epoch)
                chosen = torch.rand(len(x), generator=generator) < binarized_share
                x[chosen] = drawn.float().view_as(x)[chosen]
            logits = model(_shifted(x, generator))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=_LABEL_SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None and i % 20 == 0:
                progress("training a classifier", (epoch * num_batches + i) / total)
        model.eval()
        if validation is None:
            continue
        predicted = predict(model, validation[0].float() / 255.0).labels
        if (found := accuracy(predicted, validation[1], num_classes)) > best:
            best, best_state = found, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best_state)
    return model.eval()


class Oracle:
    """The classifier of real digits, and what the same network reaches in the shorter training.

    Trained when first asked for, and kept in a folder under a key made of this file and of the
    digits; what is missing, damaged or of another key is trained again.

    Args:
        folder: of the cache; None to keep nothing.
        num_classes: number of labels.
    """

    def __init__(
        self,
        train: Split,
        validation: Split,
        num_classes: int,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.train = train
        self.validation = validation
        self.num_classes = num_classes
        self.folder = folder
        self.progress = progress
        self._known: dict[str, Classifier] = {}
        self._digest: str | None = None

    @property
    def is_asked(self) -> bool:
        """Whether its word or its features have been asked for."""
        return _ORACLE in self._known

    @property
    def classifier(self) -> Classifier:
        """Trained on grey and on binarized images in turn, selected on validation."""
        return self._trained(_ORACLE, _ORACLE_EPOCHS, binarized_share=0.5, select=True)

    def ceiling(self, binarized: bool) -> Classifier:
        """Trained on real images as those of generated ones are: the best these can hope for."""
        name = "binarized" if binarized else "grey"
        return self._trained(name, SHORT_EPOCHS, binarized_share=float(binarized), select=False)

    def predict(self, images: Image) -> Prediction:
        return predict(self.classifier, images)

    def accuracy(self, images: Image, labels: Labels) -> float:
        """Share of images in [0, 1] that the oracle gives their label."""
        return accuracy(self.predict(images).labels, labels, self.num_classes)

    def _trained(
        self, name: str, num_epochs: int, binarized_share: float, select: bool
    ) -> Classifier:
        if name in self._known:
            return self._known[name]
        path = None if self.folder is None else self.folder / f"{name}-{self._key()}.pt"
        found = None if path is None else _load(path, self.num_classes)
        if found is None:
            validation = (self.validation.grey, self.validation.labels) if select else None
            found = train_classifier(
                (self.train.grey, self.train.labels),
                validation,
                self.num_classes,
                num_epochs,
                binarized_share,
                self.progress,
            )
            if path is not None:
                _save(found, path)
        self._known[name] = found
        return found

    def _key(self) -> str:
        """Digest of what the classifiers are a function of."""
        if self._digest is None:
            content = hashlib.sha256(Path(__file__).read_bytes())
            content.update(torch.__version__.encode())
            for split in (self.train, self.validation):
                content.update(split.grey.numpy().tobytes())
                content.update(split.labels.numpy().tobytes())
            self._digest = content.hexdigest()[:16]
        return self._digest


_UNREADABLE = (  # what torch raises for a damaged file
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    pickle.UnpicklingError,
)


def _load(path: Path, num_classes: int) -> Classifier | None:
    """The classifier in a file, or None where there is none that can be read."""
    model = Classifier(num_classes)
    try:
        model.load_state_dict(torch.load(path, weights_only=True))
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        log.warning("%s: damaged (%s); it is trained again", path, type(error).__name__)
        return None
    return model.eval()


def _save(model: Classifier, path: Path) -> None:
    """Replace a file atomically; a folder that cannot be written costs the next command time."""
    whole = io.BytesIO()  # in memory first: torch hides the reason where a disk is full
    torch.save(model.state_dict(), whole)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(whole.getbuffer())
    except OSError as error:
        log.warning("%s; it is trained again next time", error)
