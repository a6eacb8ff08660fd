"""What the sections of the report show of one evaluated run, and of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from fastreid.config import get_cfg
from markupsafe import Markup

from fastreid_star.methods.sad import SAD
from fastreid_star.methods.star import STAR
from fastreid_star.report import attention, comparison, filmstrips, overview, plots, similarity
from fastreid_star.report.filmstrips import Filmstrip
from fastreid_star.report.gather import Run, base_of, differences
from fastreid_star.report.pictures import Album, Clip, Picture
from fastreid_star.report.ranking import Ranking

if TYPE_CHECKING:
    from fastreid_star.report.gradcam import Explained

CMC_LENGTH = 50
Chosen = Mapping[str, Mapping[str, Sequence[int]]]  # direction -> kind of query -> rows


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A run, its network, and what that makes of the test set.

    Args:
        run: its folder.
        name: what the report calls it.
        model: in eval mode.
        ranking: of the test set.
        album: the test clips as this run's network is given them.
    """

    run: Run
    name: str
    model: torch.nn.Module
    ranking: Ranking
    album: Album

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return sum(parameter.numel() for parameter in self.model.parameters())


class Pair(NamedTuple):
    """A query and its most similar match, to be looked at closely: what it is, and the positions of both."""

    title: str
    query: int
    match: int


class ExplainedSide(NamedTuple):
    """One clip of a pair: its frames as they are, and what each network sees in them."""

    role: str
    clip: Clip
    picture: Picture
    maps: list[Explained]


class ExplainedPair(NamedTuple):
    """Both clips of a pair."""

    title: str
    sides: list[ExplainedSide]


class DistributionChart(NamedTuple):
    """The similarities of a run's pairs."""

    found: similarity.Distribution
    chart: Markup


class Compared(NamedTuple):
    """Two runs: (direction, [(ours, theirs), ...]) for each column; how many queries moved; filmstrips by direction."""

    rows: list[tuple[str, list[tuple[float | None, float | None]]]]
    moves: dict[str, dict[str, int]]
    won: dict[str, list[Filmstrip]]
    lost: dict[str, list[Filmstrip]]


def result_groups(runs: Sequence[Evaluated]) -> list[list[overview.ResultRow]]:
    """Three rows a run, and the paper's after those of a run that it has a row for."""
    groups = []
    for e in runs:
        metrics = e.ranking.results.metrics()
        groups.append(overview.result_rows(e.name, metrics))
        printed = overview.paper_rows(e.run.cfg, overview.columns(metrics))
        groups += [printed] if printed else []
    return groups


def cmc_chart(runs: Sequence[Evaluated]) -> Markup:
    """Both directions, a line style a run."""
    lines = {}
    for e, style in zip(runs, ("-", "--"), strict=False):
        for way, color in zip(overview.DIRECTIONS, plots.SERIES, strict=False):
            direction = e.ranking.directions[way]
            lines[f"{e.name} {way}"] = (
                color,
                style,
                direction.cmc(min(CMC_LENGTH, len(direction.gallery))),
            )
    return plots.cmc(lines, title="Cumulative matching characteristics")


def settings(run: Run) -> dict:
    """Where the config differs from its file and from the defaults, what it ran on, and its weights."""
    base = base_of(run)
    return {
        "base": None if base is None else (base[0], differences(base[1], run.trained)),
        "defaults": differences(get_cfg(), run.trained),
        "overrides": differences(run.trained, run.cfg),
        "environments": run.environments,
        "commands": run.commands,
        "weights": run.weights,
    }


def ranked_lists(e: Evaluated, chosen: Chosen) -> dict[str, dict[str, list[Filmstrip]]]:
    """Filmstrips by direction and kind of query."""
    return {
        way: {
            kind: [filmstrips.ranked(e.ranking.directions[way], row, e.album) for row in rows]
            for kind, rows in kinds.items()
        }
        for way, kinds in chosen.items()
    }


