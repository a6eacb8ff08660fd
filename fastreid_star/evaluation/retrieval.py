"""Ranking the gallery for every query: CMC, mean average precision, mean inverse negative penalty.

Letters: Q queries, G gallery entries, D feature width. For one query, r_1 < ... < r_M are the ranks, counted from
one, of its M matches: the gallery entries of its identity. Then

    CMC_k = mean over queries [r_1 <= k]
    AP    = 1/M sum_m m / r_m          non-interpolated; mAP is its mean over queries
    INP   = M / r_M                    mINP is its mean over queries

Camera rule: gallery entries with the query's identity AND camera are no part of its gallery; they are neither
matches nor do they take a rank. A query that is left without a match is not counted in any mean, but reported.

Ties: entries of exactly equal similarity stay in gallery order, the lower index first. The rule is blind to who is a
match, so it favors nobody. Similarities are float32 dot products: what is equal in exact arithmetic may differ in the
last bit, and then that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastreid_star.errors import UserError

DEFAULT_RANKS = (1, 5, 10, 20)
BLOCK_SIZE = 512
_COUNTED = 64  # matches of a query up to which counting their ranks is faster than sorting its whole gallery


@dataclass(frozen=True, eq=False)
class QueryResults:
    """What became of each query. All arrays are [Q]; fractions, not percent.

    Args:
        n_matches: M, the matches in the gallery after the camera rule.
        first_match: r_1, the rank of the first match; 0 where there is none.
        ap: average precision in (0, 1]; NaN where there is no match.
        inp: inverse negative penalty in (0, 1]; NaN where there is no match.
        top1: gallery index of the most similar entry; -1 where the camera rule left nothing.
        top1_similarity: its similarity; NaN where there is none.

    Raises:
        ValueError: the arrays contradict one another.
    """

    n_matches: np.ndarray
    first_match: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    top1: np.ndarray
    top1_similarity: np.ndarray

    def __post_init__(self) -> None:
        if any(getattr(self, field.name).shape != (len(self),) for field in fields(self)):
            shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
            raise ValueError(f"per-query results need one value a query, got {shapes}")
        if not np.array_equal(self.first_match > 0, self.valid):
            raise ValueError("a query has a first match exactly where it has matches")
        for name, value in (("ap", self.ap), ("inp", self.inp)):
            inside = (value[self.valid] > 0) & (value[self.valid] <= 1)
            if not (inside.all() and np.isnan(value[~self.valid]).all()):
                raise ValueError(
                    f"{name} lies in (0, 1] where a query has matches and is NaN elsewhere"
                )
        if not np.array_equal(self.top1 >= 0, ~np.isnan(self.top1_similarity)):
            raise ValueError("a query has a top-1 similarity exactly where it has a top-1 entry")

    def __len__(self) -> int:
        return len(self.n_matches)

    @property
    def valid(self) -> np.ndarray:
        """[Q] bool: the queries that have a match, the ones every mean is taken over."""
        return self.n_matches > 0

    @classmethod
    def concatenate(cls, parts: Sequence[QueryResults]) -> QueryResults:
        """The results of consecutive blocks of queries as one."""
        return cls(
            **{
                field.name: np.concatenate([getattr(p, field.name) for p in parts])
                for field in fields(cls)
            }
        )


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """One direction of retrieval in numbers. Fractions, not percent.

    Args:
        ranks: the k of `cmc`, ascending.
        cmc: CMC_k at each of `ranks`. Above the gallery's size the curve keeps its last value.
        mAP: mean average precision over the valid queries.
        mINP: mean inverse negative penalty over the valid queries.
        queries: Q.
        valid_queries: queries with a match, the ones that are counted.
        gallery: G.
        identities: distinct identities of the queries.
        per_query: the same, query by query.
        similarity: [Q, G] float32, what was ranked, where it was to be kept.

    Raises:
        ValueError: the numbers contradict one another.
    """

    ranks: tuple[int, ...]
    cmc: tuple[float, ...]
    mAP: float
    mINP: float
    queries: int
    valid_queries: int
    gallery: int
    identities: int
    per_query: QueryResults
    similarity: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_ranks(self.ranks)
        if len(self.cmc) != len(self.ranks) or not all(0 <= value <= 1 for value in self.cmc):
            raise ValueError(
                f"CMC needs one value in [0, 1] for each of the ranks {self.ranks}, got {self.cmc}"
            )
        if list(self.cmc) != sorted(self.cmc):
            raise ValueError(f"a CMC curve never falls, got {self.cmc}")
        if not (0 < self.mAP <= 1 and 0 < self.mINP <= 1):
            raise ValueError(f"mAP and mINP lie in (0, 1], got {self.mAP} and {self.mINP}")
        if self.queries != len(self.per_query) or self.valid_queries != int(
            self.per_query.valid.sum()
        ):
            raise ValueError(
                f"{self.queries} queries, {self.valid_queries} of them valid, are not those of per_query"
            )
        if not (
            1 <= self.valid_queries <= self.queries
            and 1 <= self.identities <= self.queries
            and self.gallery >= 1
        ):
            raise ValueError(
                f"impossible counts: {self.queries} queries, {self.valid_queries} valid, "
                f"{self.identities} identities, {self.gallery} gallery entries"
            )
        if self.similarity is not None and self.similarity.shape != (self.queries, self.gallery):
            raise ValueError(
                f"similarities {self.similarity.shape} are not those of {self.queries} queries"
            )


def evaluate_retrieval(
    query_features: torch.Tensor | np.ndarray,
    gallery_features: torch.Tensor | np.ndarray,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    camera_filter: bool = True,
    block_size: int = BLOCK_SIZE,
    keep_similarity: bool = False,
) -> RetrievalResult:
    """Rank the gallery for every query by the dot product of their features; see the module for the measures.

    Args:
        query_features: [Q, D], taken as float32. For cosine similarity, normalize them before.
        gallery_features: [G, D].
        q_pids, q_camids: [Q], identity and camera of each query.
        g_pids, g_camids: [G], the same of each gallery entry.
        ranks: the k at which CMC is reported.
        camera_filter: apply the camera rule.
        block_size: queries that are ranked at once: bounds the memory; the result is the same up to rounding.
        keep_similarity: return all dot products as well, 4 Q G bytes.

    Raises:
        UserError: no queries or no gallery; a feature is NaN or infinite; no query has a match; `ranks` are no ranks.
        ValueError: shapes do not fit.
    """
    ranks = check_ranks(ranks)
    query, gallery = _features(query_features, "query"), _features(gallery_features, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query features are {query.shape[1]} wide, gallery features {gallery.shape[1]}"
        )
    labels = (
        *_labels(len(query), q_pids, q_camids, "query"),
        *_labels(len(gallery), g_pids, g_camids, "gallery"),
    )
    kept = torch.empty(len(query), len(gallery)) if keep_similarity else None

    def rows(block: slice) -> np.ndarray:
        return torch.mm(query[block], gallery.T, out=None if kept is None else kept[block]).numpy()

    result = _evaluate(
        rows, *labels, ranks=ranks, camera_filter=camera_filter, block_size=block_size
    )
    return result if kept is None else replace(result, similarity=kept.numpy())


def evaluate_similarity(
    similarity: np.ndarray,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    camera_filter: bool = True,
    block_size: int = BLOCK_SIZE,
) -> RetrievalResult:
    """As :func:`evaluate_retrieval`, of similarities that are there already.

    Args:
        similarity: [Q, G], finite; larger is more alike. It may be a view, such as the transpose of another direction.
        q_pids, g_pids, q_camids, g_camids, ranks, camera_filter, block_size: as there.

    Raises:
        UserError: the matrix has no row or no column; a similarity is NaN or infinite; no query has a match; `ranks`
            are no ranks.
        ValueError: shapes do not fit.
    """
    similarity = _matrix(similarity, "similarity")
    labels = (
        *_labels(similarity.shape[0], q_pids, q_camids, "query"),
        *_labels(similarity.shape[1], g_pids, g_camids, "gallery"),
    )
    return _evaluate(
        similarity.__getitem__,
        *labels,
        ranks=check_ranks(ranks),
        camera_filter=camera_filter,
        block_size=block_size,
    )


def _evaluate(
    rows: Callable[[slice], np.ndarray],
    q_pids: np.ndarray,
    q_camids: np.ndarray,
    g_pids: np.ndarray,
    g_camids: np.ndarray,
    *,
    ranks: tuple[int, ...],
    camera_filter: bool,
    block_size: int,
) -> RetrievalResult:
    """Rank block after block; `rows` gives the similarities of one."""
    if block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    blocks = [slice(start, start + block_size) for start in range(0, len(q_pids), block_size)]
    per_query = QueryResults.concatenate(
        [
            rank_queries(
                rows(block),
                q_pids[block],
                g_pids,
                q_camids[block],
                g_camids,
                camera_filter=camera_filter,
            )
            for block in blocks
        ]
    )
    valid = per_query.valid
    if not valid.any():
        raise UserError(_why_no_match(q_pids, g_pids))
    return RetrievalResult(
        ranks=ranks,
        cmc=tuple(float(np.mean(per_query.first_match[valid] <= rank)) for rank in ranks),
        mAP=float(np.mean(per_query.ap[valid])),
        mINP=float(np.mean(per_query.inp[valid])),
        queries=len(q_pids),
        valid_queries=int(valid.sum()),
        gallery=len(g_pids),
        identities=len(np.unique(q_pids)),
        per_query=per_query,
    )


def rank_queries(
    similarity: np.ndarray,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    camera_filter: bool = True,
) -> QueryResults:
    """Rank the gallery for each row of a similarity matrix.

    Holds several arrays of the matrix's size at once: :func:`evaluate_retrieval` calls it for blocks of queries.

    Args:
        similarity: [Q, G], finite; larger is more alike (pass the negative of a distance).
        q_pids, q_camids: [Q], identity and camera of each query.
        g_pids, g_camids: [G], the same of each gallery entry.
        camera_filter: apply the camera rule.

    Raises:
        UserError: the matrix has no row or no column, or a similarity is NaN or infinite.
        ValueError: shapes do not fit.
    """
    # A copy with its rows in one piece each, which the camera rule may write into.
    similarity = np.array(_matrix(similarity, "similarity"), order="C")
    q_pids, q_camids = _labels(similarity.shape[0], q_pids, q_camids, "query")
    g_pids, g_camids = _labels(similarity.shape[1], g_pids, g_camids, "gallery")
    _check_finite(np.isfinite(similarity).all(axis=1), "similarities to the gallery")

    match = q_pids[:, None] == g_pids  # [Q, G]
    if camera_filter:
        removed = match & (q_camids[:, None] == g_camids)
        match &= ~removed
        # Behind every entry that stays, a removed one takes no rank from it.
        similarity[removed] = -np.inf
    query, column = np.nonzero(match)  # row by row
    n_matches = np.bincount(query, minlength=len(similarity))
    last = np.cumsum(n_matches)  # one past the last match of each query
    first = last - n_matches
    rank = np.concatenate(
        [
            _ranks(row, column[a:b])
            for row, a, b in zip(similarity, first.tolist(), last.tolist(), strict=True)
        ]
    )
    valid = n_matches > 0
    nth = np.arange(len(rank)) - first[query] + 1  # m of r_m

    first_match = np.zeros(len(similarity), dtype=np.int64)
    first_match[valid] = rank[first[valid]]
    ap = np.full(len(similarity), np.nan)
    ap[valid] = (
        np.bincount(query, weights=nth / rank, minlength=len(similarity))[valid] / n_matches[valid]
    )
    inp = np.full(len(similarity), np.nan)
    inp[valid] = n_matches[valid] / rank[last[valid] - 1]

    top1 = similarity.argmax(axis=1)  # of equals the first
    top1_similarity = np.take_along_axis(similarity, top1[:, None], axis=1)[:, 0].astype(np.float64)
    anything_left = top1_similarity > -np.inf
    return QueryResults(
        n_matches=n_matches,
        first_match=first_match,
        ap=ap,
        inp=inp,
        top1=np.where(anything_left, top1, -1),
        top1_similarity=np.where(anything_left, top1_similarity, np.nan),
    )


def _ranks(row: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Ranks, from one and ascending, of some gallery entries among all of one query's.

    Args:
        row: [G], the query's similarities.
        columns: the entries.
    """
    if len(columns) > _COUNTED:
        rank = np.empty(len(row), dtype=np.int64)
        rank[np.argsort(-row, kind="stable")] = np.arange(1, len(row) + 1)
        return np.sort(rank[columns])
    # Ahead of an entry are those before it that are no less similar, and those behind it that are more.
    values = row[columns]
    ranks = [
        1 + np.count_nonzero(row[:column] >= value) + np.count_nonzero(row[column:] > value)
        for column, value in zip(columns.tolist(), values, strict=True)
    ]
    return np.sort(np.array(ranks, dtype=np.int64))


