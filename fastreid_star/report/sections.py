"""The parts of the report of one evaluated run, and of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode, get_cfg
from markupsafe import Markup
from sklearn.manifold import TSNE  # type: ignore[import-untyped]

from fastreid_star.ablation.tables import PAPER
from fastreid_star.report import plots, ranking
from fastreid_star.report.draw import Album, Picture
from fastreid_star.report.ranking import Direction, Ranking
from fastreid_star.report.runs import Run, base_config, differences
from fastreid_star.structures import Modality, Tracklet

WAYS = ("I2V", "V2I")
CMC_LENGTH = 50
TOP = 10  # entries of a ranked list
EMBEDDED = 600  # clips in the t-SNE
# keys that do not change what the paper's table measures
HARMLESS = ("OUTPUT_DIR", "SEED", "DATASETS.ROOT", "DATALOADER.NUM_WORKERS", "MODEL.DEVICE",
            "MODEL.WEIGHTS", "SOLVER.LOG_PERIOD", "SOLVER.CHECKPOINT_PERIOD")  # fmt: skip


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


class ResultRow(NamedTuple):
    """A row of the table of results."""

    name: str  # of the run, or "paper"
    direction: str
    values: list[float | None]  # one a column
    ours: bool = True


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
    """Both directions and their mean, then the paper's if it has this network."""
    names = columns(e.metrics)
    rows = _with_mean(e.name, [[e.metrics[f"{way}/{name}"] for name in names] for way in WAYS])
    printed = PAPER.get(paper_row(e.run))
    if printed is not None:
        known = dict(zip(("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP"), printed, strict=True))
        values = [[known.get(f"{way}/{name}") for name in names] for way in WAYS]
        rows += [row._replace(ours=False) for row in _with_mean("paper", values)]
    return rows


def _with_mean(name: str, values: list[list]) -> list[ResultRow]:
    mean = [None if None in pair else sum(pair) / 2 for pair in zip(*values, strict=True)]
    return [ResultRow(name, *row) for row in zip((*WAYS, "mean"), (*values, mean), strict=True)]


def paper_row(run: Run) -> str:
    """The row of the paper's Table 3 that a run reproduces, or an empty string.

    It is one whose config file has the row's name and whose other options do not matter.
    """
    base = base_config(run)
    if base is None or tuple(run.cfg.DATASETS.TESTS) != ("HITSZVCM",):
        return ""
    changed = [key for key, _, _ in differences(base[1], run.cfg) if key not in HARMLESS]
    name = Path(base[0]).stem
    return name if name in PAPER and not changed else ""


def facts(e: Evaluated) -> list[tuple[str, str]]:
    """What the network is and how it was trained."""
    run, cfg = e.run, e.run.cfg
    height, width = cfg.INPUT.SIZE_TEST
    backbone = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
    parameters = sum(parameter.numel() for parameter in e.model.parameters())
    planned, done = run.trained.SOLVER.MAX_EPOCH, run.weights.epochs
    rows = [
        ("Model", f"{cfg.MODEL.META_ARCHITECTURE} on {backbone} {cfg.MODEL.BACKBONE.DEPTH}"),
        ("Losses", ", ".join(name.removesuffix("Loss") for name in cfg.MODEL.LOSSES.NAME)),
        ("Parameters", f"{parameters / 1e6:.2f} million"),
        ("Clip", f"{cfg.INPUT.CLIP.LENGTH} frames of {height}×{width} pixels"),
        ("Skeletons", _skeletons(cfg)),
        ("Seed", str(run.trained.SEED)),
        ("Trained for", f"{'unknown' if done is None else done} of {planned} epochs"),
        ("Weights", f"{run.weights.path.name}, {run.weights.modified:%d %B %Y, %H:%M}"),
    ]
    if run.recorded:
        rows.append(("While training", f"mean mAP {run.recorded['mean/mAP']:.2f} %"))
    return rows


def _skeletons(cfg: CfgNode) -> str:
    if not cfg.DATASETS.SKELETONS or cfg.DATASETS.SKELETONS_TEST == "none":
        return "none"
    others = ", those of other people in testing" if cfg.DATASETS.SKELETONS_TEST == "other" else ""
    return f"{cfg.DATASETS.SKELETONS}{others}"


