"""Saved view on Weights & Biases that compares runs (extra "wandb").

conf/dashboard.yaml sets what the view shows. Building it needs no server and no account.
"""

import json
from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws


def comparison_view(
    entity: str,
    project: str,
    name: str,
    *,
    compared: Sequence[str],
    by: str,
    curves: Sequence[str],
    along: str,
    pictures: Sequence[str],
) -> ws.Workspace:
    """Return a view with metrics against a setting, training curves, and pictures side by side.

    Args:
        entity: the W&B entity.
        project: the W&B project.
        name: title of the view.
        compared: metrics to plot against the setting; the first also orders the runs.
        by: dotted key of the setting on the x-axis of the metric plots.
        curves: metrics to plot over training.
        along: x-axis of the curves.
        pictures: names of pictures that the runs have logged as figures/NAME.
    """
    scatter = [
        wr.ScatterPlot(title=f"{metric} by {by}", x=wr.Config(by), y=wr.SummaryMetric(metric))
        for metric in compared
    ]
    over_training = [wr.LinePlot(title=m, x=along, y=[m]) for m in curves]
    browsers = [
        wr.MediaBrowser(title=p, media_keys=[f"figures/{p}"], num_columns=4) for p in pictures
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(
                name="Comparison", panels=[*scatter, wr.RunComparer(diff_only=True)], is_open=True
            ),
            ws.Section(name="Pictures side by side", panels=browsers, is_open=True),
            ws.Section(name="Training", panels=over_training),
        ],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("sweep")],
            order=[ws.Ordering(ws.Summary(compared[0]), ascending=False)],
        ),
    )


def to_json(view: ws.Workspace) -> dict[str, Any]:
    """Return the view as the JSON that would be sent to W&B."""
    content: dict[str, Any] = json.loads(view._to_model().model_dump_json(by_alias=True))
    return content