def check_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """The ranks as a tuple.

    Raises:
        UserError: they are not positive whole numbers in ascending order.
    """
    ranks = tuple(ranks)
    whole = all(
        isinstance(rank, int | np.integer) and not isinstance(rank, bool) and rank >= 1
        for rank in ranks
    )
    if not ranks or not whole or list(ranks) != sorted(set(ranks)):
        raise UserError(
            f"ranks (TEST.RANKS) must be positive whole numbers in ascending order, got {list(ranks)}"
        )
    return tuple(int(rank) for rank in ranks)


def check_features(features: torch.Tensor, what: str) -> None:
    """Refuse features that no ranking can be made of.

    Args:
        features: [N, D].
        what: whose features they are, for the message, e.g. ``query``.

    Raises:
        UserError: a feature is NaN or infinite; the message counts the tracklets and names their indexes.
    """
    # Sums are finite unless there is something to find, or they overflow: one pass in place of several.
    if not torch.isfinite(features.sum(dim=1)).all():
        _check_finite(torch.isfinite(features).all(dim=1).numpy(), f"{what} features")


def shorten(values: Sequence | np.ndarray, limit: int = 8) -> str:
    """The first values, and that there are more: ``1, 2, 3, ...``."""
    shown = ", ".join(str(value) for value in values[:limit])
    return shown + (", ..." if len(values) > limit else "")


