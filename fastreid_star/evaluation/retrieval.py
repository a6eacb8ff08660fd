"""Retrieval measures: CMC, mean average precision, mean inverse negative penalty.

Letters: Q queries, G gallery entries, P parts of a feature, D feature width. Let r_1 < ... < r_M be
the ranks, counted from one, of a query's M matches, which are the gallery entries of its identity.
Then

    CMC_k = mean over queries [r_1 <= k]
    AP    = 1/M sum_m m / r_m          without interpolation; mAP is the mean over queries
    INP   = M / r_M                    mINP is the mean over queries

Camera rule: gallery entries with the identity and the camera of the query are removed for this
query. They are no matches and take no rank. A query without any match is left out of all means and
is counted separately.

Ties: entries of exactly equal similarity keep the gallery's order. The rule does not depend on
which entry is a match. Similarities are float32: two values that are equal in exact arithmetic may
differ in the last bit, which then decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastreid_star.errors import UserError
from fastreid_star.evaluation.similarity import check_features, check_finite, shorten, similarity

DEFAULT_RANKS = (1, 5, 10, 20)
BLOCK_SIZE = 512  # queries that are ranked at once: limits the memory, not the result
# Up to so many matches of a query, counting the entries ahead of each is faster than sorting the
# gallery.
_COUNTED = 64


@dataclass(frozen=True, eq=False)
class QueryResults:
    """The measures of each query. All arrays are ``[Q]``; fractions, not percent.

    Args:
        n_matches: M, the number of matches after the camera rule.
        first_match: r_1, the rank of the first match; 0 if there is no match.
        ap: average precision in (0, 1]; NaN if there is no match.
        inp: inverse negative penalty in (0, 1]; NaN if there is no match.
        top1: gallery index of the most similar entry; -1 if the camera rule removed all entries.
        top1_similarity: the similarity of that entry; NaN if there is no entry.
    """

    n_matches: np.ndarray
    first_match: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    top1: np.ndarray
    top1_similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.n_matches)

    @property
    def valid(self) -> np.ndarray:
        """Bool ``[Q]``: the queries that have a match. All means are taken over these."""
        return self.n_matches > 0

    @classmethod
    def concatenate(cls, blocks: Sequence[QueryResults]) -> QueryResults:
        """Join the results of consecutive blocks of queries."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(block, name) for block in blocks]) for name in names))


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """The measures of one direction of retrieval. Fractions, not percent.

    Args:
        ranks: the k of `cmc`, ascending.
        cmc: CMC_k at each of `ranks`.
        mAP, mINP: means over the valid queries.
        queries: Q.
        valid_queries: the number of queries that have a match.
        gallery: G.
        identities: the number of identities among the queries.
        per_query: the measures of each query.
        similarity: float32 ``[Q, G]``, if it was to be kept.
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
    keep_similarity: bool = False,
) -> RetrievalResult:
    """Rank the gallery for every query by :func:`~fastreid_star.evaluation.similarity.similarity`.

    Args:
        query_features: ``[Q, D]`` or ``[Q, P, D]``, converted to float32. They are not normalized
            here.
        gallery_features: ``[G, D]`` or ``[G, P, D]``.
        q_pids, q_camids: ``[Q]``, identity and camera of each query.
        g_pids, g_camids: ``[G]``, the same of each gallery entry.
        ranks: the k at which CMC is reported.
        camera_filter: apply the camera rule.
        keep_similarity: also return all similarities, 4 Q G bytes.

    Raises:
        UserError: there are no queries or no gallery, a feature is NaN or infinite, no query has a
            match, or `ranks` are not ascending positive numbers.
        ValueError: shapes do not match.
    """
    query, gallery = _features(query_features, "query"), _features(gallery_features, "gallery")
    kept = torch.empty(len(query), len(gallery)) if keep_similarity else None

    def rows(block: slice) -> np.ndarray:
        out = None if kept is None else kept[block]
        return similarity(query[block], gallery, out=out).numpy()

    labels = (*_labels(len(query), q_pids, q_camids), *_labels(len(gallery), g_pids, g_camids))
    result = _evaluate(rows, *labels, check_ranks(ranks), camera_filter)
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
) -> RetrievalResult:
    """Like :func:`evaluate_retrieval`, for similarities that are computed already.

    Args:
        similarity: ``[Q, G]``, finite; larger is more similar. It may be a view, such as the
            transpose of the matrix of the other direction.
        q_pids, g_pids, q_camids, g_camids, ranks, camera_filter: see :func:`evaluate_retrieval`.
    """
    similarity = _matrix(similarity)
    queries, entries = similarity.shape
    labels = (*_labels(queries, q_pids, q_camids), *_labels(entries, g_pids, g_camids))
    return _evaluate(similarity.__getitem__, *labels, check_ranks(ranks), camera_filter)


def _evaluate(
    rows: Callable[[slice], np.ndarray],
    q_pids: np.ndarray,
    q_camids: np.ndarray,
    g_pids: np.ndarray,
    g_camids: np.ndarray,
    ranks: tuple[int, ...],
    camera_filter: bool,
) -> RetrievalResult:
    """Rank block after block; `rows` returns the similarities of one block of queries."""
    blocks = []
    for start in range(0, len(q_pids), BLOCK_SIZE):
        block = slice(start, start + BLOCK_SIZE)
        labels = (q_pids[block], g_pids, q_camids[block], g_camids)
        blocks.append(rank_queries(rows(block), *labels, camera_filter=camera_filter))
    per_query = QueryResults.concatenate(blocks)
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

    The function holds several arrays of the matrix's size: :func:`evaluate_retrieval` calls it for
    blocks of queries.

    Args:
        similarity: ``[Q, G]``, finite; larger is more similar.
        q_pids, q_camids: ``[Q]``, identity and camera of each query.
        g_pids, g_camids: ``[G]``, the same of each gallery entry.
        camera_filter: apply the camera rule.

    Raises:
        UserError: the matrix is empty, or a similarity is NaN or infinite.
        ValueError: shapes do not match.
    """
    # A copy in row order: the camera rule writes into it.
    similarity = np.array(_matrix(similarity), order="C")
    q_pids, q_camids = _labels(similarity.shape[0], q_pids, q_camids)
    g_pids, g_camids = _labels(similarity.shape[1], g_pids, g_camids)
    check_finite(np.isfinite(similarity).all(axis=1), "similarities to the gallery")

    match = q_pids[:, None] == g_pids  # [Q, G]
    if camera_filter:
        removed = match & (q_camids[:, None] == g_camids)
        match &= ~removed
        similarity[removed] = -np.inf  # behind all others, where it takes no rank from them
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
    ap, inp = np.full((2, len(similarity)), np.nan)
    sums = np.bincount(query, weights=nth / rank, minlength=len(similarity))
    ap[valid] = sums[valid] / n_matches[valid]
    inp[valid] = n_matches[valid] / rank[last[valid] - 1]

    top1 = similarity.argmax(axis=1)  # the first of equal ones
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
    """The ranks, ascending, of the gallery entries `columns` among one query's ``[G]``."""
    if len(columns) > _COUNTED:
        rank = np.empty(len(row), dtype=np.int64)
        rank[np.argsort(-row, kind="stable")] = np.arange(1, len(row) + 1)
        return np.sort(rank[columns])
    # Ahead of an entry are the earlier ones that are at least as similar, and the later ones that
    # are more similar.
    values = row[columns]
    ranks = [
        1 + np.count_nonzero(row[:column] >= value) + np.count_nonzero(row[column:] > value)
        for column, value in zip(columns.tolist(), values, strict=True)
    ]
    return np.sort(np.array(ranks, dtype=np.int64))


