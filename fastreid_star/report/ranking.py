"""Rank a test set for the report, and compare the rankings of two runs query by query.

Letters: N tracklets, Q queries, G gallery entries, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode

from fastreid_star.data.clips import ClipDataset
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import CrossModalResults, cross_modal_results
from fastreid_star.evaluation.retrieval import QueryResults, removed_entries
from fastreid_star.evaluation.similarity import first_ranked, normalize
from fastreid_star.modeling.mirror import build_test_network
from fastreid_star.structures import Tracklet


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of retrieval, query by query."""

    name: str  # I2V or V2I
    queries: np.ndarray  # [Q], positions among the tracklets
    gallery: np.ndarray  # [G], positions among the tracklets
    similarity: np.ndarray  # float32 [Q, G], -inf for entries that the camera rule removes
    right: np.ndarray  # bool [Q, G], entries of the query's identity that are not removed
    per_query: QueryResults  # of the evaluation

    def top(self, row: int, count: int) -> list[int]:
        """The first `count` gallery columns of a query's ranked list. Ties keep their order."""
        (order,) = first_ranked(self.similarity[row : row + 1], count)
        return [column for column in order.tolist() if self.similarity[row, column] > -np.inf]

    def best_right(self, row: int) -> int:
        """The gallery column of a query's most similar match. The query must have one."""
        return int(np.where(self.right[row], self.similarity[row], -np.inf).argmax())

    def rank_of(self, row: int, column: int) -> int:
        """The rank, from 1, of a gallery entry that is not removed. Ties keep their order."""
        values, own = self.similarity[row], self.similarity[row, column]
        return 1 + int((values > own).sum() + (values[:column] == own).sum())

    def lead(self, row: int) -> float:
        """Similarity of the best match minus that of the best wrong entry; inf without one."""
        best_wrong = self.similarity[row, ~self.right[row]].max(initial=-np.inf)
        return float(self.similarity[row, self.best_right(row)] - best_wrong)

    def cmc(self, length: int) -> np.ndarray:
        """CMC_1 to CMC_length as fractions."""
        first = self.per_query.first_match[self.per_query.valid]
        return (first[:, None] <= np.arange(1, length + 1)).mean(0)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The test set as one network ranks it."""

    dataset: ClipDataset
    features: torch.Tensor  # [N, D], L2-normalized; or [N, P, D]
    results: CrossModalResults
    directions: dict[str, Direction]  # I2V and V2I

    @property
    def tracklets(self) -> Sequence[Tracklet]:
        """N tracklets, in the order of `features`."""
        return self.dataset.tracklets

    @property
    def measure(self) -> str:
        """What the similarity of two features is."""
        if self.results.reranking.changes_distances:
            return "re-ranked distance, with a minus"
        parts = "similarity (minus the mean distance of the parts)"
        return "cosine similarity" if self.features.ndim == 2 else parts


@torch.no_grad()
def rank_run(cfg: CfgNode, dataset: str, model: torch.nn.Module) -> Ranking:
    """Extract all test features once, with the evaluation's loader, and rank in both directions.

    Args:
        cfg: config of the run.
        dataset: name of the test set.
        model: in evaluation mode.

    Raises:
        UserError: the data do not fit the config, or no query has a match.
    """
    loader, evaluator = Trainer.build_evaluator(cfg, dataset)
    network = build_test_network(cfg, model)
    for batch in loader:
        evaluator.process(batch, network(batch))
    return rank(evaluator.gather(), loader.dataset, **evaluator.protocol)


def rank(features: torch.Tensor, dataset: ClipDataset, **protocol: Any) -> Ranking:
    """Rank the gallery for every query, in both directions.

    Args:
        features: [N, D], one row a tracklet of `dataset`; 3 N with temporal re-ranking.
        dataset: the test clips.
        protocol: arguments of :func:`~fastreid_star.evaluation.cross_modal.cross_modal_results`.
    """
    results = cross_modal_results(features, dataset.tracklets, **protocol)
    pids, camids = (np.array([getattr(t, n) for t in dataset.tracklets]) for n in ("pid", "camid"))
    directions = {}
    for name, (result, queries, gallery) in results.directions().items():
        labels = (pids[queries], pids[gallery], camids[queries], camids[gallery])
        skipped = () if results.trials is None else results.trials.skipped
        removed = removed_entries(*labels, camera_filter=results.camera_filter, skipped=skipped)
        same = pids[queries][:, None] == pids[gallery]
        similarity = np.where(removed, np.float32(-np.inf), result.similarity)
        directions[name] = Direction(
            name, queries, gallery, similarity, same & ~removed, result.per_query
        )
    features = normalize(features[: len(dataset.tracklets)].float())
    return Ranking(dataset, features, results, directions)


def choose_queries(
    direction: Direction, tracklets: Sequence[Tracklet], count: int, seed: int
) -> dict[str, list[int]]:
    """Rows of ``random`` queries and of the ``best`` and ``worst`` by average precision.

    Queries without a match are left out. An identity comes twice only when all others have come.
    Queries of equal average precision are sorted by :meth:`Direction.lead`.

    Args:
        direction: of a ranking.
        tracklets: of the ranking.
        count: number of queries of each kind.
        seed: of the random queries.
    """
    valid = np.flatnonzero(direction.per_query.valid)
    pids = [tracklets[position].pid for position in direction.queries]
    lead = np.array([direction.lead(row) for row in valid.tolist()])
    best = valid[np.lexsort((-lead, -direction.per_query.ap[valid]))]
    orders = {
        "random": np.random.default_rng(seed).permutation(valid),
        "best": best,
        "worst": best[::-1],
    }
    return {
        kind: new_identities_first(order.tolist(), pids)[:count] for kind, order in orders.items()
    }


def new_identities_first(rows: Sequence[int], pids: Sequence[int]) -> list[int]:
    """The rows in their order, but an identity comes twice only when all others have come."""
    first = {pids[row]: row for row in reversed(rows)}
    return sorted(rows, key=lambda row: first[pids[row]] != row)


def confusions(direction: Direction, tracklets: Sequence[Tracklet], count: int) -> list[int]:
    """Rows of the queries whose wrong first entry is furthest ahead of the best match.

    A pair of people comes once.
    """
    wrong = np.flatnonzero(direction.per_query.valid & (direction.per_query.first_match > 1))
    rows: dict[tuple[int, int], int] = {}
    for row in sorted(wrong.tolist(), key=direction.lead):
        (first,) = direction.top(row, 1)
        pair = tracklets[direction.queries[row]].pid, tracklets[direction.gallery[first]].pid
        rows.setdefault(pair, row)
    return list(rows.values())[:count]


class Distribution(NamedTuple):
    """Similarities of pairs of one identity and of two."""

    edges: np.ndarray  # of the bins, [n + 1]
    same: np.ndarray  # share of the pairs of one identity in each bin, [n]
    different: np.ndarray  # share of the pairs of two, [n]
    same_median: float
    different_median: float
    overlap: float  # probability that a pair of two is more similar than a pair of one
    pairs: tuple[int, int]  # numbers of pairs of one and of two


def distribution(direction: Direction, bins: int = 40) -> Distribution | None:
    """The pairs of a direction that the camera rule keeps; None unless both kinds exist."""
    same = direction.similarity[direction.right].astype(np.float64)
    kept = np.isfinite(direction.similarity)
    different = direction.similarity[kept & ~direction.right].astype(np.float64)
    if not len(same) or not len(different):
        return None
    different.sort()
    edges = np.histogram_bin_edges(np.concatenate([same, different[[0, -1]]]), bins)
    below, up_to = (np.searchsorted(different, same, side) for side in ("left", "right"))
    return Distribution(
        edges=edges,
        same=np.histogram(same, edges)[0] / len(same),
        different=np.histogram(different, edges)[0] / len(different),
        same_median=float(np.median(same)),
        different_median=float(np.median(different)),
        overlap=float(1 - (below + up_to).mean() / (2 * len(different))),
        pairs=(len(same), len(different)),
    )


class CameraPairs(NamedTuple):
    """Rank-1 between C cameras of queries and C' cameras of the gallery."""

    query_cameras: list[int]
    gallery_cameras: list[int]
    accuracy: np.ndarray  # [C, C'], NaN where no query has a match
    queries: np.ndarray  # [C, C'], number of queries that have one


