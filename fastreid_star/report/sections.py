"""The parts of the report of one evaluated run, and of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from fastreid.config import get_cfg
from markupsafe import Markup
from sklearn.manifold import TSNE  # type: ignore[import-untyped]

from fastreid_star.ablation.published import TABLE_3
from fastreid_star.engine.configs import load_config
from fastreid_star.report import plots, ranking
from fastreid_star.report.draw import Album, Picture
from fastreid_star.report.ranking import Direction, Ranking
from fastreid_star.report.runs import Run, differences
from fastreid_star.structures import Modality, Tracklet

WAYS = ("I2V", "V2I")
CMC_LENGTH = 50
TOP = 10  # entries of a ranked list
EMBEDDED = 600  # clips in the t-SNE
# Config keys that may differ where a run is compared with the paper's numbers.
NOT_OF_THE_METHOD = {
    "OUTPUT_DIR",
    "SEED",
    "DATASETS.ROOT",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "SOLVER.LOG_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_KEEP",
}


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A run and its ranking of the test set."""

    run: Run
    name: str  # in the report
    model: torch.nn.Module  # in evaluation mode
    ranking: Ranking
    album: Album  # the test clips as this network gets them

    @property
    def metrics(self) -> dict[str, float]:
        """The results in percent."""
        return self.ranking.results.metrics()

    @property
    def ways(self) -> list[str]:
        """``I2V`` and ``V2I``, or the one that the protocol has."""
        return list(self.ranking.directions)


class ResultRow(NamedTuple):
    """A row of the table of results."""

    name: str  # of the run, or "paper"
    direction: str
    values: list[float | None]  # one a column


class Shown(NamedTuple):
    """A clip in a row of clips."""

    tracklet: Tracklet
    picture: Picture
    label: str
    right: bool | None = None  # None: it is the query
    similarity: float | None = None


class ClipRow(NamedTuple):
    """A query and the entries that are shown beside it."""

    title: str
    clips: list[Shown]


# --- results and settings ---


def columns(metrics: Mapping[str, float]) -> list[str]:
    """``mAP``, ``Rank-1``, ... : mAP first, so that a narrow screen shows it."""
    names = [key.partition("/")[2] for key in metrics if key.startswith("I2V/")]
    return sorted(names, key=lambda name: (name != "mAP", name != "Rank-1"))


def result_rows(e: Evaluated) -> list[ResultRow]:
    """Both directions and their mean, then the paper's if it has this config."""
    names = columns(e.metrics)
    known = [(e.name, e.metrics)]
    printed = TABLE_3.get(paper_row(e.run))
    if printed is not None:
        measures = ("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP")
        known.append(("paper", dict(zip(measures, printed, strict=True))))
    rows = []
    for name, values in known:
        ways = {way: [values.get(f"{way}/{measure}") for measure in names] for way in e.ways}
        rows += [ResultRow(name, way, of_way) for way, of_way in ways.items()]
        if len(ways) == 2:
            pairs = zip(*ways.values(), strict=True)
            mean = [None if a is None or b is None else (a + b) / 2 for a, b in pairs]
            rows.append(ResultRow(name, "mean", mean))
    return rows


def paper_row(run: Run) -> str:
    """The row of the paper's Table 3 whose config the run has, or ``""``."""
    for name in TABLE_3:
        changes = differences(load_config(f"HITSZ-VCM/{name}.yml"), run.cfg)
        if {key for key, _, _ in changes} <= NOT_OF_THE_METHOD:
            return name
    return ""


