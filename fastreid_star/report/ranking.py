"""A run's ranked lists: features from the evaluation's own loader, order and measures from the evaluation's own rules.

Letters: N tracklets, Q queries, G gallery entries, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.evaluation import inference_on_dataset
from fastreid.evaluation.evaluator import DatasetEvaluator

from fastreid_star.data.clips import ClipDataset
from fastreid_star.engine.trainer import Trainer
from fastreid_star.evaluation.cross_modal import (
    CrossModalEvaluator,
    CrossModalResults,
    cross_modal_results,
)
from fastreid_star.evaluation.retrieval import QueryResults
from fastreid_star.structures import Tracklet

BLOCK = 256  # queries ranked at a time


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of retrieval, query by query.

    Args:
        name: I2V or V2I.
        queries: positions of the queries among the tracklets, [Q].
        gallery: positions of the gallery entries, [G].
        similarity: float32 [Q, G].
        left_out: bool [Q, G], gallery entries that the camera rule takes away from a query.
        right: bool [Q, G], entries of the query's identity that are not left out.
        order: the first gallery columns of each query, most similar first, [Q, at most `depth`].
        per_query: the evaluation's measures.
    """

    name: str
    queries: np.ndarray
    gallery: np.ndarray
    similarity: np.ndarray
    left_out: np.ndarray
    right: np.ndarray
    order: np.ndarray
    per_query: QueryResults

    def top(self, row: int, count: int) -> list[int]:
        """The first gallery columns of a query's list, as many as `count` where there are so many."""
        return [int(column) for column in self.order[row] if not self.left_out[row, column]][:count]

    def best_right(self, row: int) -> int:
        """The gallery column of a query's most similar match; the query must have one."""
        return int(np.where(self.right[row], self.similarity[row], -np.inf).argmax())

    def rank_of(self, row: int, column: int) -> int:
        """The rank, from 1, of a gallery entry that is not left out; of equals the lower column comes first."""
        kept = ~self.left_out[row]
        ahead = self.similarity[row] > self.similarity[row, column]
        equal = (self.similarity[row] == self.similarity[row, column]) & (
            np.arange(len(kept)) < column
        )
        return 1 + int(((ahead | equal) & kept).sum())

    def cmc(self, length: int) -> np.ndarray:
        """CMC_1 to CMC_length as fractions."""
        first = self.per_query.first_match[self.per_query.valid]
        return (first[:, None] <= np.arange(1, length + 1)).mean(0)


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a network makes of a test set.

    Args:
        dataset: the test clips.
        features: [N, D], of unit length.
        results: both directions' measures and the protocol.
        directions: by name, I2V and V2I.
    """

    dataset: ClipDataset
    features: torch.Tensor
    results: CrossModalResults
    directions: dict[str, Direction]

    @property
    def tracklets(self) -> Sequence[Tracklet]:
        """N tracklets, in the order of `features`."""
        return self.dataset.tracklets


class _FeatureKeeper(DatasetEvaluator):
    """The evaluation's own evaluator, with the features kept."""

    def __init__(self, evaluator: CrossModalEvaluator):
        self.evaluator = evaluator
        self.indexes: list[torch.Tensor] = []
        self.parts: list[torch.Tensor] = []

    def reset(self) -> None:
        self.evaluator.reset()
        self.indexes.clear()
        self.parts.clear()

    def process(self, inputs: dict[str, torch.Tensor], outputs: torch.Tensor) -> None:
        self.evaluator.process(inputs, outputs)
        self.indexes.append(inputs["index"].to("cpu", torch.int64, copy=True))
        self.parts.append(outputs.detach().to("cpu", torch.float32, copy=True))

    def evaluate(self) -> dict[str, float]:
        return self.evaluator.evaluate()

    def features(self) -> torch.Tensor:
        """[N, D], in the order of the dataset."""
        parts = torch.cat(self.parts)
        features = torch.empty_like(parts)
        features[torch.cat(self.indexes)] = parts
        return features