def camera_pairs(direction: Direction, tracklets: Sequence[Tracklet]) -> CameraPairs:
    """Rank-1 of the queries of each camera in the gallery of each camera alone."""
    camids = np.array([tracklet.camid for tracklet in tracklets])
    of_query, of_gallery = camids[direction.queries], camids[direction.gallery]
    query_cameras, gallery_cameras = np.unique(of_query), np.unique(of_gallery)
    accuracy = np.full((len(query_cameras), len(gallery_cameras)), np.nan)
    queries = np.zeros(accuracy.shape, int)
    for column, camera in enumerate(gallery_cameras):
        own = np.flatnonzero(of_gallery == camera)
        first = own[direction.similarity[:, own].argmax(1)]
        hit = direction.right[np.arange(len(of_query)), first]
        has_match = direction.right[:, own].any(1)
        for row, query_camera in enumerate(query_cameras):
            counted = hit[has_match & (of_query == query_camera)]
            queries[row, column] = len(counted)
            if len(counted):
                accuracy[row, column] = counted.mean()
    return CameraPairs(query_cameras.tolist(), gallery_cameras.tolist(), accuracy, queries)


def require_comparable(ranking: Ranking, other: Ranking, names: Sequence[str]) -> None:
    """Check that two runs are tested on the same tracklets by the same rules.

    Raises:
        UserError: they are not.
    """
    keys = [[(t.pid, t.camid, t.modality, t.frames) for t in r.tracklets] for r in (ranking, other)]
    if keys[0] != keys[1]:
        raise UserError(
            f"{names[0]} and {names[1]} are tested on different tracklets ({len(keys[0])} and "
            f"{len(keys[1])}): compare runs with the same test set and DATASETS.MIN_FRAMES"
        )
    rules = [
        (r.results.i2v.ranks, r.results.camera_filter, r.results.reranking, r.results.protocol_name)
        for r in (ranking, other)
    ]
    if rules[0] != rules[1]:
        raise UserError(
            f"{names[0]} and {names[1]} differ in TEST.RANKS, TEST.CAMERA_FILTER, TEST.AQE, "
            "TEST.RERANK or the protocol of the dataset: set these keys for the report"
        )


def rank_changes(direction: Direction, other: Direction) -> dict[int, int]:
    """Row of each query with a match -> by how many ranks its first match is better."""
    gain = other.per_query.first_match - direction.per_query.first_match
    return {row: int(gain[row]) for row in np.flatnonzero(direction.per_query.valid).tolist()}


def most_changed(direction: Direction, other: Direction, count: int) -> tuple[list[int], list[int]]:
    """Rows of the queries whose first match moved most: up to `count` won and as many lost.

    Among equal moves the one that reaches the better rank comes first.
    """
    gain = rank_changes(direction, other)
    best = np.minimum(direction.per_query.first_match, other.per_query.first_match)
    order = sorted(gain, key=lambda row: (-abs(gain[row]), best[row], row))
    won = [row for row in order if gain[row] > 0]
    lost = [row for row in order if gain[row] < 0]
    return won[:count], lost[:count]
