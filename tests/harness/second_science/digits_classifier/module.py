"""An MLP classifier, with one loss and one accuracy value per row."""

from torch import Tensor, nn
from torch.nn import functional as F

from digits_classifier.data import Batch
from harness.contract.module import ExactModule


class MLP(nn.Sequential):
    def __init__(self, hidden_dim: int) -> None:
        super().__init__(nn.Linear(64, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 10))


class Classifier(ExactModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.training_loss(self._terms(batch), batch.global_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.score("val", self._terms(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.score("test", self._terms(batch))

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.model(batch.x)
        is_right = (logits.argmax(1) == batch.y).float()
        return {"loss": F.cross_entropy(logits, batch.y, reduction="none"), "accuracy": is_right}
