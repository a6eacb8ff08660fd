"""What the similarities of a direction tell: how well they part identities, which cameras are hard, what is confused.

Letters: Q queries, G gallery entries, C cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastreid_star.report.ranking import Direction, margin
from fastreid_star.structures import Tracklet


@dataclass(frozen=True, eq=False)
class Distribution:
    """Similarities of pairs of one identity, and of two.

    Args:
        edges: bin edges, [n + 1].
        same, different: share of the pairs in each bin, [n], sum 1.
        same_median, different_median: of the similarities.
        overlap: how often a pair of two identities is more similar than one of one identity, 0 (never) to 1/2 (as by
            chance) and above; ties count half.
        pairs: how many of one identity, and of two.
    """

    edges: np.ndarray
    same: np.ndarray
    different: np.ndarray
    same_median: float
    different_median: float
    overlap: float
    pairs: tuple[int, int]


def distribution(direction: Direction, bins: int = 40) -> Distribution | None:
    """The pairs of a direction, without those that the camera rule leaves out; None where there are not both kinds."""
    same = direction.similarity[direction.right].astype(np.float64)
    different = np.sort(direction.similarity[~direction.right & ~direction.left_out]).astype(
        np.float64
    )
    if not len(same) or not len(different):
        return None
    edges = np.histogram_bin_edges(np.concatenate([same, different[[0, -1]]]), bins)
    below, upto = (np.searchsorted(different, same, side) for side in ("left", "right"))
    return Distribution(
        edges=edges,
        same=np.histogram(same, edges)[0] / len(same),
        different=np.histogram(different, edges)[0] / len(different),
        same_median=float(np.median(same)),
        different_median=float(np.median(different)),
        overlap=float(1 - (below + upto).mean() / (2 * len(different))),
        pairs=(len(same), len(different)),
    )


@dataclass(frozen=True, eq=False)
class CameraPairs:
    """Rank-1 accuracy between cameras.

    Args:
        query_cameras, gallery_cameras: their numbers, ascending.
        accuracy: share of the queries of a camera whose first entry among those of the other is right, [C, C']; NaN
            where no query has a match there.
        queries: how many queries each is the mean of, [C, C'].
    """

    query_cameras: list[int]
    gallery_cameras: list[int]
    accuracy: np.ndarray
    queries: np.ndarray


def camera_pairs(direction: Direction, tracklets: Sequence[Tracklet]) -> CameraPairs:
    """Rank-1 of every query in the gallery of each camera by itself, averaged over the cameras' queries."""
    camids = np.array([tracklet.camid for tracklet in tracklets])
    of_query, of_gallery = camids[direction.queries], camids[direction.gallery]
    query_cameras, gallery_cameras = np.unique(of_query), np.unique(of_gallery)
    accuracy = np.full((len(query_cameras), len(gallery_cameras)), np.nan)
    queries = np.zeros(accuracy.shape, int)
    for column, camera in enumerate(gallery_cameras):
        own = np.flatnonzero(of_gallery == camera)
        first = direction.similarity[:, own].argmax(1)
        hit = direction.right[np.arange(len(of_query)), own[first]]
        counted = direction.right[:, own].any(
            1
        )  # where the camera rule leaves something out, it leaves no match
        for row, query_camera in enumerate(query_cameras):
            chosen = counted & (of_query == query_camera)
            queries[row, column] = chosen.sum()
            if chosen.any():
                accuracy[row, column] = hit[chosen].mean()
    return CameraPairs(query_cameras.tolist(), gallery_cameras.tolist(), accuracy, queries)


@dataclass(frozen=True)
class Confusion:
    """A query whose first entry is of somebody else.

    Args:
        row: of the query.
        wrong: gallery column of its first entry.
        right: gallery column of its most similar match.
        right_rank: the rank of that.
        lead: by how much the wrong one is more similar.
    """

    row: int
    wrong: int
    right: int
    right_rank: int
    lead: float


def confusions(direction: Direction, tracklets: Sequence[Tracklet], count: int) -> list[Confusion]:
    """The worst confusions, by how far the wrong entry is ahead of the right one; each pair of people once."""
    per_query = direction.per_query
    wrong = np.flatnonzero(per_query.valid & (per_query.first_match > 1))
    lead = {row: -margin(direction, row) for row in wrong.tolist()}
    found: list[Confusion] = []
    seen = set()
    for row in sorted(lead, key=lambda row: (-lead[row], row)):
        (first,) = direction.top(row, 1)
        pair = tracklets[direction.queries[row]].pid, tracklets[direction.gallery[first]].pid
        if len(found) < count and pair not in seen:
            seen.add(pair)
            right = direction.best_right(row)
            found.append(Confusion(row, first, right, direction.rank_of(row, right), lead[row]))
    return found
