"""The importance-weighted bound as it is computed: in chunks, with noise of its own."""

import pytest
import torch

from cvae.evaluation.likelihood import importance_weighted_nll
from cvae.models import CVAE, VAE
from tests.test_models import ALL_IMAGES, label_for, make


@pytest.mark.parametrize("max_rows", [1, 7, 64, 100_000])
@pytest.mark.parametrize("batch", [1, 5, 16])
def test_neither_chunk_nor_batch_changes_an_image(max_rows: int, batch: int) -> None:
    model = make(CVAE)
    assert isinstance(model, CVAE)
    index, y = torch.arange(16), label_for(model, 16)
    assert y is not None
    whole = importance_weighted_nll(model, ALL_IMAGES, y, index, 51)
    parts = [
        importance_weighted_nll(model, ALL_IMAGES[i], y[i], i, 51, max_rows)
        for i in index.split(batch)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)


def test_one_sample_is_one_draw_of_the_bound() -> None:
    from cvae import noise

    model = make(VAE)
    assert isinstance(model, VAE)
    index = torch.arange(16)
    eps = noise.standard_normal(index, (1, 3), seed=0, stream=noise.Stream.IMPORTANCE)
    weights = model.log_weights(ALL_IMAGES, None, eps)
    q = model.encode(ALL_IMAGES)
    z = q.mean + q.stddev * eps[:, 0]
    by_hand = (
        model.decode(z).log_prob(ALL_IMAGES)
        + torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
        - q.log_prob(z)
    )
    torch.testing.assert_close(weights[:, 0], by_hand, atol=1e-4, rtol=1e-5)
    nll = importance_weighted_nll(model, ALL_IMAGES, None, index, 1)
    torch.testing.assert_close(nll, -by_hand, atol=1e-4, rtol=1e-5)


def test_zero_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="num_samples=0"):
        importance_weighted_nll(make(VAE), ALL_IMAGES, None, torch.arange(16), 0)  # type: ignore[arg-type]
