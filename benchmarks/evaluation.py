"""Speed of the importance-weighted bound, compared with its roofline; prints a line of JSON.

The roofline computes only the decoder and log p(x|z,y), on given latents and in batches of
8,192. The bound adds noise, densities and bookkeeping.
"""

import json
import statistics
import time
from functools import partial

import torch
from torch import nn

from cvae.bounds import importance_weighted_nll
from cvae.models import CVAE
from cvae.networks import MLP

ROUNDS, IMAGES, ROWS = 5, 64, 8192


def roofline(model: CVAE, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return log p(x|z,y) of rows of z, with no other work."""
    logits = model.network.decode(z, y).flatten(1) + model.output_bias.flatten()
    return torch.mv(logits, x[0]) - nn.functional.softplus(logits).sum(1)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    network = partial(MLP, hidden_dim=384, encoder_blocks=2, decoder_blocks=3, latent_skips=True)
    model = CVAE(network, 32)
    x = torch.bernoulli(torch.rand(IMAGES, 1, 28, 28))
    y = nn.functional.one_hot(torch.arange(IMAGES) % 10, 10).float()
    index = torch.arange(IMAGES)
    z, rows_y = torch.randn(ROWS, 32), y[:1].expand(ROWS, 10).contiguous()
    flat = x.flatten(1)
    compiled = torch.compile(roofline)
    roofline_rates: dict[str, list[float]] = {"eager": [], "compiled": []}
    bound_rates: dict[int, list[float]] = {k: [] for k in (50, 500, 5000)}
    for _ in range(ROUNDS + 1):  # the first is a warm-up
        for name, function in (("eager", roofline), ("compiled", compiled)):
            start = time.perf_counter()
            for _ in range(4):
                function(model, flat, rows_y, z)
            roofline_rates[name].append(4 * ROWS / (time.perf_counter() - start))
        for k, values in bound_rates.items():
            start = time.perf_counter()
            importance_weighted_nll(model, x, y, index, k)
            values.append(IMAGES * k / (time.perf_counter() - start))
    best = max(statistics.median(values[1:]) for values in roofline_rates.values())
    rates = {k: statistics.median(values[1:]) for k, values in bound_rates.items()}
    print(
        json.dumps(
            {
                "decoded_rows_per_second": {str(k): round(v) for k, v in rates.items()},
                "roofline_rows_per_second": {
                    name: round(statistics.median(values[1:]))
                    for name, values in roofline_rates.items()
                },
                "over_roofline": round(rates[5000] / best, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
