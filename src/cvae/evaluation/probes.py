"""Probes: classifiers and regressions that predict parts of y from z."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

_HIDDEN_DIM = 256
_BATCH_SIZE = 1024
_MIN_BATCHES = 20  # per epoch
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 1e-4
_MAX_EPOCHS = 30
_PATIENCE = 4  # epochs without a better validation loss
_SEED = 0

Points = Float[Tensor, "_ latent_dim"]
Labels = Int64[Tensor, " _"]
Values = Float[Tensor, " _"]
TrainSampler = Callable[[int], tuple[Points, Labels]]  # returns the labelled points of an epoch


def logistic_predictions(train: tuple[Points, Labels], points: Points) -> Labels:
    """Predict the labels of points by logistic regression, on the CPU."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    probe.fit(train[0].cpu().numpy(), train[1].cpu().numpy())
    return torch.from_numpy(probe.predict(points.cpu().numpy())).to(points.device)


@torch.enable_grad()
def mlp_predictions(
    sample_train: TrainSampler,
    validation: tuple[Points, Labels],
    points: Points,
    num_classes: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Labels:
    """Predict the labels of points by a perceptron with two hidden layers of 256 units.

    Args:
        sample_train: returns new training points for each epoch, so that none can be memorized.
        validation: points for early stopping; the epoch with the lowest loss is kept.
    """
    return _train_perceptron(
        sample_train, validation, points, num_classes, F.cross_entropy, progress
    ).argmax(1)


def ridge_values(train: tuple[Points, Values], points: Points) -> Values:
    """Predict the values of points by ridge regression, on the CPU."""
    probe = make_pipeline(StandardScaler(), Ridge())
    probe.fit(*(values.double().cpu().numpy() for values in train))
    predicted = torch.from_numpy(probe.predict(points.double().cpu().numpy()))
    return predicted.float().to(points.device)


@torch.enable_grad()
def mlp_values(
    sample_train: Callable[[int], tuple[Points, Values]],
    validation: tuple[Points, Values],
    points: Points,
    progress: Callable[[float], None] = lambda share: None,
) -> Values:
    """Predict the values of points by the perceptron of :func:`mlp_predictions`."""
    train_values = sample_train(0)[1]
    varies = len(validation[1].unique()) > 1
    reference = validation[1] if varies else train_values  # one validation image may be too few
    mean, std = reference.mean(), reference.std().clamp_min(1e-6)

    def squared_error(outputs: Tensor, values: Values) -> Tensor:
        return F.mse_loss(outputs[:, 0], (values - mean) / std)

    outputs = _train_perceptron(sample_train, validation, points, 1, squared_error, progress)
    return outputs[:, 0] * std + mean


def _train_perceptron(
    sample_train: Callable[[int], tuple[Points, Tensor]],
    validation: tuple[Points, Tensor],
    points: Points,
    num_outputs: int,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    progress: Callable[[float], None],
) -> Float[Tensor, "_ num_outputs"]:
    """Train a perceptron and return its outputs for points."""
    generator = torch.Generator().manual_seed(_SEED)
    z, _ = sample_train(0)
    batch_size = max(16, min(_BATCH_SIZE, len(z) // _MIN_BATCHES))
    mean, std = z.mean(0), z.std(0).clamp_min(1e-6)
    with torch.random.fork_rng([]):
        torch.manual_seed(_SEED)
        model = nn.Sequential(
            nn.Linear(z.shape[1], _HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(_HIDDEN_DIM, _HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(_HIDDEN_DIM, num_outputs),
        ).to(z.device)
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1)
    lowest_loss, best_epoch, best_model = float("inf"), 0, model
    for epoch in range(_MAX_EPOCHS):
        progress(epoch / _MAX_EPOCHS)
        z, labels = sample_train(epoch)
        z = (z - mean) / std
        order = torch.randperm(len(z), generator=generator).to(z.device)
        for index in order.split(batch_size):
            loss = loss_function(model(z[index]), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            validation_loss = float(
                loss_function(model((validation[0] - mean) / std), validation[1])
            )
        schedule.step(validation_loss)
        if validation_loss < lowest_loss:
            lowest_loss, best_epoch, best_model = validation_loss, epoch, copy.deepcopy(model)
        elif epoch - best_epoch >= _PATIENCE:
            break
    with torch.no_grad():
        outputs: Tensor = best_model((points - mean) / std)
        return outputs
