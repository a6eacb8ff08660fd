"""Same person or not, in the report: ROC curves, and results at some rates of false accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from fastreid_star.errors import UserError
from fastreid_star.evaluation.verification import RATES, Verification, verify
from fastreid_star.report import plots
from fastreid_star.report.sections import Evaluated


def verification(runs: Sequence[Evaluated]) -> dict[str, Any] | None:
    """The chart and the table of all runs; None unless there are pairs of one person and of two."""
    try:
        found = {
            e.name: e.ranking.results.verification or verify(e.ranking.results, e.ranking.tracklets)
            for e in runs
        }
    except UserError:
        return None
    rows = [(name, *row) for name, each in found.items() for row in each.rows()]
    errors = {name: 100 * each.pairs.equal_error_rate() for name, each in found.items()}
    columns = [f"{100 * rate:g} %" for rate in RATES]
    return {"chart": roc_chart(found), "columns": columns, "rows": rows, "errors": errors}


def roc_chart(found: dict[str, Verification]) -> Markup:
    """One line a run, with a logarithmic axis of false accepts."""

    def plot(axes: Axes) -> dict[str, Any]:
        handles = {}
        for (name, each), style in zip(found.items(), plots.STYLES, strict=False):
            false, true = each.pairs.curve()
            look: Any = {"color": plots.SERIES[0], "linestyle": style}
            (handles[name],) = axes.plot(100 * false, 100 * true, **look)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, 101)
        return handles

    return plots.draw(
        plot,
        title="Receiver operating characteristic",
        x_label="false accepts (FPR), %",
        y_label="true accepts (TPR), %",
    )
