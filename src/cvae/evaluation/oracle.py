"""The oracle: a classifier of real digits that labels samples and provides features.

It never trains on generated images, and test images neither train nor select it.
"""

import hashlib
import io
import logging
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from cvae import noise
from cvae.evaluation.claim import Progress
from cvae.types import Image, Split
from harness.contract import files

log = logging.getLogger(__name__)

_ORACLE = "oracle"  # file name
_NUM_FEATURES = 128
_ORACLE_EPOCHS = 5
SHORT_EPOCHS = 2  # of classifiers that train on samples
_BATCH_SIZE = 128
_MIN_BATCHES = 20  # per epoch
_LEARNING_RATE = 6e-3  # peak
_WARM_UP = 0.2  # share of the steps that warm up the learning rate
_WEIGHT_DECAY = 0.02
_MAX_SHIFT = 2  # pixels, in training
_LABEL_SMOOTHING = 0.05
_SEED = 0
_CHUNK_SIZE = 1000  # images at a time in prediction

Pixels = UInt8[Tensor, "_ channel height width"]
Labels = Int64[Tensor, " _"]
Values = Float[Tensor, " _"]
Features = Float[Tensor, "_ num_features"]


class Classifier(nn.Module):
    """Small convolutional classifier of grey or color images of 8 x 8 pixels or more."""

    def __init__(self, num_classes: int, num_channels: int = 1) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(num_channels, 16, 3, padding=1, bias=False),
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
        """Return the layer before the logits, for Frechet distance, recall and coverage."""
        return F.relu(self.to_features(self.maps(x)))

    def forward(self, x: Image) -> Float[Tensor, "batch num_classes"]:
        return self.head(self.features(x))


class Prediction(NamedTuple):
    labels: Labels
    features: Features


@torch.no_grad()
def predict(classifier: Classifier, images: Float[Tensor, "n channels height width"]) -> Prediction:
    """Return the predicted labels and the features of images in [0, 1]."""
    features = [classifier.features(x) for x in images.split(_CHUNK_SIZE)]
    labels = [classifier.head(f).argmax(1) for f in features]
    return Prediction(torch.cat(labels), torch.cat(features))


def accuracy(predicted: Labels, labels: Labels, num_classes: int) -> float:
    """Return the share of correct predictions."""
    return float(multiclass_accuracy(predicted, labels, num_classes, average="micro"))


def _shift(x: Image, generator: torch.Generator) -> Image:
    """Shift every image by up to ``_MAX_SHIFT`` pixels, padded with zeros."""
    height, width = x.shape[2:]
    padded = F.pad(x, [_MAX_SHIFT] * 4)
    offset = torch.randint(2 * _MAX_SHIFT + 1, (2, len(x)), generator=generator).to(x.device)
    rows = offset[0][:, None] + torch.arange(height, device=x.device)
    columns = offset[1][:, None] + torch.arange(width, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _one_cycle(share: float) -> float:
    """Return the learning-rate factor after a share of the steps: linear warm-up, then cosine."""
    if share < _WARM_UP:
        return 0.04 + 0.96 * share / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - _WARM_UP) / (1 - _WARM_UP)))


def train_classifier(
    train: tuple[Pixels, Labels],
    validation: tuple[Pixels, Labels] | None,
    num_classes: int,
    num_epochs: int,
    binarized_share: float,
    progress: Progress | None = None,
) -> Classifier:
    """Train a classifier; keep the epoch with the best validation accuracy, or else the last one.

    Args:
        binarized_share: share of the training images that are binarized, with new noise in every
            epoch; the others stay grey.
    """

    def loss_function(logits: Tensor, labels: Labels) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=_LABEL_SMOOTHING)

    def score_function(model: Classifier) -> float:
        assert validation is not None
        predicted = predict(model, validation[0].float() / 255.0).labels
        return accuracy(predicted, validation[1], num_classes)

    score = None if validation is None else score_function
    return _fit(num_classes, train, loss_function, score, num_epochs, binarized_share, progress)


def train_regressor(
    train: tuple[Pixels, Values],
    validation: tuple[Pixels, Values],
    binarized_share: float,
    progress: Progress | None = None,
) -> Callable[[Image], Values]:
    """Train a regressor; return the predictor of the epoch with the lowest validation error."""
    mean, std = train[1].mean(), train[1].std().clamp_min(1e-12)

    def loss_function(outputs: Tensor, values: Values) -> Tensor:
        return F.mse_loss(outputs[:, 0], (values - mean) / std)

    def predict_values(model: Classifier, images: Image) -> Values:
        with torch.no_grad():
            return torch.cat([model(x)[:, 0] for x in images.split(_CHUNK_SIZE)]) * std + mean

    def score_function(model: Classifier) -> float:
        predicted = predict_values(model, validation[0].float() / 255.0)
        return -float((predicted - validation[1]).square().mean() / std**2)

    model = _fit(1, train, loss_function, score_function, _ORACLE_EPOCHS, binarized_share, progress)
    return partial(predict_values, model)


