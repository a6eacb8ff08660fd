"""How a run was trained, in curves."""

from __future__ import annotations

from markupsafe import Markup

from fastreid_star.report import plots
from fastreid_star.report.gather import Run
from fastreid_star.report.overview import DIRECTIONS


def training_charts(run: Run, name: str) -> list[Markup]:
    """Losses, evaluations, learning rate and accuracy over training; none without a metrics.json.

    Args:
        run: its history is read.
        name: what the report calls it.
    """
    history = run.history
    if history is None or not history.lines:
        return []
    charts = []
    losses = [*history.names("loss_"), *history.names("total_loss")]
    if losses:
        named = {
            loss.removeprefix("loss_").replace("_", " "): history.series(loss) for loss in losses
        }
        label = f"{name}: losses"
        charts.append(
            plots.curves(named, title="Losses", x_label=history.unit, log=True, label=label)
        )
    measures = [(way, measure) for way in DIRECTIONS for measure in ("mAP", "Rank-1")]
    evaluations = {
        f"{way} {measure}": run.evaluations(f"{way}/{measure}") for way, measure in measures
    }
    evaluations = {measure: points for measure, points in evaluations.items() if len(points[0]) > 1}
    if evaluations:
        title = "Evaluations of the test set, %"
        label = f"{name}: {title}"
        charts.append(
            plots.curves(evaluations, title=title, x_label=history.unit, dots=True, label=label)
        )
    for key, title in (("lr", "Learning rate"), ("cls_accuracy", "Accuracy on training clips")):
        if history.names(key):
            points = {title: history.series(key)}
            charts.append(
                plots.curves(points, title=title, x_label=history.unit, label=f"{name}: {title}")
            )
    return charts