def rank_run(cfg: CfgNode, dataset: str, model: torch.nn.Module, *, depth: int = 50) -> Ranking:
    """Extract every test tracklet once and rank them in both directions.

    Args:
        cfg: of the run; its test loader is the evaluation's.
        dataset: the test set's name.
        model: in eval mode.
        depth: how far the ranked lists are kept.

    Raises:
        UserError: the data do not fit the config, or the features make no ranking.
        AssertionError: the ranked lists do not give the evaluation's numbers.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.PER_QUERY_CSV = False  # the run's folder stays as it is
    cfg.freeze()
    loader, evaluator = Trainer.build_evaluator(cfg, dataset)
    keeper = _FeatureKeeper(evaluator)
    metrics = inference_on_dataset(model, loader, keeper)
    ranking = rank(
        keeper.features(),
        loader.dataset,
        min_frames=cfg.DATASETS.MIN_FRAMES,
        dataset_name=dataset,
        ranks=tuple(cfg.TEST.RANKS),
        camera_filter=cfg.TEST.CAMERA_FILTER,
        depth=depth,
    )
    if ranking.results.metrics() != metrics:
        raise AssertionError("the ranked lists give other numbers than the evaluation")
    return ranking


def rank(
    features: torch.Tensor, dataset: ClipDataset, *, depth: int = 50, **protocol: Any
) -> Ranking:
    """Rank the gallery for every query, in both directions.

    Args:
        features: [N, D], one row a tracklet of `dataset`.
        dataset: the test clips.
        depth: how far the ranked lists are kept.
        protocol: `min_frames`, `dataset_name`, `ranks` and `camera_filter` of
            :func:`~fastreid_star.evaluation.cross_modal.cross_modal_results`.

    Raises:
        AssertionError: the lists are not those that the evaluation's numbers were measured on.
    """
    results = cross_modal_results(features, dataset.tracklets, **protocol, keep_similarity=True)
    features = torch.nn.functional.normalize(features.float(), dim=1)
    pids, camids = (
        np.array([getattr(t, name) for t in dataset.tracklets]) for name in ("pid", "camid")
    )
    directions = {}
    for name, queries, gallery, result in (
        ("I2V", results.sides.i2v_query, results.sides.i2v_gallery, results.i2v),
        ("V2I", results.sides.v2i_query, results.sides.v2i_gallery, results.v2i),
    ):
        same = pids[queries][:, None] == pids[gallery]
        left_out = same & (camids[queries][:, None] == camids[gallery])
        if not results.camera_filter:
            left_out[:] = False
        right, per_query, similarity = same & ~left_out, result.per_query, result.similarity
        assert similarity is not None
        order = _ordered(similarity, right, left_out, per_query, depth)
        directions[name] = Direction(
            name, queries, gallery, similarity, left_out, right, order, per_query
        )
    return Ranking(dataset, features, results, directions)


def _ordered(
    similarity: np.ndarray,
    right: np.ndarray,
    left_out: np.ndarray,
    per_query: QueryResults,
    depth: int,
) -> np.ndarray:
    """The first columns of each query's list, held against the evaluation's measures."""
    orders = []
    for start in range(0, len(similarity), BLOCK):
        block = slice(start, start + BLOCK)
        order = np.argsort(
            -np.where(left_out[block], -np.inf, similarity[block]), axis=1, kind="stable"
        )
        hits = np.take_along_axis(right[block], order, axis=1)
        seen = hits.cumsum(1)
        matches = np.maximum(hits.sum(1), 1)
        precision = (hits * seen / np.arange(1, hits.shape[1] + 1)).sum(1) / matches
        valid = per_query.valid[block]
        agree = (
            np.array_equal(hits.argmax(1)[valid] + 1, per_query.first_match[block][valid])
            and np.array_equal(hits.any(1), valid)
            and np.allclose(precision[valid], per_query.ap[block][valid], rtol=1e-9)
            and np.array_equal(order[valid, 0], per_query.top1[block][valid])
        )
        if not agree:
            raise AssertionError("a ranked list is not the one that the evaluation has measured")
        orders.append(order[:, :depth].copy())  # a copy, or the whole order would stay in memory
    return np.concatenate(orders)


def choose_queries(
    direction: Direction, tracklets: Sequence[Tracklet], count: int, seed: int
) -> dict[str, list[int]]:
    """Some queries of each kind, as rows of the direction: ``random``, ``best`` and ``worst`` by average precision.

    No identity is shown twice in a kind as long as there are others, and queries without a match are left out. Of
    equally good queries the one whose first match is ahead of the best wrong entry by more comes first.

    Args:
        direction: one of a ranking's.
        tracklets: of the ranking.
        count: how many of each kind; fewer where there are fewer.
        seed: of the random ones.
    """
    valid = np.flatnonzero(direction.per_query.valid)
    pids = np.array([tracklets[position].pid for position in direction.queries])
    lead = np.array([margin(direction, row) for row in valid.tolist()])
    best = valid[np.lexsort((-lead, -direction.per_query.ap[valid]))]
    return {
        "random": _spread(np.random.default_rng(seed).permutation(valid), pids, count),
        "best": _spread(best, pids, count),
        "worst": _spread(best[::-1], pids, count),
    }


def margin(direction: Direction, row: int) -> float:
    """By how much a query's most similar match is more similar than its most similar wrong entry.

    Infinite where there is no wrong entry; the query must have a match.
    """
    wrong = ~direction.right[row] & ~direction.left_out[row]
    ahead = direction.similarity[row, wrong].max(initial=-np.inf)
    return float(direction.similarity[row, direction.best_right(row)] - ahead)


def _spread(rows: Iterable[int], pids: np.ndarray, count: int) -> list[int]:
    """The first rows of different identities; where these run out, the first of the others."""
    first: list[int] = []
    others: list[int] = []
    seen = set()
    for row in map(int, rows):
        (others if pids[row] in seen else first).append(row)
        seen.add(pids[row])
    return (first + others)[:count]