def settings(run: Run) -> dict:
    """How the config differs from its file and from the defaults, and where it ran."""
    base = base_config(run)
    return {
        "base": None if base is None else (base[0], differences(base[1], run.trained)),
        "defaults": differences(get_cfg(), run.trained),
        "overrides": differences(run.trained, run.cfg),
        "run": run,
    }


# --- charts ---


def cmc_chart(runs: Sequence[Evaluated]) -> Markup:
    """One color a direction, one line style a run."""
    lines = {}
    for e, style in zip(runs, plots.STYLES, strict=False):
        for way, color in zip(WAYS, plots.SERIES, strict=False):
            direction = e.ranking.directions[way]
            values = direction.cmc(min(CMC_LENGTH, len(direction.gallery)))
            lines[f"{e.name} {way}"] = (color, style, values)
    return plots.cmc(lines, title="Cumulative matching characteristics")


def training_charts(runs: Mapping[str, Run]) -> list[Markup]:
    """Losses, evaluations, learning rate and accuracy of one run or two, in the same figures."""
    histories = {name: run.history for name, run in runs.items() if run.history}
    if not histories:
        return []
    unit = next(iter(histories.values())).unit

    def of_each_run(name: str) -> dict[str, tuple[list[float], list[float]]]:
        return {run: h.series(name) for run, h in histories.items() if h.series(name)[0]}

    names = {n: None for h in histories.values() for n in (*h.names("loss_"), *h.names("total_"))}
    losses = {name.removeprefix("loss_").replace("_", " "): of_each_run(name) for name in names}
    charts = []
    if losses:
        charts.append(plots.curves(losses, title="Losses", x_label=unit, log=True))
    measures = [f"{way}/{measure}" for way in WAYS for measure in ("mAP", "Rank-1")]
    found = {
        measure.replace("/", " "): {name: runs[name].evaluations(measure) for name in histories}
        for measure in measures
    }
    if any(len(x) > 1 for of_run in found.values() for x, _ in of_run.values()):
        title = "Evaluations of the test set, %"
        charts.append(plots.curves(found, title=title, x_label=unit, dots=True))
    for key, title in (("lr", "Learning rate"), ("cls_accuracy", "Accuracy on training clips")):
        if of_each_run(key):
            charts.append(plots.curves({title: of_each_run(key)}, title=title, x_label=unit))
    return charts


def distribution_charts(
    runs: Sequence[Evaluated],
) -> list[tuple[ranking.Distribution, Markup]]:
    """The similarities of each run; one chart if both directions have the same pairs of clips."""
    charts = []
    for e in runs:
        i2v, v2i = (e.ranking.directions[way] for way in WAYS)
        same = set(i2v.queries) == set(v2i.gallery) and set(i2v.gallery) == set(v2i.queries)
        for direction in [i2v] if same else [i2v, v2i]:
            found = ranking.distribution(direction)
            if found is not None:
                title = e.name if same else f"{e.name}, {direction.name}"
                charts.append((found, plots.distributions(found, title=title)))
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
            charts.append(
                plots.embedding(
                    points, modalities, pids, title=f"{e.name}, by {title}", identities=colored
                )
            )
    return charts


def camera_tables(e: Evaluated) -> dict[str, ranking.CameraPairs]:
    """Rank-1 between cameras by direction."""
    tracklets = e.ranking.tracklets
    return {way: ranking.camera_pairs(d, tracklets) for way, d in e.ranking.directions.items()}


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
    for found in ranking.confusions(direction, e.ranking.tracklets, count):
        title = (
            f"The wrong entry is ahead by {found.lead:.3f}; the first match is at rank "
            f"{found.right_rank}"
        )
        entries = [show(e, direction, found.row, column) for column in (found.wrong, found.right)]
        rows.append(ClipRow(title, [show_query(e, direction, found.row), *entries]))
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
        label = f"rank {mine.rank_of(row, match)} in {e.name}"
        label += f", {its.rank_of(row, match)} in {other.name}"
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
