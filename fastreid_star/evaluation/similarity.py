"""The similarity of two features, and the order that it gives: for evaluation, gallery and report.

Letters: Q queries, G gallery entries, N tracklets, P parts of a feature, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from fastreid_star.errors import UserError

BLOCK_SIZE = 512  # queries that are compared at once: limits the memory, not the result


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Scale features ``[N, D]`` to unit length. Features of parts ``[N, P, D]`` are unchanged."""
    return F.normalize(features, dim=1) if features.ndim == 2 else features


def similarity(query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """The similarity of every query to every gallery entry; larger is more similar.

    Features of one vector are compared by their dot product, which is the cosine once they are
    normalized. Features of parts are compared by minus the mean Euclidean distance of their parts,
    which are summed in float64::

        s(q, g) = q . g                              for [N, D]
        s(q, g) = -1/P sum_p |q_p - g_p|             for [N, P, D]

    Args:
        query: ``[Q, D]`` or ``[Q, P, D]``, float32 on the CPU.
        gallery: ``[G, D]`` or ``[G, P, D]``.

    Returns:
        float32 ``[Q, G]``.

    Raises:
        ValueError: the features of both sides have different shapes.
    """
    if query.shape[1:] != gallery.shape[1:] or query.ndim not in (2, 3):
        raise ValueError(
            f"query features {list(query.shape)} and gallery features {list(gallery.shape)} must "
            "both be [N, D] or both [N, P, D]"
        )
    if query.ndim == 3:
        return mean_distances(query, gallery).neg_().float()
    found = torch.empty(len(query), len(gallery))
    for rows, block in zip(found.split(BLOCK_SIZE), query.split(BLOCK_SIZE), strict=True):
        torch.mm(block, gallery.T, out=rows)
    return found


def pair_similarity(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """:func:`similarity` of two features ``[D]`` or ``[P, D]``, of any length, with a gradient."""
    if one.ndim == 1:
        return F.cosine_similarity(one, other, dim=0)
    return -(one - other).norm(dim=1).mean()


def mean_distances(query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """The Euclidean distance, or the mean distance of the parts; float64 ``[Q, G]``.

    One part in float64 is in memory at a time.

    Args:
        query, gallery: ``[N, D]`` or ``[N, P, D]`` each.
    """
    if query.ndim == 2:
        query, gallery = query[:, None], gallery[:, None]
    total = torch.zeros(len(query), len(gallery), dtype=torch.float64)
    buffer = torch.empty(min(BLOCK_SIZE, len(query)), len(gallery), dtype=torch.float64)
    for q, g in zip(query.unbind(1), gallery.unbind(1), strict=True):
        q, g = q.double(), g.double()
        squares = q.square().sum(1, keepdim=True), g.square().sum(1, keepdim=True)
        # |q|^2 + |g|^2 - 2 q.g as one product of matrices
        left = torch.cat([-2 * q, squares[0], torch.ones_like(squares[0])], dim=1)
        right = torch.cat([g, torch.ones_like(squares[1]), squares[1]], dim=1)
        for rows, block in zip(total.split(BLOCK_SIZE), left.split(BLOCK_SIZE), strict=True):
            distances = torch.mm(block, right.T, out=buffer[: len(block)])
            rows += distances.clamp_(min=0).sqrt_()
    return total.div_(query.shape[1])


def first_ranked(similarity: np.ndarray, k: int) -> np.ndarray:
    """The positions of the k most similar entries of each row, most similar first.

    Entries of exactly equal similarity keep the gallery's order. This is the rule by which the
    evaluation counts ranks, see :mod:`fastreid_star.evaluation.retrieval`.

    Args:
        similarity: ``[Q, G]``. Entries that must not be ranked are ``-inf``, and come last.
        k: the length of each list; at most G.

    Returns:
        int64 ``[Q, min(k, G)]``.
    """
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def check_features(features: torch.Tensor, what: str) -> None:
    """Raise an error if a feature is NaN or infinite.

    Args:
        features: ``[N, D]`` or ``[N, P, D]``.
        what: whose features they are, for the message, e.g. ``query``.

    Raises:
        UserError: with the number of broken features and their indexes.
    """
    bad = torch.nonzero(~features.flatten(1).isfinite().all(dim=1)).flatten().tolist()
    if bad:
        raise UserError(
            f"{what} features: {len(bad)} of {len(features)} tracklets have NaN or infinite "
            f"values, index {shorten(bad)}; training has diverged or half precision has "
            "overflowed: check the training loss, try a lower learning rate or float32"
        )


def shorten(values: Sequence | np.ndarray, limit: int = 8) -> str:
    """The first values as text, and an ellipsis if there are more: ``1, 2, 3, ...``."""
    shown = ", ".join(str(value) for value in values[:limit])
    return shown + (", ..." if len(values) > limit else "")
