"""Draw figures as inline SVG with the colors of the page, for its light and its dark scheme.

matplotlib draws with placeholder colors, which are replaced by the page's CSS variables. Text stays
text. One unit of a figure is one CSS pixel.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter, MaxNLocator

from fastreid_star.report.ranking import Distribution
from fastreid_star.structures import Modality

WIDTH, HEIGHT = 330, 225  # CSS pixels, so that a figure fits a phone
LARGEST = 1.2  # the page may scale a figure up by this factor
STYLES: Any = ("-", "--")  # of the first and the second run

# placeholder color -> CSS variable, which has one value for light and one for dark
_VARIABLES = {
    "#0a0b01": "var(--ink)",
    "#0a0b02": "var(--muted)",
    "#0a0b03": "var(--rule)",
    **{f"#0a0b1{number}": f"var(--series-{number})" for number in range(1, 8)},
}
INK, MUTED, RULE, *SERIES = _VARIABLES

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs may contain dollar signs
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


def draw(
    plot: Callable[[Axes], Mapping[str, Any]],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    label: str = "",
    height: int = HEIGHT,
) -> Markup:
    """A figure as SVG.

    Args:
        plot: draws on the axes, and returns what the legend shows: name -> artist.
        title, x_label, y_label: of the figure.
        label: description for screen readers and name of the downloaded file, unique in a page;
            empty: the title.
        height: in CSS pixels, without the legend.
    """
    label = label or title
    with rc_context(_STYLE | {"svg.hashsalt": label}):
        figure = Figure(layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        handles = plot(axes)
        axes.set_title(plain(title, 60), loc="left")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.tick_params(length=0)
        if len(handles) > 1:
            height += 17 * -(-len(handles) // 2)  # two columns
            place: Any = {"loc": "outside lower center", "ncols": 2, "columnspacing": 1.2}
            names = [plain(name) for name in handles]
            figure.legend(list(handles.values()), names, handlelength=1.8, **place)
        figure.set_size_inches(WIDTH / 72, height / 72)
        text = io.StringIO()
        with warnings.catch_warnings():  # the page has fonts for characters that matplotlib lacks
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(text, format="svg", metadata={"Date": None})
    return _inline(text.getvalue(), label)


def _inline(svg: str, label: str) -> Markup:
    """An SVG file as an element of a page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, variable)
    start, rest = body.split(">", 1)
    (box,) = re.findall(r'viewBox="([^"]*)"', start)
    xmlns = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = f"max-width:{round(LARGEST * WIDTH)}px"
    label = escape(label)
    head = f'<svg {xmlns} viewBox="{box}" role="img" aria-label="{label}" style="{style}">'
    return Markup(head + rest.strip())


def curves(
    series: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    title: str,
    log: bool = False,
    dots: bool = False,
    from_zero: bool = False,
) -> Markup:
    """Quantities over the epochs of training, one color a quantity and one line style a run.

    Args:
        series: quantity -> run -> (x, y).
        title: of the figure.
        log: use a logarithmic y axis, which does not show values of 0 and below.
        dots: mark each value.
        from_zero: the y axis starts at 0.
    """
    colors = dict(zip(series, itertools.cycle((*SERIES, INK, MUTED)), strict=False))
    runs = dict.fromkeys(run for of_run in series.values() for run in of_run)
    styles: dict[str, Any] = dict(zip(runs, STYLES, strict=False))

    def plot(axes: Axes) -> dict[str, Any]:
        for name, of_run in series.items():
            for run, (x, y) in of_run.items():
                shown = np.where(np.asarray(y) > 0, y, np.nan) if log else y
                mark = "o" if dots or len(x) == 1 else ""
                look: Any = {"color": colors[name], "linestyle": styles[run]}
                axes.plot(x, shown, marker=mark, markersize=4, **look)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            # labels between powers of ten if the values span less than two of them
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        handles = {}
        if len(series) > 1:
            handles = {name: Line2D([], [], color=color) for name, color in colors.items()}
        if len(runs) > 1:
            for run, style in styles.items():
                handles[run] = Line2D([], [], color=INK, linestyle=style)
        return handles

    return draw(plot, title=title, x_label="epoch")


def cmc(lines: Mapping[str, tuple[str, str, np.ndarray]], *, title: str) -> Markup:
    """CMC curves in percent.

    Args:
        lines: name -> (color, line style, CMC_1 ... as fractions).
        title: of the figure.
    """

    def plot(axes: Axes) -> dict[str, Any]:
        for color, style, values in lines.values():
            axes.plot(np.arange(1, len(values) + 1), 100 * values, style, color=color)
        axes.set_xlim(left=1)
        axes.set_ylim(top=101)
        return dict(zip(lines, axes.lines, strict=True))

    return draw(plot, title=title, x_label="rank k", y_label="% of queries")