def facts(e: Evaluated) -> dict[str, str]:
    """What the network is and how it was trained."""
    run, cfg = e.run, e.run.cfg
    height, width = cfg.INPUT.SIZE_TEST
    backbone = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
    parameters = sum(parameter.numel() for parameter in e.model.parameters())
    done = "unknown" if run.weights.epochs is None else run.weights.epochs
    skeletons = cfg.DATASETS.SKELETONS
    if not skeletons or cfg.DATASETS.SKELETONS_TEST == "none":
        skeletons = "none"
    elif cfg.DATASETS.SKELETONS_TEST == "other":
        skeletons += ", those of other people in testing"
    rows = {
        "Model": f"{cfg.MODEL.META_ARCHITECTURE} on {backbone} {cfg.MODEL.BACKBONE.DEPTH}",
        "Losses": ", ".join(name.removesuffix("Loss") for name in cfg.MODEL.LOSSES.NAME),
        "Parameters": f"{parameters / 1e6:.2f} million",
        "Clip": f"{cfg.INPUT.CLIP.LENGTH} frames of {height}×{width} pixels",
        "Skeleton store": skeletons,
        "Seed": str(run.trained.SEED),
        "Trained for": f"{done} of {run.trained.SOLVER.MAX_EPOCH} epochs",
        "Weights": f"{run.weights.path.name}, {run.weights.modified:%d %B %Y, %H:%M}",
    }
    if run.recorded:
        rows["While training"] = f"mean mAP {run.recorded['mean/mAP']:.2f} %"
    return rows


def settings(run: Run) -> dict:
    """How the config differs from the defaults, what the report has changed, and where it ran."""
    return {
        "defaults": differences(get_cfg(), run.trained),
        "overrides": differences(run.trained, run.cfg),
        "run": run,
    }


# --- charts ---


def cmc_chart(runs: Sequence[Evaluated]) -> Markup:
    """One color a direction, one line style a run."""
    lines = {}
    for e, style in zip(runs, plots.STYLES, strict=False):
        for (way, direction), color in zip(
            e.ranking.directions.items(), plots.SERIES, strict=False
        ):
            values = direction.cmc(min(CMC_LENGTH, len(direction.gallery)))
            lines[f"{e.name} {way}"] = (color, style, values)
    return plots.cmc(lines, title="Cumulative matching characteristics")


def training_charts(runs: Mapping[str, Run]) -> list[Markup]:
    """Losses, evaluations, learning rate and accuracy of one run or two, in the same figures."""

    def of_each_run(name: str) -> dict[str, tuple[list[float], list[float]]]:
        return {run: r.series(name) for run, r in runs.items() if r.series(name)[0]}

    names = dict.fromkeys(name for run in runs.values() for line in run.history for name in line)
    starts = ("loss_", "total_")
    losses = {
        name.removeprefix("loss_").replace("_", " "): of_each_run(name)
        for name in names
        if name.startswith(starts)
    }
    charts = []
    if losses:
        charts.append(plots.curves(losses, title="Losses", log=True))
    measures = [f"{way}/{measure}" for way in WAYS for measure in ("mAP", "Rank-1")]
    found = {
        measure.replace("/", " "): {name: run.evaluations(measure) for name, run in runs.items()}
        for measure in measures
    }
    if any(len(x) > 1 for of_run in found.values() for x, _ in of_run.values()):
        charts.append(plots.curves(found, title="Evaluations of the test set, %", dots=True))
    for key, title in (("lr", "Learning rate"), ("cls_accuracy", "Accuracy on training clips")):
        if of_each_run(key):
            charts.append(plots.curves({title: of_each_run(key)}, title=title, from_zero=True))
    return charts


def distribution_charts(runs: Sequence[Evaluated]) -> list[tuple[ranking.Distribution, Markup]]:
    """The similarities of each run; one chart if both directions have the same pairs of clips."""
    charts = []
    for e in runs:
        i2v, *others = e.ranking.directions.values()
        same = all(np.array_equal(i2v.similarity, other.similarity.T) for other in others)
        for direction in [i2v] if same else [i2v, *others]:
            found = ranking.distribution(direction)
            if found is not None:
                title = e.name if same else f"{e.name}, {direction.name}"
                chart = plots.distributions(found, title=title, measure=e.ranking.measure)
                charts.append((found, chart))
    return charts


