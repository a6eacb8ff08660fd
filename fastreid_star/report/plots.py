"""Curves and diagrams as inline SVG that takes its colors from the page: one drawing for light and dark.

matplotlib draws with stand-in colors, which become the page's CSS variables; text stays text. A unit of a drawing is
a CSS pixel, and none is wider than a telephone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from fastreid_star.report.html import signed
from fastreid_star.report.similarity import Distribution

WIDTH, HEIGHT = 330, 225  # CSS pixels, as drawn; the page may show them a little larger
LARGEST = 1.2

# stand-in color -> CSS variable; the page has a value of each for light and for dark
_VARIABLES = {
    "#0a0b01": "var(--ink)",
    "#0a0b02": "var(--muted)",
    "#0a0b03": "var(--rule)",
    **{f"#0a0b1{number}": f"var(--series-{number})" for number in range(1, 8)},
}
INK, MUTED, RULE, *SERIES = _VARIABLES

_STYLE: Any = {  # matplotlib has its settings' names as a type, and no name for it
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs are text
    "font.size": 12,
    "axes.titlesize": 12.5,
    "axes.labelsize": 12,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "legend.fontsize": 11.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "savefig.transparent": True,
}


@contextmanager
def drawing(
    label: str, width: int = WIDTH, height: int = HEIGHT
) -> Iterator[tuple[Figure, list[Markup]]]:
    """A figure to draw on; its SVG is put into the list that comes with it.

    Args:
        label: what a reader who does not see it is told; no two of a page are alike.
        width, height: in CSS pixels.
    """
    result: list[Markup] = []
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": label}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, result
        text = io.StringIO()
        with (
            warnings.catch_warnings()
        ):  # the page's fonts have what matplotlib's lacks, such as Chinese
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(text, format="svg", metadata={"Date": None})
    result.append(_inline(text.getvalue(), label, width))


def _inline(svg: str, label: str, width: int) -> Markup:
    """An SVG file as an element of a page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(
        r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else "", body
    )
    for stand_in, variable in _VARIABLES.items():
        body = body.replace(stand_in, variable)
    start, rest = body.split(">", 1)
    (box,) = re.findall(r'viewBox="([^"]*)"', start)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
    style = f"max-width:{round(LARGEST * width)}px"
    return Markup(f'{head} role="img" aria-label="{escape(label)}" style="{style}">{rest.strip()}')


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    log: bool = False,
    dots: bool = False,
    label: str = "",
) -> Markup:
    """Lines over one axis.

    Args:
        series: name -> (x, y). Up to fourteen: from the eighth on they are dashed.
        title, x_label: of the drawing.
        log: a logarithmic axis; values of 0 and below are not shown on it.
        dots: mark each value.
        label: for readers who do not see it; empty: the title.
    """
    rows = -(-len(series) // 2) if len(series) > 1 else 0
    with drawing(label or title, height=HEIGHT + 17 * rows) as (figure, result):
        axes = figure.add_subplot()
        for number, (x, y) in enumerate(series.values()):
            shown = np.where(np.asarray(y) > 0, y, np.nan) if log else y
            style = "-" if number < len(SERIES) else "--"
            mark = "o" if dots or len(x) == 1 else ""
            axes.plot(
                x, shown, style, marker=mark, markersize=4, color=SERIES[number % len(SERIES)]
            )
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        finish(axes, title, x_label, "")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        legend(figure, axes.lines, series)
    return result[0]


def gain(
    values: Mapping[str, Mapping[int, Sequence[float]]], *, title: str, x_label: str
) -> Markup:
    """A method's and its baseline's values over a count; the area between them has the color of whichever is ahead.

    Args:
        values: name -> count -> one value a run; the method, then the baseline.
        title, x_label: of the drawing.
    """
    with drawing(f"{title}: {' and '.join(values)}", height=HEIGHT + 17) as (figure, result):
        axes = figure.add_subplot()
        means, handles = [], []
        for points, color, style in zip(values.values(), SERIES, ("o-", "s--"), strict=False):
            mean = {count: float(np.mean(each)) for count, each in points.items()}
            spread = [
                float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in points.values()
            ]
            handles.append(
                axes.errorbar(
                    list(mean),
                    list(mean.values()),
                    spread,
                    fmt=style,
                    color=color,
                    markersize=5,
                    capsize=3,
                    elinewidth=1,
                )
            )
            means.append(mean)
        both = sorted(set(means[0]) & set(means[1]))
        ours, theirs = (np.array([mean[count] for count in both]) for mean in means)
        for ahead, color in ((ours >= theirs, SERIES[0]), (ours <= theirs, SERIES[1])):
            axes.fill_between(
                both,
                ours,
                theirs,
                where=ahead,
                interpolate=True,
                color=color,
                alpha=0.16,
                linewidth=0,
            )
        for count in both:
            middle = (means[0][count] + means[1][count]) / 2
            axes.annotate(
                signed(means[0][count] - means[1][count], 1),
                (count, middle),
                ha="center",
                va="center",
                fontsize=10.5,
            )
        axes.set_xticks(sorted(set(means[0]) | set(means[1])))
        axes.margins(x=0.1, y=0.12)
        finish(axes, title, x_label, "")
        legend(figure, handles, values)
    return result[0]


def cmc(lines: Mapping[str, tuple[str, str, np.ndarray]], *, title: str) -> Markup:
    """CMC curves in percent.

    Args:
        lines: name -> (color, line style, CMC_1 ... as fractions).
        title: of the drawing.
    """
    with drawing(title, height=HEIGHT + 17 * -(-len(lines) // 2)) as (figure, result):
        axes = figure.add_subplot()
        for color, style, values in lines.values():
            axes.plot(np.arange(1, len(values) + 1), 100 * values, style, color=color)
        axes.set_xlim(left=1)
        axes.set_ylim(top=101)
        finish(axes, title, "rank k", "% of queries")
        legend(figure, axes.lines, lines)
    return result[0]


def distributions(found: Distribution, *, title: str) -> Markup:
    """Similarities of pairs of one identity and of two, as shares of their kind."""
    with drawing(
        f"{title}: similarities of pairs of one identity and of two", height=HEIGHT + 17
    ) as (figure, result):
        axes = figure.add_subplot()
        for values, median, color in (
            (found.different, found.different_median, SERIES[1]),
            (found.same, found.same_median, SERIES[0]),
        ):
            axes.stairs(100 * values, found.edges, fill=True, color=color, alpha=0.35)
            axes.stairs(100 * values, found.edges, color=color, linewidth=1.6)
            axes.axvline(median, color=color, linestyle="--", linewidth=1.2)
        finish(axes, title, "cosine similarity", "% of their pairs")
        handles = [matplotlib.patches.Patch(color=color, alpha=0.6) for color in SERIES[:2]]
        legend(figure, handles, ("same identity", "different identity"))
    return result[0]


def finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title and labels."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.tick_params(length=0)


def legend(figure: Figure, handles: Iterable[Any], names: Iterable[str]) -> None:
    """Below the axes, in two columns; nothing where there is one name."""
    names = [plain(name) for name in names]
    if len(names) > 1:
        figure.legend(
            list(handles),
            names,
            loc="outside lower center",
            ncols=2,
            columnspacing=1.2,
            handlelength=1.8,
        )


def plain(name: str) -> str:
    """A name as matplotlib shows it: it keeps those that begin with an underscore out of legends."""
    short = name if len(name) <= 28 else f"{name[:26]}…"
    return f"\N{ZERO WIDTH SPACE}{short}" if short.startswith("_") else short
