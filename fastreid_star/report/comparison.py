"""Two runs on one test set: whose queries got better, and whose worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastreid_star.errors import UserError
from fastreid_star.report.ranking import Direction, Ranking


@dataclass(frozen=True)
class Change:
    """A query whose first match has another rank in the second run.

    Args:
        row: of the query.
        rank, other_rank: of its first match, in the run and in the other.
    """

    row: int
    rank: int
    other_rank: int


def require_comparable(ranking: Ranking, other: Ranking, names: Sequence[str]) -> None:
    """Two runs can be compared query by query only where they are tested on the same tracklets by the same rules.

    Raises:
        UserError: they are not.
    """
    ours, theirs = (
        [(t.pid, t.camid, t.modality, t.frames) for t in r.tracklets] for r in (ranking, other)
    )
    if ours != theirs:
        raise UserError(
            f"{names[0]} is tested on {len(ours)} tracklets, {names[1]} on {len(theirs)}, and they are not the same: "
            "compare runs of one test set and DATASETS.MIN_FRAMES"
        )
    rules = [(r.results.i2v.ranks, r.results.camera_filter) for r in (ranking, other)]
    if rules[0] != rules[1]:
        raise UserError(
            f"{names[0]} and {names[1]} differ in TEST.RANKS or TEST.CAMERA_FILTER: set them alike by --set"
        )


def changes(
    direction: Direction, other: Direction, count: int
) -> tuple[list[Change], list[Change]]:
    """The queries whose first match moved most ranks: those that the run has won, and those that it has lost.

    Of equal moves the one to or from the better rank comes first, then the earlier query.

    Args:
        direction: the run's.
        other: the same direction of the other run.
        count: how many of each.
    """
    rank, other_rank = direction.per_query.first_match, other.per_query.first_match
    valid = np.flatnonzero(direction.per_query.valid)
    moved = {int(row): int(other_rank[row] - rank[row]) for row in valid}
    order = sorted(moved, key=lambda row: (-abs(moved[row]), min(rank[row], other_rank[row]), row))
    won, lost = (
        [
            Change(row, int(rank[row]), int(other_rank[row]))
            for row in order
            if sign * moved[row] > 0
        ][:count]
        for sign in (1, -1)
    )
    return won, lost


def moves(direction: Direction, other: Direction) -> dict[str, int]:
    """How many queries the run finds at a better, an equal and a worse rank than the other."""
    valid = direction.per_query.valid
    difference = (other.per_query.first_match - direction.per_query.first_match)[valid]
    return {
        "better": int((difference > 0).sum()),
        "equal": int((difference == 0).sum()),
        "worse": int((difference < 0).sum()),
    }
