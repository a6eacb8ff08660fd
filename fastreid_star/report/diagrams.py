"""Diagrams of a network's weights, drawn as :mod:`fastreid_star.report.plots` draws: bones, bars, matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fastreid_star.coco import BONES
from fastreid_star.report.html import signed
from fastreid_star.report.plots import MUTED, RULE, SERIES, drawing, finish, legend, plain

NUMBERED = 6  # rows of a matrix whose cells are still wide enough for a number

# a person seen from the front, for the weights of bones: x, y of the 17 joints, their left on our right
_FIGURE = np.array(
    [
        *((0.0, 9.0), (0.22, 9.25), (-0.22, 9.25), (0.48, 9.05), (-0.48, 9.05)),
        *((1.05, 7.6), (-1.05, 7.6), (1.5, 6.1), (-1.5, 6.1), (1.75, 4.7), (-1.75, 4.7)),
        *((0.65, 4.7), (-0.65, 4.7), (0.8, 2.5), (-0.8, 2.5), (0.9, 0.3), (-0.9, 0.3)),
    ]
)


def bone_figure(weights: Mapping[str, np.ndarray], *, title: str, label: str) -> Markup:
    """A person for each name, whose bones are as thick and dark as they weigh.

    Args:
        weights: name -> [E], 0 and above.
        title: of the drawing.
        label: for readers who do not see it.
    """
    with drawing(label, height=250) as (figure, result):
        for place, (name, values) in enumerate(weights.items(), start=1):
            axes = figure.add_subplot(1, len(weights), place)
            share = values / max(values.max(), 1e-12)
            for (start, end), strength in sorted(
                zip(BONES, share, strict=True), key=lambda pair: pair[1]
            ):
                line = _FIGURE[[start, end]]
                axes.plot(*line.T, color=RULE, linewidth=1.5, solid_capstyle="round")
                width = 1.5 + 7 * strength
                axes.plot(
                    *line.T,
                    color=SERIES[0],
                    alpha=0.12 + 0.88 * strength,
                    linewidth=width,
                    solid_capstyle="round",
                )
            axes.plot(*_FIGURE.T, "o", color=MUTED, markersize=2.5)
            axes.set_xlim(-2.6, 2.6)
            axes.set_ylim(-0.2, 10)
            axes.set_aspect("equal")
            axes.axis("off")
            axes.set_title(plain(name))
        figure.suptitle(title, fontsize=12.5, x=0.02, ha="left")
    return result[0]


def bars(
    values: Mapping[str, np.ndarray], names: Sequence[str], *, title: str, x_label: str, label: str
) -> Markup:
    """Groups of horizontal bars to both sides of 0, one group a name.

    Args:
        values: series -> one signed value a name.
        names: of the groups, from the top.
        title, x_label: of the drawing.
        label: for readers who do not see it.
    """
    with drawing(label, height=80 + 34 * len(names)) as (figure, result):
        axes = figure.add_subplot()
        thick = 0.8 / len(values)
        places = np.arange(len(names))
        for number, series in enumerate(values.values()):
            middle = places + (number - (len(values) - 1) / 2) * thick
            drawn = axes.barh(middle, series, thick * 0.92, color=SERIES[number], alpha=0.85)
            axes.bar_label(drawn, [signed(value, 4) for value in series], padding=3, fontsize=10)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.margins(x=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(visible=False, axis="y")
        finish(axes, title, x_label, "")
        legend(figure, axes.containers, values)
    return result[0]


def matrices(
    values: Mapping[str, np.ndarray], *, title: str, x_label: str, y_label: str, label: str
) -> Markup:
    """Square matrices of shares below 1 side by side, stronger where larger; small ones with their numbers.

    Args:
        values: name -> [T, T], each row of sum 1.
        title, x_label, y_label: of the drawing.
        label: for readers who do not see it.
    """
    with drawing(label, height=212) as (figure, result):
        for place, (name, matrix) in enumerate(values.items(), start=1):
            axes = figure.add_subplot(1, len(values), place)
            size = len(matrix)
            for row in range(size):
                for column in range(size):
                    share = float(matrix[row, column]) / max(float(matrix.max()), 1e-12)
                    axes.add_patch(
                        Rectangle(
                            (column + 0.54, row + 0.54),
                            0.92,
                            0.92,
                            color=SERIES[0],
                            alpha=0.06 + 0.44 * share,
                        )
                    )
                    if size <= NUMBERED:
                        text = f"{matrix[row, column]:.2f}".removeprefix("0")
                        axes.text(
                            column + 1, row + 1, text, ha="center", va="center", fontsize=10.5
                        )
            axes.set_xlim(0.5, size + 0.5)
            axes.set_ylim(size + 0.5, 0.5)
            axes.set_aspect("equal")
            axes.grid(visible=False)
            axes.tick_params(length=0)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
            axes.set_title(plain(name))
            axes.set_xlabel(x_label)
            axes.set_ylabel(y_label if place == 1 else "")
        figure.suptitle(title, fontsize=12.5, x=0.02, ha="left")
    return result[0]