def means(
    values: Mapping[str, Mapping[int, Sequence[float]]], *, title: str, x_label: str
) -> Markup:
    """Mean and standard deviation over a count.

    Args:
        values: name -> count -> one value a run.
        title, x_label: of the figure.
    """

    def plot(axes: Axes) -> dict[str, Any]:
        handles = {}
        for number, (name, points) in enumerate(values.items()):
            mean = [float(np.mean(each)) for each in points.values()]
            spread = [
                float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in points.values()
            ]
            style: Any = {"color": SERIES[number % len(SERIES)], "fmt": "os^v"[number % 4] + "-"}
            handles[name] = axes.errorbar(
                list(points), mean, spread, **style, markersize=5, capsize=3, elinewidth=1
            )
        axes.set_xticks(sorted({count for points in values.values() for count in points}))
        axes.margins(x=0.1, y=0.12)
        return handles

    return draw(plot, title=title, x_label=x_label, label=f"{title}: {', '.join(values)}")


def distributions(found: Distribution, *, title: str, measure: str) -> Markup:
    """Similarities of pairs of one identity and of two, each as a share of its kind.

    Args:
        found: the pairs.
        title: of the chart.
        measure: what the similarity is.
    """

    def plot(axes: Axes) -> dict[str, Any]:
        for values, median, color in (
            (found.different, found.different_median, SERIES[1]),
            (found.same, found.same_median, SERIES[0]),
        ):
            axes.stairs(100 * values, found.edges, fill=True, color=color, alpha=0.35)
            axes.stairs(100 * values, found.edges, color=color, linewidth=1.6)
            axes.axvline(median, color=color, linestyle="--", linewidth=1.2)
        names = ("same identity", "different identity")
        return {name: Patch(color=c, alpha=0.6) for name, c in zip(names, SERIES, strict=False)}

    label = f"{title}: similarities of pairs of one identity and of two"
    return draw(plot, title=title, label=label, x_label=measure, y_label="% of the pairs")


def embedding(
    points: np.ndarray,
    modalities: Sequence[Modality],
    pids: Sequence[int],
    *,
    title: str,
    identities: Sequence[int] = (),
) -> Markup:
    """Points in the plane; circles are infrared clips and triangles visible ones.

    Args:
        points: [N, 2].
        modalities, pids: of the N clips.
        title: of the figure.
        identities: color these identities and show the others in gray; empty: color by modality.
    """
    infrared = np.array(modalities) == Modality.INFRARED
    kinds = {"o": infrared, "^": ~infrared}
    if identities:
        groups = {f"identity {pid}": np.array(pids) == pid for pid in identities}
        markers = ["s"] * len(groups)
    else:
        groups, markers = {"infrared": infrared, "visible": ~infrared}, ["o", "^"]
    rest = ~np.logical_or.reduce(list(groups.values()))

    def plot(axes: Axes) -> dict[str, Any]:
        for group, color in zip([rest, *groups.values()], [RULE, *SERIES], strict=False):
            for marker, kind in kinds.items():
                look: Any = {"color": color, "markersize": 4.5, "alpha": 0.85, "markeredgewidth": 0}
                axes.plot(*points[group & kind].T, marker, **look)
        axes.set_xticks([])
        axes.set_yticks([])
        return {
            name: Line2D([], [], color=color, marker=marker, linestyle="", markersize=6)
            for name, color, marker in zip(groups, SERIES, markers, strict=False)
        }

    return draw(plot, title=title, height=270)


def ranges(
    groups: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    title: str,
    x_label: str,
    limit: float = 1.0,
) -> Markup:
    """The range of some weights over clips, on a fixed axis.

    A bar reaches from the 5th to the 95th percentile, its mark is the median.

    Args:
        groups: name -> [clips, weights]: of the trained network, and of the untrained one.
        names: of the weights, from the top.
        title, x_label: of the figure.
        limit: the axis reaches from 0 to this value.
    """

    def plot(axes: Axes) -> dict[str, Any]:
        places, handles = np.arange(len(names)), {}
        looks = ((-0.18, SERIES[0], "o"), (0.18, MUTED, "s"))
        for (name, values), (shift, color, mark) in zip(groups.items(), looks, strict=False):
            low, middle, high = np.percentile(values, (5, 50, 95), axis=0)
            axes.hlines(places + shift, low, high, color=color, linewidth=4, alpha=0.55)
            (handles[name],) = axes.plot(middle, places + shift, mark, color=color, markersize=4.5)
        axes.set_yticks(places, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, limit)
        return handles

    height = 78 + (32 if len(names) < 12 else 17) * len(names)
    return draw(plot, title=title, x_label=x_label, height=height)


def plain(name: str, length: int = 28) -> str:
    """A shortened name. matplotlib hides names with a leading underscore from legends."""
    short = name if len(name) <= length else f"{name[: length - 2]}…"
    return f"\N{ZERO WIDTH SPACE}{short}" if short.startswith("_") else short
