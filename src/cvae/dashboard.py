"""A saved view on Weights & Biases that lays runs out for comparison (extra "wandb").

The names below are those that the runs log; the view is built without a server or an account.
"""

import json
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

BOUNDS = ("val/elbo", "test/elbo")
TERMS = ("train/elbo", "train/reconstruction", "train/kl", "val/reconstruction", "val/kl")
PICTURES = ("label_grid", "style_transfer", "reconstructions", "traversals")


def comparison(entity: str, project: str, name: str) -> ws.Workspace:
    """The view: bounds by latent_dim, their terms over training, pictures side by side."""
    by_size = [
        wr.ScatterPlot(
            title=f"{bound} by latent_dim", x=wr.Config("latent_dim"), y=wr.SummaryMetric(bound)
        )
        for bound in BOUNDS
    ]
    over_training = [wr.LinePlot(title=m, x="images_seen", y=[m]) for m in (BOUNDS[0], *TERMS)]
    pictures = [
        wr.MediaBrowser(title=p, media_keys=[f"figures/{p}"], num_columns=4) for p in PICTURES
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(
                name="Comparison", panels=[*by_size, wr.RunComparer(diff_only=True)], is_open=True
            ),
            ws.Section(name="Pictures side by side", panels=pictures, is_open=True),
            ws.Section(name="Training", panels=over_training),
        ],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("sweep")],
            order=[ws.Ordering(ws.Summary("val/elbo"), ascending=False)],
        ),
    )


def as_json(view: ws.Workspace) -> dict[str, Any]:
    """The view as it would be sent."""
    sent: dict[str, Any] = json.loads(view._to_model().model_dump_json(by_alias=True))
    return sent
