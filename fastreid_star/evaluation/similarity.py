"""The similarity of two features, and the order that it gives: for evaluation, gallery and report.

Letters: Q queries, G gallery entries, N tracklets, P parts of a feature, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from fastreid_star.errors import UserError


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Scale features ``[N, D]`` to unit length. Features of parts ``[N, P, D]`` are unchanged."""
    return F.normalize(features, dim=1) if features.ndim == 2 else features


def similarity(
    query: torch.Tensor, gallery: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The similarity of every query to every gallery entry; larger is more similar.

    Features of one vector are compared by their dot product, which is the cosine once they are
    normalized. Features of parts are compared by minus the mean Euclidean distance of their parts::

        s(q, g) = q . g                              for [N, D]
        s(q, g) = -1/P sum_p |q_p - g_p|             for [N, P, D]

    The distances are summed part by part in float64: the memory needed is 8 Q G bytes, so call this
    function for blocks of queries.

    Args:
        query: ``[Q, D]`` or ``[Q, P, D]``, float32 on the CPU.
        gallery: ``[G, D]`` or ``[G, P, D]``.
        out: ``[Q, G]``, where to write the result.

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
    if query.ndim == 2:
        return torch.mm(query, gallery.T, out=out)
    total = torch.zeros(len(query), len(gallery), dtype=torch.float64)
    for part in range(query.shape[1]):
        total += torch.cdist(query[:, part].double(), gallery[:, part].double())
    found = (total / -query.shape[1]).float()
    return found if out is None else out.copy_(found)


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
    count = similarity.shape[1]
    k = min(k, count)
    order = np.empty((len(similarity), k), np.int64)
    for row, values in enumerate(similarity):
        # All entries at least as similar as the k-th: a few more than k where there are ties.
        candidates = np.flatnonzero(values >= np.partition(values, count - k)[count - k])
        order[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return order


def check_features(features: torch.Tensor, what: str) -> None:
    """Raise an error if a feature is NaN or infinite.

    Args:
        features: ``[N, D]`` or ``[N, P, D]``.
        what: whose features they are, for the message, e.g. ``query``.

    Raises:
        UserError: with the number of broken features and their indexes.
    """
    features = features.flatten(1)
    # A sum is finite unless a value is not, or the sum overflows: one pass over the features
    # instead of several.
    if not torch.isfinite(features.sum(dim=1)).all():
        check_finite(torch.isfinite(features).all(dim=1).numpy(), f"{what} features")


def check_finite(finite: np.ndarray, what: str) -> None:
    """Raise a UserError that names the entries of a bool array that are False."""
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise UserError(
            f"{what}: {len(bad)} of {len(finite)} tracklets have NaN or infinite values, index "
            f"{shorten(bad)}; training has diverged or half precision has overflowed: check the "
            "training loss, try a lower learning rate or float32"
        )


def shorten(values: Sequence | np.ndarray, limit: int = 8) -> str:
    """The first values as text, and an ellipsis if there are more: ``1, 2, 3, ...``."""
    shown = ", ".join(str(value) for value in values[:limit])
    return shown + (", ..." if len(values) > limit else "")