def look_closely(ranking: Ranking, chosen: Chosen) -> list[Pair]:
    """The first random query of each direction, with its most similar match."""
    pairs = []
    for way, kinds in chosen.items():
        direction, row = ranking.directions[way], kinds["random"][0]
        column = direction.best_right(row)
        title = (
            f"{way}: a random query and its first match, at rank {direction.rank_of(row, column)}"
        )
        pairs.append(Pair(title, int(direction.queries[row]), int(direction.gallery[column])))
    return pairs


def look_into(e: Evaluated, pairs: Sequence[Pair]) -> list[attention.Example] | None:
    """What the network looked at in the pairs; None where it reads no skeletons."""
    if not getattr(e.model, "reads_skeletons", False):
        return None
    exponents = e.run.cfg.MODEL.STAR.EXPONENTS
    return [
        attention.example(
            cast(STAR, e.model), e.album, p.query, p.match, title=p.title, exponents=exponents
        )
        for p in pairs
    ]


def explain_pairs(runs: Sequence[Evaluated], pairs: Sequence[Pair]) -> list[ExplainedPair]:
    """Grad-CAM of both clips of each pair, the other run's, such as the baseline's, first."""
    from fastreid_star.report.gradcam import explain  # it needs a package that nothing else needs

    explained = []
    for pair in pairs:
        sides = []
        for role, position, to in (
            ("query", pair.query, pair.match),
            ("match", pair.match, pair.query),
        ):
            album = runs[0].album
            maps = [
                explain(
                    e.name,
                    cast(SAD, e.model),
                    e.album.clip(position),
                    e.ranking.features[to],
                    height=album.height,
                )
                for e in reversed(runs)
            ]
            sides.append(
                ExplainedSide(
                    role, album.clip(position), album.strip(position, skeletons=False), maps
                )
            )
        explained.append(ExplainedPair(pair.title, sides))
    return explained


def distribution_charts(runs: Sequence[Evaluated]) -> list[DistributionChart]:
    """The similarities of each run's pairs, once where both directions have the same pairs of clips."""
    charts = []
    for e in runs:
        i2v, v2i = (e.ranking.directions[way] for way in overview.DIRECTIONS)
        same = set(i2v.queries) == set(v2i.gallery) and set(i2v.gallery) == set(v2i.queries)
        for direction in [i2v] if same else [i2v, v2i]:
            found = similarity.distribution(direction)
            if found is not None:
                title = e.name if same else f"{e.name}, {direction.name}"
                charts.append(DistributionChart(found, plots.distributions(found, title=title)))
    return charts


def camera_tables(e: Evaluated) -> dict[str, similarity.CameraPairs]:
    """Rank-1 between cameras, by direction."""
    return {
        way: similarity.camera_pairs(d, e.ranking.tracklets)
        for way, d in e.ranking.directions.items()
    }


def confusions(e: Evaluated, count: int) -> dict[str, list[Filmstrip]]:
    """The worst confusions of each direction."""
    return {
        way: [
            filmstrips.confused(d, found, e.album)
            for found in similarity.confusions(d, e.ranking.tracklets, count)
        ]
        for way, d in e.ranking.directions.items()
    }


def compare(main: Evaluated, other: Evaluated, count: int) -> Compared:
    """Differences of the measures, and the queries that moved most."""
    ours, theirs = (
        overview.result_rows(e.name, e.ranking.results.metrics()) for e in (main, other)
    )
    rows = [
        (mine.direction, list(zip(mine.values, its.values, strict=True)))
        for mine, its in zip(ours, theirs, strict=True)
    ]
    moves: dict[str, dict[str, int]] = {}
    won: dict[str, list[Filmstrip]] = {}
    lost: dict[str, list[Filmstrip]] = {}
    for way, direction in main.ranking.directions.items():
        others = other.ranking.directions[way]
        moves[way] = comparison.moves(direction, others)
        for kept, changes in zip(
            (won, lost), comparison.changes(direction, others, count), strict=True
        ):
            kept[way] = [
                filmstrips.changed(direction, others, change, main.album, (main.name, other.name))
                for change in changes
            ]
    return Compared(rows, moves, won, lost)
