"""Readers of a latent: how much a classifier can tell from z."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

_HIDDEN_DIM = 256
_BATCH_SIZE = 1024
_MIN_BATCHES = 20  # in an epoch
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 1e-4
_MAX_EPOCHS = 30
_PATIENCE = 4  # epochs without a better validation loss
_SEED = 0

Points = Float[Tensor, "_ latent_dim"]
Labels = Int64[Tensor, " _"]
Draw = Callable[[int], tuple[Points, Labels]]  # labelled points of an epoch


def logistic_predictions(train: tuple[Points, Labels], points: Points) -> Labels:
    """Classes of points by logistic regression on training points."""
    reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    reader.fit(train[0].numpy(), train[1].numpy())
    return torch.from_numpy(reader.predict(points.numpy()))


@torch.enable_grad()
def mlp_predictions(
    draw: Draw,
    validation: tuple[Points, Labels],
    points: Points,
    num_classes: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Labels:
    """Classes of points by a perceptron of two hidden layers of 256, trained to convergence.

    Args:
        draw: training points anew for each epoch, so that nothing can be learnt by heart.
        validation: where the loss no longer falls, training ends and the best epoch is kept.
    """
    generator = torch.Generator().manual_seed(_SEED)
    z, _ = draw(0)
    batch_size = max(16, min(_BATCH_SIZE, len(z) // _MIN_BATCHES))
    mean, std = z.mean(0), z.std(0).clamp_min(1e-6)
    with torch.random.fork_rng([]):
        torch.manual_seed(_SEED)
        model = nn.Sequential(
            nn.Linear(z.shape[1], _HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(_HIDDEN_DIM, _HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(_HIDDEN_DIM, num_classes),
        )
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1)
    best, best_epoch, best_model = float("inf"), 0, model
    for epoch in range(_MAX_EPOCHS):
        progress(epoch / _MAX_EPOCHS)
        z, labels = draw(epoch)
        z = (z - mean) / std
        for index in torch.randperm(len(z), generator=generator).split(batch_size):
            loss = F.cross_entropy(model(z[index]), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = float(F.cross_entropy(model((validation[0] - mean) / std), validation[1]))
        schedule.step(found)
        if found < best:
            best, best_epoch, best_model = found, epoch, copy.deepcopy(model)
        elif epoch - best_epoch >= _PATIENCE:
            break
    with torch.no_grad():
        return best_model((points - mean) / std).argmax(1)
