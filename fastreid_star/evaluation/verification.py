"""Same person or not: pairs of tracklets that are accepted, and queries whose person is not there.

A pair of an infrared and a visible tracklet is accepted as one person if its similarity s is above
a threshold t:

    FPR(t) = share of the pairs of two people with s > t         false accepts
    TPR(t) = share of the pairs of one person with s > t         true accepts
    EER    = FPR(t) = 1 - TPR(t), between two thresholds by linear interpolation

TPR at a given FPR is the largest TPR whose FPR is not above it.

Open set (S. Liao et al. "Open-set person re-identification". 2014): a query is answered with the
first entry of its ranked list if that similarity is above t, and with "nobody" otherwise:

    DIR(t) = share of the queries with a match whose first entry is a match with s > t
    FAR(t) = share of the queries without their person in the gallery that are answered

For FAR each query is ranked once more, without all entries of its identity. This needs no second
ranking: its first entry is then its most similar entry of another identity.

Pairs and matches follow the camera rule of :mod:`~fastreid_star.evaluation.retrieval`. Letters: Q
queries, G gallery entries.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

from fastreid_star.errors import UserError
from fastreid_star.evaluation.retrieval import removed_entries
from fastreid_star.evaluation.similarity import BLOCK_SIZE
from fastreid_star.structures import Tracklet

if TYPE_CHECKING:
    from fastreid_star.evaluation.results import CrossModalResults

RATES = (0.1, 0.01, 0.001)  # false accepts at which results are given


def threshold_at(scores: np.ndarray, rate: float) -> float:
    """The lowest threshold that at most this share of the scores exceeds.

    Args:
        scores: ``[n]``, ascending; not empty.
        rate: from 0 to below 1.
    """
    exceeding = math.floor(rate * len(scores) + 1e-9)  # 0.29 * 100 is below 29 in floating point
    return float(scores[max(len(scores) - 1 - exceeding, 0)])


def count_above(scores: np.ndarray, threshold: float) -> int:
    """How many scores ``[n]``, ascending, exceed a threshold."""
    # in the type of the scores: with another one NumPy would convert all of them
    place = np.searchsorted(scores, scores.dtype.type(threshold), side="right")
    return len(scores) - int(place)


def share_above(scores: np.ndarray, threshold: float) -> float:
    """:func:`count_above` as a share of all scores."""
    return count_above(scores, threshold) / len(scores)


@dataclass(frozen=True, eq=False)
class Pairs:
    """The similarities of labeled pairs. Both arrays are sorted here, in place.

    Args:
        same: of the pairs of one person.
        different: of the pairs of two people.

    Raises:
        UserError: one kind is missing.
    """

    same: np.ndarray
    different: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.same) or not len(self.different):
            raise UserError(
                f"{len(self.same):,} pairs of one person and {len(self.different):,} of two: both "
                "kinds are needed to tell whether two tracklets show the same person"
            )
        self.same.sort()
        self.different.sort()

    def true_accepts(self, rate: float) -> float:
        """TPR at the FPR `rate`."""
        return share_above(self.same, threshold_at(self.different, rate))

    def equal_error_rate(self) -> float:
        """EER, see the top of this module."""

        def errors(threshold: float) -> tuple[float, float]:
            return share_above(self.different, threshold), 1 - share_above(self.same, threshold)

        def crossed(threshold: float) -> bool:
            accepted, rejected = errors(threshold)
            return rejected >= accepted

        # FPR falls and 1 - TPR rises with the threshold: from one score to the next they cross.
        before, after = [-math.inf], []
        for scores in (self.same, self.different):
            place = bisect_left(scores, True, key=crossed)
            before += scores[max(place - 1, 0) : place].tolist()
            after += scores[place : place + 1].tolist()
        (fpr, fnr), (next_fpr, next_fnr) = errors(max(before)), errors(min(after))
        part = (fpr - fnr) / ((fpr - fnr) + (next_fnr - next_fpr))
        return fpr + part * (next_fpr - fpr)

    def curve(self, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
        """The ROC curve: FPR, from one false accept to 1 in equal steps of its logarithm, and TPR.

        Args:
            points: the largest number of points.
        """
        count = len(self.different)
        accepted = np.unique(np.geomspace(1, count, points).round().astype(int))[:-1]
        thresholds = [threshold_at(self.different, number / count) for number in accepted]
        curves = [
            [*(share_above(scores, threshold) for threshold in thresholds), 1.0]
            for scores in (self.different, self.same)
        ]
        return np.array(curves[0]), np.array(curves[1])


@dataclass(frozen=True, eq=False)
class OpenSet:
    """What the ranked lists of one direction would answer.

    Args:
        queries: number of queries with a match.
        found: the first similarity of those whose first entry is a match, ascending.
        others: ``[Q]``, the similarity of each query's first entry of another person, ascending;
            -inf if there is none.
    """

    queries: int
    found: np.ndarray
    others: np.ndarray

    def identified(self, rate: float) -> float:
        """DIR at the FAR `rate`."""
        return count_above(self.found, threshold_at(self.others, rate)) / self.queries


@dataclass(frozen=True, eq=False)
class Verification:
    """The pairs of both directions, and the open set of each."""

    pairs: Pairs
    open_set: dict[str, OpenSet]

    def metrics(self) -> dict[str, float]:
        """Percentages: ``ROC/TPR@FPR=1e-02``, ``ROC/EER``, ``DIR/I2V@FAR=1e-02`` and others."""
        found = {f"ROC/TPR@FPR={rate:.0e}": self.pairs.true_accepts(rate) for rate in RATES}
        found["ROC/EER"] = self.pairs.equal_error_rate()
        for way, direction in self.open_set.items():
            found |= {f"DIR/{way}@FAR={rate:.0e}": direction.identified(rate) for rate in RATES}
        return {name: 100 * value for name, value in found.items()}

    def rows(self) -> list[tuple[str, list[float]]]:
        """What is measured, and its percentages at each of RATES."""
        metrics = self.metrics()
        rows = [("TPR of the pairs", "ROC/TPR@FPR")]
        rows += [(f"DIR, {way}", f"DIR/{way}@FAR") for way in self.open_set]
        return [(name, [metrics[f"{key}={rate:.0e}"] for rate in RATES]) for name, key in rows]

    def table(self) -> str:
        """The numbers of pairs, the equal error rate, and :meth:`rows` as a plain-text table."""
        pairs = self.pairs
        head = [f"at {100 * rate:g} % false accepts" for rate in RATES]
        return (
            f"{len(pairs.same):,} infrared-visible pairs of one person, {len(pairs.different):,} "
            f"of two, equal error rate {100 * pairs.equal_error_rate():.2f} %\n"
        ) + tabulate(
            [[name, *values] for name, values in self.rows()],
            headers=["%", *head],
            tablefmt="pipe",
            floatfmt=".2f",
        )


def verify(results: CrossModalResults, tracklets: Sequence[Tracklet]) -> Verification:
    """The pairs and the open set of an evaluation, from the similarities that it has ranked by.

    The pairs of both directions are pooled. If both directions have the same tracklets, a pair
    counts once. With trials they are those of the first trial. A block of queries is compared at a
    time; the pairs take 4 bytes each.

    Args:
        results: of both directions.
        tracklets: all test tracklets.

    Raises:
        UserError: there are no pairs of one person, or of two.
    """
    pids, camids = (np.array([getattr(t, name) for t in tracklets]) for name in ("pid", "camid"))
    i2v, v2i = results.i2v, results.v2i
    shared = v2i is not None and np.may_share_memory(i2v.similarity, v2i.similarity)
    skipped = results.trials.skipped if results.trials else ()
    same, different, open_set = [], [], {}
    for way, (result, query, gallery) in results.directions().items():
        best = np.empty(len(query), np.float32)
        for start in range(0, len(query), BLOCK_SIZE):
            rows = slice(start, start + BLOCK_SIZE)
            values = np.ascontiguousarray(result.similarity[rows])
            match = pids[query[rows], None] == pids[gallery]
            removed = removed_entries(
                *(pids[query[rows]], pids[gallery], camids[query[rows]], camids[gallery]),
                camera_filter=results.camera_filter,
                skipped=skipped,
            )
            best[rows] = np.where(match | removed, np.float32(-np.inf), values).max(axis=1)
            if way == "V2I" and shared:  # the pairs of I2V
                continue
            different.append(values[~match & ~removed])
            same.append(values[match & ~removed])
        each = result.per_query
        found = each.top1_similarity[each.first_match == 1].astype(np.float32)
        open_set[way] = OpenSet(int(each.valid.sum()), np.sort(found), np.sort(best))
    return Verification(Pairs(np.concatenate(same), np.concatenate(different)), open_set)