@torch.enable_grad()
def _fit(
    num_outputs: int,
    train: tuple[Pixels, Tensor],
    loss_function: Callable[[Tensor, Tensor], Tensor],
    score_function: Callable[[Classifier], float] | None,
    num_epochs: int,
    binarized_share: float,
    progress: Progress | None,
) -> Classifier:
    """Train on the device of the images; keep the epoch with the best score, or the last one."""
    pixels, targets = train
    generator = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng([]):
        torch.manual_seed(_SEED)
        model = Classifier(num_outputs, pixels.shape[1]).to(pixels.device)
    # a small set gets smaller batches, of at least two images
    num_batches = max(len(pixels) // _BATCH_SIZE, min(_MIN_BATCHES, len(pixels) // 2))
    total = num_epochs * num_batches
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step / total))
    best, best_state = -math.inf, model.state_dict()
    for epoch in range(num_epochs):
        model.train()
        order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        for i, index in enumerate(order.tensor_split(num_batches)):
            grey = pixels[index]
            x = grey.float() / 255.0
            if binarized_share:
                binarized = noise.bernoulli(grey.flatten(1), index, seed=_SEED, epoch=epoch)
                chosen = torch.rand(len(x), generator=generator).to(x.device) < binarized_share
                x[chosen] = binarized.float().view_as(x)[chosen]
            loss = loss_function(model(_shift(x, generator)), targets[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None and i % 20 == 0:
                progress("training a classifier", (epoch * num_batches + i) / total)
        model.eval()
        if score_function is not None and (score := score_function(model)) > best:
            best, best_state = score, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best_state)
    return model.eval()


class Oracle:
    """Classifier of real images, and references for the classifiers that train on samples.

    All train on first use and are cached in a folder, under a digest of this file, the version of
    torch and the digits. A missing, damaged or outdated file is trained again. They train on
    the device of the splits. An evaluation passes splits on the CPU, so that the classifiers are
    the same for every device.

    Args:
        num_classes: number of labels.
        folder: folder of the cache; None for no cache.
        device: device of the images to classify.
    """

    def __init__(
        self,
        train: Split,
        validation: Split,
        num_classes: int,
        folder: Path | None = None,
        progress: Progress | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = device
        self.train = train
        self.validation = validation
        self.num_classes = num_classes
        self.folder = folder
        self.progress = progress
        self._classifiers: dict[str, Classifier] = {}
        self._digest: str | None = None

    @property
    def num_channels(self) -> int:
        return self.train.grey.shape[1]

    @property
    def is_used(self) -> bool:
        """True after the first prediction."""
        return _ORACLE in self._classifiers

    @property
    def classifier(self) -> Classifier:
        """The oracle, selected on validation: trained on half grey, half binarized images.

        Color images are never binarized.
        """
        share = 0.5 if self.num_channels == 1 else 0.0
        return self._get_classifier(_ORACLE, _ORACLE_EPOCHS, binarized_share=share, select=True)

    def ceiling(self, binarized: bool) -> Classifier:
        """Return a classifier trained on real images, a ceiling for those trained on samples."""
        name = "binarized" if binarized else "grey"
        return self._get_classifier(
            name, SHORT_EPOCHS, binarized_share=float(binarized), select=False
        )

    def predict(self, images: Image) -> Prediction:
        return predict(self.classifier, images)

    def accuracy(self, images: Image, labels: Labels) -> float:
        """Return the share of images in [0, 1] that the oracle assigns their label."""
        return accuracy(self.predict(images).labels, labels, self.num_classes)

    def _get_classifier(
        self, name: str, num_epochs: int, binarized_share: float, select: bool
    ) -> Classifier:
        if name in self._classifiers:
            return self._classifiers[name]
        path = None if self.folder is None else self.folder / f"{name}-{self._cache_key()}.pt"
        classifier = None if path is None else _load(path, self.num_classes, self.num_channels)
        if classifier is None:
            validation = (self.validation.grey, self.validation.labels) if select else None
            classifier = train_classifier(
                (self.train.grey, self.train.labels),
                validation,
                self.num_classes,
                num_epochs,
                binarized_share,
                self.progress,
            )
            if path is not None:
                _save(classifier, path)
        self._classifiers[name] = classifier.to(self.device)
        return self._classifiers[name]

    def _cache_key(self) -> str:
        """Return a digest of everything that determines the classifiers."""
        if self._digest is None:
            content = hashlib.sha256(Path(__file__).read_bytes())
            content.update(torch.__version__.encode())
            for split in (self.train, self.validation):
                for rows in split.grey.split(_CHUNK_SIZE):  # a copy may exceed the memory
                    content.update(rows.flatten().numpy())
                content.update(split.labels.numpy().tobytes())
            self._digest = content.hexdigest()[:16]
        return self._digest


_LOAD_ERRORS = (  # what torch raises for a damaged file
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    pickle.UnpicklingError,
)


def _load(path: Path, num_classes: int, num_channels: int) -> Classifier | None:
    """Return the classifier in a file, or None if the file is missing or damaged."""
    model = Classifier(num_classes, num_channels)
    try:
        model.load_state_dict(torch.load(path, weights_only=True))
    except FileNotFoundError:
        return None
    except _LOAD_ERRORS as error:
        log.warning("%s: damaged (%s); training the classifier again", path, type(error).__name__)
        return None
    return model.eval()


def _save(model: Classifier, path: Path) -> None:
    """Save a classifier atomically; only warn if the folder cannot be written."""
    buffer = io.BytesIO()  # in memory first: torch.save hides that a disk is full
    torch.save(model.state_dict(), buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        log.warning("%s; the next evaluation trains the classifier again", error)
