"""k-reciprocal re-ranking and query expansion, in blocks of rows and with sparse matrices.

    Z. Zhong et al. "Re-ranking person re-identification with k-reciprocal encoding". CVPR 2017.
    O. Chum et al. "Total recall". ICCV 2007 (average query expansion).

Letters: Q queries, G gallery entries, N = Q + G, P parts of a feature, D feature width.

The distance d of two features is the one that ranks without re-ranking: the Euclidean distance of
unit vectors ``[N, D]``, whose square is 2 - 2 cos, and the mean distance of the parts for
``[N, P, D]``. All N features, queries first, are neighbors of each other. Ties, which are squared
distances equal to ten decimals, keep this order. No N x N matrix is in memory.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array

from fastreid_star.evaluation.similarity import BLOCK_SIZE, mean_distances, normalize

_DECIMALS = 10  # of squared distances: rounding errors are much smaller


def nearest(features: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest features of each feature, itself included, and its squared radius.

    Args:
        features: ``[N, D]`` or ``[N, P, D]``.
        k: number of neighbors; at most N.

    Returns:
        int64 ``[N, min(k, N)]``, nearest first; float64 ``[N]``, the largest squared distance.
    """
    k = min(k, len(features))
    order = np.empty((len(features), k), np.int64)
    radius = np.empty(len(features))
    for start in range(0, len(features), BLOCK_SIZE):
        block = mean_distances(features[start : start + BLOCK_SIZE], features)
        squared = torch.round(block.square_(), decimals=_DECIMALS).numpy()
        radius[start : start + len(squared)] = squared.max(axis=1)
        last = np.partition(squared, k - 1, axis=1)[:, k - 1]
        for number, row in enumerate(squared):
            within = np.flatnonzero(row <= last[number])  # k, or more of equal distance
            order[start + number] = within[np.argsort(row[within], kind="stable")[:k]]
    return order, radius