def check_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """Return the ranks as a tuple.

    Raises:
        UserError: they are not ascending positive whole numbers.
    """
    whole = all(isinstance(k, int | np.integer) and not isinstance(k, bool) for k in ranks)
    if not (ranks and whole and ranks[0] >= 1 and list(ranks) == sorted(set(ranks))):
        raise UserError(
            "ranks (TEST.RANKS) must be positive whole numbers in ascending order, got "
            f"{list(ranks)}"
        )
    return tuple(int(k) for k in ranks)


def _features(features: torch.Tensor | np.ndarray, what: str) -> torch.Tensor:
    """Features as float32 on the CPU, ``[N, D]`` or ``[N, P, D]``."""
    features = torch.as_tensor(features).detach().to("cpu", torch.float32)
    if features.ndim not in (2, 3):
        raise ValueError(f"{what} features must be [N, D] or [N, P, D], got {list(features.shape)}")
    if len(features) == 0:
        raise UserError(
            f"the {what} set is empty: check the dataset's files and the minimum length "
            "(MIN_FRAMES)"
        )
    check_features(features, what)
    return features


def _matrix(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    if values.ndim != 2:
        raise ValueError(f"similarity must be a matrix, got {list(values.shape)}")
    if 0 in values.shape:
        raise UserError(
            f"{values.shape[0]} queries and {values.shape[1]} gallery entries: nothing to rank"
        )
    return values


def _labels(size: int, pids: ArrayLike, camids: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    pids, camids = np.asarray(pids), np.asarray(camids)
    if pids.shape != (size,) or camids.shape != (size,):
        raise ValueError(
            f"{size} entries need as many pids and camids, got {pids.shape} and {camids.shape}"
        )
    return pids, camids


def _why_no_match(q_pids: np.ndarray, g_pids: np.ndarray) -> str:
    query, gallery = np.unique(q_pids), np.unique(g_pids)
    shared = np.intersect1d(query, gallery)
    if len(shared):
        return (
            f"the camera rule leaves no query with a match: {len(shared)} identities are in query "
            f"and gallery ({shorten(shared)}), but only under the query's own camera; check the "
            "camera numbers, or switch the rule off (TEST.CAMERA_FILTER False)"
        )
    return (
        f"no query identity appears in the gallery: {len(query)} query pids ({shorten(query)}), "
        f"{len(gallery)} gallery pids ({shorten(gallery)}); check that both lists number "
        "identities alike and that the minimum length (DATASETS.MIN_FRAMES) has not emptied one "
        "side; the camera rule (TEST.CAMERA_FILTER) is not the cause"
    )