def embedding_charts(runs: Sequence[Evaluated]) -> list[Markup]:
    """The features of each run in the plane, by modality and by identity."""
    tracklets = runs[0].ranking.tracklets
    kinds: dict[int, set[Modality]] = {}
    for tracklet in tracklets:
        kinds.setdefault(tracklet.pid, set()).add(tracklet.modality)
    both = [tracklet.pid for tracklet in tracklets if len(kinds[tracklet.pid]) == len(Modality)]
    identities = sorted(pid for pid, _ in Counter(both).most_common(len(plots.SERIES)))
    chosen = np.unique(np.linspace(0, len(tracklets) - 1, EMBEDDED).astype(int))
    if len(chosen) < 8 or not identities:
        return []
    if len(chosen) < len(tracklets):  # all clips of the colored identities, and a sample
        colored = [n for n, tracklet in enumerate(tracklets) if tracklet.pid in identities]
        chosen = np.unique([*chosen, *colored])
    about = [(tracklets[n].modality, tracklets[n].pid) for n in chosen.tolist()]
    modalities, pids = zip(*about, strict=True)
    charts = []
    for e in runs:
        features = e.ranking.features[chosen].flatten(1).numpy()
        perplexity = min(30, (len(chosen) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
        for title, colored in (("modality", []), ("identity", identities)):
            title = f"{e.name}, by {title}"
            charts.append(
                plots.embedding(points, modalities, pids, title=title, identities=colored)
            )
    return charts


# --- rows of clips ---


def ranked_row(e: Evaluated, direction: Direction, row: int) -> ClipRow:
    """A query with the first ten entries of its list."""
    results = direction.per_query
    title = (
        f"Average precision {100 * results.ap[row]:.1f} %, first of {results.n_matches[row]} "
        f"matches at rank {results.first_match[row]}"
    )
    found = [show(e, direction, row, column) for column in direction.top(row, TOP)]
    return ClipRow(title, [show_query(e, direction, row), *found])


def confused_rows(e: Evaluated, direction: Direction, count: int) -> list[ClipRow]:
    """The worst confusions: the query, the wrong first entry, the most similar match."""
    rows = []
    for row in ranking.confusions(direction, e.ranking.tracklets, count):
        title = (
            f"The wrong entry is ahead by {-direction.lead(row):.3f}; the first match is at rank "
            f"{direction.per_query.first_match[row]}"
        )
        columns = (*direction.top(row, 1), direction.best_right(row))
        entries = [show(e, direction, row, column) for column in columns]
        rows.append(ClipRow(title, [show_query(e, direction, row), *entries]))
    return rows


def changed_row(e: Evaluated, other: Evaluated, way: str, row: int) -> ClipRow:
    """A query with the first entry of both runs and, if that of `e` is wrong, its best match."""
    mine, its = e.ranking.directions[way], other.ranking.directions[way]
    ranks = [direction.per_query.first_match[row] for direction in (mine, its)]
    clips = [show_query(e, mine, row)]
    for direction, name in ((mine, e.name), (its, other.name)):
        (first,) = direction.top(row, 1)
        clips.append(show(e, direction, row, first, f"rank 1 in {name}"))
    if not clips[1].right:
        match = mine.best_right(row)
        label = f"the first match of {e.name}: rank {mine.rank_of(row, match)}"
        label += f"; {other.name} has this entry at rank {its.rank_of(row, match)}"
        clips.append(show(e, mine, row, match, label))
    title = f"First match at rank {ranks[0]} in {e.name}, at rank {ranks[1]} in {other.name}"
    return ClipRow(title, clips)


def show_query(e: Evaluated, direction: Direction, row: int) -> Shown:
    """A query."""
    position = int(direction.queries[row])
    return Shown(e.ranking.tracklets[position], e.album.thumbnail(position), "query")


def show(e: Evaluated, direction: Direction, row: int, column: int, label: str = "") -> Shown:
    """An entry of a query's list; its label is its rank unless another is given."""
    position = int(direction.gallery[column])
    return Shown(
        e.ranking.tracklets[position],
        e.album.thumbnail(position),
        label or f"rank {direction.rank_of(row, column)}",
        bool(direction.right[row, column]),
        float(direction.similarity[row, column]),
    )