def expand(
    query: torch.Tensor, gallery: torch.Tensor, *, times: int = 1, k: int = 5, alpha: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average query expansion of the queries and of the gallery::

        f_i <- sum_j w_ij f_j / sum_j w_ij,   w_ij = max(0, cos(f_i, f_j))^alpha

    j runs over the k nearest features of i, itself included. The cosine of features of parts is
    that of their concatenated parts. Features ``[N, D]`` are scaled to unit length each time.

    Args:
        query: ``[Q, D]`` or ``[Q, P, D]``, float32.
        gallery: ``[G, D]`` or ``[G, P, D]``.
        times: how often the expansion is repeated.
        k: number of features that are averaged.
        alpha: exponent of the weights; 0: a plain mean.
    """
    features = normalize(torch.cat([query, gallery]))
    for _ in range(times):
        order, _ = nearest(features, k)
        flat = torch.nn.functional.normalize(features.double().flatten(1)).numpy()
        known, new = features.numpy(), np.empty(features.shape, np.float32)
        for row, near in enumerate(order):
            weights = np.clip(flat[near] @ flat[row], 0, None) ** alpha
            total = weights.sum()
            mean = np.tensordot(weights, known[near], 1)
            new[row] = mean / total if total > 0 else known[row]  # a feature of zeros has no cosine
        features = normalize(torch.from_numpy(new))
    return features[: len(query)], features[len(query) :]


def jaccard_distances(
    query: torch.Tensor, gallery: torch.Tensor, *, k1: int, k2: int, squared: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The Jaccard distances of the k-reciprocal encodings of queries and gallery.

    1. R(i, k): the j among the k + 1 nearest features of i that have i among theirs. R*(i) is R(i,
       k1) with the R(c, k1 / 2) of each c in R(i, k1) of which more than two thirds lie in it.
    2. V_ij = exp(-d_ij^2 / max_j d_ij^2) for j in R*(i), 0 elsewhere, scaled to a sum of 1.
    3. V_i <- the mean of V over the k2 nearest features of i.
    4. J(q, g) = 1 - m / (2 - m), m = sum_j min(V_qj, V_gj).

    Args:
        query: ``[Q, D]`` or ``[Q, P, D]``, of unit length if ``[Q, D]``.
        gallery: ``[G, D]`` or ``[G, P, D]``.
        k1, k2: see above; 1 or more.
        squared: False: step 2 takes d / max d.

    Returns:
        J, float32 ``[Q, G]``; the largest squared distance of each query to any feature ``[Q]``.
    """
    features = torch.cat([query, gallery])
    order, radius = nearest(features, max(k1 + 1, k2))
    encoded = _encode(features, order, radius, k1, squared)
    if k2 > 1:
        encoded = _mean_of(order[:, :k2]) @ encoded
    return _jaccard(encoded, len(query)), radius[: len(query)]


def k_reciprocal_distances(
    query: torch.Tensor, gallery: torch.Tensor, *, k1: int = 20, k2: int = 6, weight: float = 0.3
) -> np.ndarray:
    """Zhong et al.'s distance ``(1 - weight) J + weight d^2 / max d^2``, float32 ``[Q, G]``.

    Args:
        query, gallery, k1, k2: see :func:`jaccard_distances`; the largest distance is each query's.
        weight: lambda, the share of the distance without re-ranking.
    """
    found, radius = jaccard_distances(query, gallery, k1=k1, k2=k2)
    found *= 1 - weight
    for start in range(0, len(query) if weight else 0, BLOCK_SIZE):
        rows = slice(start, start + BLOCK_SIZE)
        plain = mean_distances(query[rows], gallery).square_().numpy()
        found[rows] += weight * plain / np.maximum(radius[rows, None], 1e-12)
    return found


def temporal_distances(query: torch.Tensor, gallery: torch.Tensor) -> np.ndarray:
    """BUPTCampus' temporal re-ranking, float32 ``[Q, G]``::

        0.8 d(q, g) + 0.2 J(q, g) + 0.1 J(q1, g2) + 0.1 J(q2, g1)

    q1 and q2 are the features of the first and the second half of the frames. J has k1 5 and k2 3,
    and takes distances that are not squared, as in the authors' program; its 16-bit numbers and
    the 1e-5 that it adds below the root are left out.

        Y. Du et al. "Video-based visible-infrared person re-identification with auxiliary samples".
        IEEE TIFS 19, 2024.

    Args:
        query: ``[3, Q, ...]``, the features of all frames and of both halves.
        gallery: ``[3, G, ...]``.
    """
    found = mean_distances(query[0], gallery[0]).float().numpy()
    found *= 0.8
    for weight, q, g in ((0.2, 0, 0), (0.1, 1, 2), (0.1, 2, 1)):
        distances, _ = jaccard_distances(query[q], gallery[g], k1=5, k2=3, squared=False)
        found += weight * distances
    return found


def _encode(
    features: torch.Tensor, order: np.ndarray, radius: np.ndarray, k1: int, squared: bool
) -> csr_array:
    """V of step 2, ``[N, N]``. A feature that is not among its own neighbors may have no entry."""
    wide, narrow = _reciprocal(order, k1), _reciprocal(order, round(k1 / 2))
    shared = (wide @ narrow.T).multiply(wide).tocsr()
    sizes = narrow.sum(axis=1)
    shared.data = np.where(3 * shared.data > 2 * sizes[shared.indices], 1, 0)
    encoded = csr_array(wide + shared @ narrow, dtype=np.float64)
    encoded.eliminate_zeros()
    known = features.numpy() if features.ndim == 3 else features[:, None].numpy()
    for row in range(len(known)):
        near = slice(encoded.indptr[row], encoded.indptr[row + 1])
        gap = known[encoded.indices[near]].astype(np.float64) - known[row]
        distance = np.linalg.norm(gap, axis=-1).mean(-1)
        ratio = distance**2 / max(radius[row], 1e-12)
        weights = np.exp(-ratio if squared else -np.sqrt(ratio))
        encoded.data[near] = weights / weights.sum()
    return encoded


def _reciprocal(order: np.ndarray, k: int) -> csr_array:
    """R(i, k) as a matrix of ones ``[N, N]``."""
    near = order[:, : k + 1]
    ends = np.arange(0, near.size + 1, near.shape[1])
    ones = np.ones(near.size, np.int64)
    found = csr_array((ones, near.ravel(), ends), shape=(len(order), len(order)))
    return csr_array(found.multiply(found.T))


def _mean_of(near: np.ndarray) -> csr_array:
    """The matrix that averages the rows `near` ``[N, k]``."""
    ends = np.arange(0, near.size + 1, near.shape[1])
    shares = np.full(near.size, 1 / near.shape[1])
    return csr_array((shares, near.ravel(), ends), shape=(len(near), len(near)))


def _jaccard(encoded: csr_array, queries: int) -> np.ndarray:
    """J of step 4: for each query only the gallery entries that share a neighbor with it."""
    rows, columns = encoded[:queries], encoded[queries:].tocsc()
    size = encoded.shape[0] - queries
    found = np.empty((queries, size), np.float32)
    for query in range(queries):
        near = slice(rows.indptr[query], rows.indptr[query + 1])
        starts, ends = columns.indptr[rows.indices[near]], columns.indptr[rows.indices[near] + 1]
        counts = ends - starts
        # the positions of these columns' values, one after another
        places = np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        shares = np.minimum(np.repeat(rows.data[near], counts), columns.data[places])
        common = np.bincount(columns.indices[places], weights=shares, minlength=size)
        found[query] = 1 - common / (2 - common)
    return found
