"""Which re-ranking the evaluation, the gallery and the report apply, and its similarities."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from fastreid.config import CfgNode

from fastreid_star.errors import UserError
from fastreid_star.evaluation.k_reciprocal import (
    expand,
    k_reciprocal_distances,
    temporal_distances,
)
from fastreid_star.evaluation.similarity import similarity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reranking:
    """What is done to the features of queries and gallery before they are ranked.

    Args:
        expansion: repetitions, k and alpha of :func:`~.k_reciprocal.expand`; None: no expansion.
        k_reciprocal: k1, k2 and the weight of :func:`~.k_reciprocal.k_reciprocal_distances`; None:
            features are compared as without re-ranking.
        temporal: compare by :func:`~.k_reciprocal.temporal_distances` instead.
    """

    expansion: tuple[int, int, float] | None = None
    k_reciprocal: tuple[int, int, float] | None = None
    temporal: bool = False

    @property
    def views(self) -> int:
        """Features of a tracklet: of all frames, and for `temporal` of both halves as well."""
        return 3 if self.temporal else 1

    @property
    def changes_distances(self) -> bool:
        """Whether :meth:`similarity` is minus a distance, and not that of the features."""
        return self.temporal or self.k_reciprocal is not None

    def __str__(self) -> str:
        parts = []
        if self.expansion is not None:
            times, k, alpha = self.expansion
            repeated = f", {times} times" if times > 1 else ""
            parts.append(f"average query expansion (k {k}, alpha {alpha:g}{repeated})")
        if self.k_reciprocal is not None:
            k1, k2, weight = self.k_reciprocal
            parts.append(f"k-reciprocal (k1 {k1}, k2 {k2}, lambda {weight:g})")
        if self.temporal:
            parts.append("temporal (BUPTCampus)")
        return " and ".join(parts) or "none"

    def similarity(self, query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """The similarity of every query to every gallery entry; larger is more similar.

        Args:
            query: ``[views, Q, ...]``, features of all frames, then of the halves, as
                :func:`~.similarity.normalize` scales them; float32 on the CPU.
            gallery: ``[views, G, ...]``.

        Returns:
            float32 ``[Q, G]``: that of the expanded features, or minus the re-ranked distance.
        """
        pairs = list(zip(query, gallery, strict=True))
        if self.expansion is not None:
            times, k, alpha = self.expansion
            pairs = [expand(q, g, times=times, k=k, alpha=alpha) for q, g in pairs]
        if not self.changes_distances:
            return similarity(*pairs[0])
        logger.info("Re-ranking %d queries and %d gallery entries", query.shape[1], len(gallery[0]))
        if self.temporal:
            queries, entries = (torch.stack(side) for side in zip(*pairs, strict=True))
            return torch.from_numpy(-temporal_distances(queries, entries))
        assert self.k_reciprocal is not None
        k1, k2, weight = self.k_reciprocal
        found = k_reciprocal_distances(*pairs[0], k1=k1, k2=k2, weight=weight)
        return torch.from_numpy(-found)


def build_reranking(cfg: CfgNode) -> Reranking:
    """The re-ranking of ``TEST.AQE`` and ``TEST.RERANK``.

    Raises:
        UserError: a number is out of range, or both re-rankings are switched on.
    """
    aqe, rerank = cfg.TEST.AQE, cfg.TEST.RERANK
    expansion = k_reciprocal = None
    if aqe.ENABLED:
        expansion = (aqe.QE_TIME, aqe.QE_K, float(aqe.ALPHA))
        if min(expansion[:2]) < 1 or expansion[2] < 0:
            raise UserError(
                f"TEST.AQE: QE_TIME is {aqe.QE_TIME}, QE_K is {aqe.QE_K} and ALPHA is {aqe.ALPHA}: "
                "set both numbers to 1 or more, and ALPHA to 0 or more"
            )
    if rerank.ENABLED and rerank.TEMPORAL:
        raise UserError(
            "TEST.RERANK.ENABLED and TEST.RERANK.TEMPORAL are two re-rankings: switch one off"
        )
    if rerank.ENABLED:
        k_reciprocal = (rerank.K1, rerank.K2, float(rerank.LAMBDA))
        if min(k_reciprocal[:2]) < 1 or not 0 <= k_reciprocal[2] <= 1:
            raise UserError(
                f"TEST.RERANK: K1 is {rerank.K1}, K2 is {rerank.K2} and LAMBDA is {rerank.LAMBDA}: "
                "set K1 and K2 to 1 or more, and LAMBDA to a share from 0 to 1"
            )
    return Reranking(expansion, k_reciprocal, rerank.TEMPORAL)