def _check_finite(finite: np.ndarray, what: str) -> None:
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise UserError(
            f"{what}: {len(bad)} of {len(finite)} tracklets have NaN or infinite values, index {shorten(bad)}; "
            "the weights have diverged or half precision overflowed: look at the training loss, try a lower "
            "learning rate or float32"
        )


def _features(features: torch.Tensor | np.ndarray, what: str) -> torch.Tensor:
    """Float32 features on the CPU, [N, D]."""
    if not isinstance(features, torch.Tensor):
        features = torch.from_numpy(np.asarray(features))
    features = features.detach().to("cpu", torch.float32)
    if features.ndim != 2:
        raise ValueError(f"{what} features must be [tracklets, width], got {list(features.shape)}")
    if len(features) == 0:
        raise UserError(
            f"the {what} set is empty: check the dataset's files and the minimum length (MIN_FRAMES)"
        )
    check_features(features, what)
    return features


def _matrix(values: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    if values.ndim != 2:
        raise ValueError(f"{what} must be a matrix, got {list(values.shape)}")
    if 0 in values.shape:
        raise UserError(
            f"{what} of {values.shape[0]} queries and {values.shape[1]} gallery entries: nothing to rank"
        )
    return values


def _labels(
    size: int, pids: ArrayLike, camids: ArrayLike, what: str
) -> tuple[np.ndarray, np.ndarray]:
    pids, camids = np.asarray(pids), np.asarray(camids)
    if pids.shape != (size,) or camids.shape != (size,):
        raise ValueError(
            f"{size} {what} entries need as many pids and camids, got {pids.shape} and {camids.shape}"
        )
    return pids, camids


def _why_no_match(q_pids: np.ndarray, g_pids: np.ndarray) -> str:
    """One line: what is there, and the likely cause."""
    query, gallery = np.unique(q_pids), np.unique(g_pids)
    shared = np.intersect1d(query, gallery)
    if len(shared):
        return (
            f"the camera rule leaves no query with a match: {len(shared)} identities are in query and gallery "
            f"({shorten(shared)}), but only under the query's own camera; check the camera numbers, or switch the "
            "rule off (TEST.CAMERA_FILTER False)"
        )
    return (
        f"no query identity appears in the gallery: {len(query)} query pids ({shorten(query)}), {len(gallery)} gallery "
        f"pids ({shorten(gallery)}); check that both lists number identities alike and that the minimum length "
        "(DATASETS.MIN_FRAMES) has not emptied one side; the camera rule (TEST.CAMERA_FILTER) is not the cause"
    )
