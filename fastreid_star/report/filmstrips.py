"""Ranked lists as filmstrips: a query, what the network found, and whether it was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastreid_star.report.comparison import Change
from fastreid_star.report.pictures import Album, Clip, Picture
from fastreid_star.report.ranking import Direction
from fastreid_star.report.similarity import Confusion


@dataclass(frozen=True)
class Shown:
    """A clip in a filmstrip.

    Args:
        clip, picture: who is on it, and what is seen.
        label: what it is here: the query, rank 1, ...
        right: whether it is the query's identity; None: it is the query.
        similarity: to the query; None for the query itself.
    """

    clip: Clip
    picture: Picture
    label: str
    right: bool | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Filmstrip:
    """A query and some of what was found.

    Args:
        title: what is to be said of it.
        query: the query.
        found: entries of its list.
    """

    title: str
    query: Shown
    found: list[Shown]


def ranked(direction: Direction, row: int, album: Album, count: int = 5) -> Filmstrip:
    """A query with the first entries of its list."""
    per_query = direction.per_query
    title = (
        f"Average precision {100 * per_query.ap[row]:.1f} %, first of {per_query.n_matches[row]} matches at rank "
        f"{per_query.first_match[row]}"
    )
    return Filmstrip(
        title,
        show_query(direction, row, album),
        [found(direction, row, c, album) for c in direction.top(row, count)],
    )


def confused(direction: Direction, confusion: Confusion, album: Album) -> Filmstrip:
    """A query, the wrong entry that came first, and its most similar match."""
    row = confusion.row
    return Filmstrip(
        f"The wrong one is ahead by {confusion.lead:.3f}; the first match is at rank {confusion.right_rank}",
        show_query(direction, row, album),
        [found(direction, row, column, album) for column in (confusion.wrong, confusion.right)],
    )


def changed(
    direction: Direction, other: Direction, change: Change, album: Album, names: Sequence[str]
) -> Filmstrip:
    """A query with the first entry of both runs and, where the run's is wrong, its most similar match.

    Args:
        direction, other: the same direction of the run and of the other run.
        change: of the query.
        album: its clips.
        names: of the run and of the other run.
    """
    row = change.row
    shown = []
    for ranking, name in ((direction, names[0]), (other, names[1])):
        shown.append(found(ranking, row, ranking.top(row, 1)[0], album, label=f"rank 1 in {name}"))
    if not shown[0].right:
        match = direction.best_right(row)
        ranks = direction.rank_of(row, match), other.rank_of(row, match)
        label = f"rank {ranks[0]} in {names[0]}, {ranks[1]} in {names[1]}"
        shown.append(found(direction, row, match, album, label=label))
    return Filmstrip(
        f"First match at rank {change.rank} in {names[0]}, at rank {change.other_rank} in {names[1]}",
        show_query(direction, row, album),
        shown,
    )


def show_query(direction: Direction, row: int, album: Album) -> Shown:
    """A query."""
    position = int(direction.queries[row])
    return Shown(album.clip(position), album.strip(position), "query")


def found(direction: Direction, row: int, column: int, album: Album, label: str = "") -> Shown:
    """An entry of a query's list; its label says its rank, where it is not given one."""
    position = int(direction.gallery[column])
    return Shown(
        clip=album.clip(position),
        picture=album.strip(position),
        label=label or f"rank {direction.rank_of(row, column)}",
        right=bool(direction.right[row, column]),
        similarity=float(direction.similarity[row, column]),
    )
