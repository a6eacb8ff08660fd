"""Retrieval measures: CMC, mean average precision, mean inverse negative penalty.

Letters: Q queries, G gallery entries, P parts of a feature, D feature width. Let r_1 < ... < r_M be
the ranks, counted from one, of a query's M matches, which are the gallery entries of its identity.
Then

    CMC_k = mean over queries [r_1 <= k]
    AP    = 1/M sum_m m / r_m          without interpolation; mAP is the mean over queries
    INP   = M / r_M                    mINP is the mean over queries

Camera rule: gallery entries with the identity and the camera of the query are removed for this
query. They are no matches and take no rank. A protocol may also skip all entries of some cameras. A
query without any match is left out of all means and is counted separately.

Some protocols count identities in the CMC: r_1 is then 1 plus the number of other identities that
have an entry ahead of the first match. AP and INP are the same.

Ties: entries of exactly equal similarity keep the gallery's order. The rule does not depend on
which entry is a match. Similarities are float32: two values that are equal in exact arithmetic may
differ in the last bit, which then decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from fastreid_star.errors import UserError
from fastreid_star.evaluation.similarity import shorten

DEFAULT_RANKS = (1, 5, 10, 20)
# Up to so many matches of a query, counting the entries ahead of each is faster than sorting the
# gallery.
_COUNTED = 64


@dataclass(frozen=True, eq=False)
class QueryResults:
    """The measures of each query. All arrays are ``[Q]``; fractions, not percent.

    Args:
        n_matches: M, the number of matches after the camera rule.
        first_match: r_1, the rank of the first match, perhaps in identities; 0 if there is none.
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

    @property
    def valid(self) -> np.ndarray:
        """Bool ``[Q]``: the queries that have a match. All means are taken over these."""
        return self.n_matches > 0


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """The measures of one direction of retrieval. Fractions, not percent.

    Args:
        ranks: the k of `cmc`, ascending.
        cmc: CMC_k at each of `ranks`.
        mAP, mINP: means over the valid queries; these and `cmc` are means over the trials, if there
            are several.
        identities: the number of identities among the queries.
        per_query: the measures of each query, of the first trial.
        similarity: ``[Q, G]``, by which the gallery was ranked, of the first trial.
    """

    ranks: tuple[int, ...]
    cmc: tuple[float, ...]
    mAP: float
    mINP: float
    identities: int
    per_query: QueryResults
    similarity: np.ndarray


def evaluate_retrieval(
    similarity: np.ndarray,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    camera_filter: bool = True,
    skipped: Collection[tuple[int, int]] = (),
    by_identity: bool = False,
) -> RetrievalResult:
    """Rank the gallery for every query.

    Args:
        similarity: ``[Q, G]``, finite; larger is more similar. See
            :func:`~fastreid_star.evaluation.similarity.similarity`.
        q_pids, q_camids: ``[Q]``, identity and camera of each query.
        g_pids, g_camids: ``[G]``, the same of each gallery entry.
        ranks: the k at which CMC is reported.
        camera_filter: apply the camera rule.
        skipped: pairs of cameras, of a query and of a gallery entry, that are not compared.
        by_identity: count identities in the CMC.

    Raises:
        UserError: there are no queries or no gallery entries, no query has a match, or `ranks` are
            not ascending positive numbers.
    """
    ranks = check_ranks(ranks)
    if 0 in similarity.shape:
        queries, entries = similarity.shape
        raise UserError(f"{queries} queries and {entries} gallery entries: nothing to rank")
    labels = (q_pids, g_pids, q_camids, g_camids)
    rules = {"camera_filter": camera_filter, "skipped": skipped, "by_identity": by_identity}
    per_query = rank_queries(similarity, *labels, **rules)
    valid = per_query.valid
    if not valid.any():
        raise UserError(_why_no_match(np.asarray(q_pids), np.asarray(g_pids)))
    return RetrievalResult(
        ranks=ranks,
        cmc=tuple(float(np.mean(per_query.first_match[valid] <= rank)) for rank in ranks),
        mAP=float(np.mean(per_query.ap[valid])),
        mINP=float(np.mean(per_query.inp[valid])),
        identities=len(np.unique(q_pids)),
        per_query=per_query,
        similarity=similarity,
    )


def mean_over_trials(results: Iterable[RetrievalResult]) -> RetrievalResult:
    """The first result with the means of all results as its measures.

    Args:
        results: one a trial. Of those after the first only the measures are kept.
    """
    results = iter(results)
    first = next(results)
    measures = [(*r.cmc, r.mAP, r.mINP) for r in (first, *results)]
    if len(measures) == 1:
        return first
    *cmc, mAP, mINP = np.mean(measures, axis=0).tolist()
    return replace(first, cmc=tuple(cmc), mAP=mAP, mINP=mINP)


def removed_entries(
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    camera_filter: bool,
    skipped: Collection[tuple[int, int]] = (),
) -> np.ndarray:
    """Bool ``[Q, G]``: the entries that are left out for each query.

    The arguments are those of :func:`evaluate_retrieval`.
    """
    queries, entries = np.asarray(q_camids)[:, None], np.asarray(g_camids)
    removed = np.zeros((len(queries), len(entries)), dtype=bool)
    if camera_filter:
        removed |= (np.asarray(q_pids)[:, None] == np.asarray(g_pids)) & (queries == entries)
    for of_query, of_entry in skipped:
        removed |= (queries == of_query) & (entries == of_entry)
    return removed


def rank_queries(
    similarity: np.ndarray,
    q_pids: ArrayLike,
    g_pids: ArrayLike,
    q_camids: ArrayLike,
    g_camids: ArrayLike,
    *,
    camera_filter: bool = True,
    skipped: Collection[tuple[int, int]] = (),
    by_identity: bool = False,
) -> QueryResults:
    """The measures of each query. The arguments are those of :func:`evaluate_retrieval`."""
    # A copy in row order: the rules about cameras write into it.
    similarity = np.array(similarity, order="C")
    labels = (q_pids, g_pids, q_camids, g_camids)
    removed = removed_entries(*labels, camera_filter=camera_filter, skipped=skipped)
    g_pids = np.asarray(g_pids)
    match = (np.asarray(q_pids)[:, None] == g_pids) & ~removed  # [Q, G]
    similarity[removed] = -np.inf  # behind all others, where it takes no rank from them
    n_matches = match.sum(axis=1)
    first_match = np.zeros(len(similarity), dtype=np.int64)
    ap, inp = np.full((2, len(similarity)), np.nan)
    for row in np.flatnonzero(n_matches).tolist():
        columns = np.flatnonzero(match[row])
        ranks = _ranks(similarity[row], columns)
        first_match[row] = ranks[0]
        if by_identity:
            first_match[row] = _rank_in_identities(similarity[row], columns, g_pids)
        ap[row] = (np.arange(1, len(ranks) + 1) / ranks).mean()
        inp[row] = len(ranks) / ranks[-1]

    top1 = similarity.argmax(axis=1)  # the first of equal ones
    top1_similarity = similarity.max(axis=1).astype(np.float64)
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


def _rank_in_identities(row: np.ndarray, columns: np.ndarray, g_pids: np.ndarray) -> int:
    """1 plus the number of identities ahead of the first of the matches `columns`."""
    first = columns[row[columns].argmax()]  # of equal ones the earliest
    ahead = row > row[first]
    ahead[:first] |= row[:first] == row[first]
    return 1 + len(np.unique(g_pids[ahead]))


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
