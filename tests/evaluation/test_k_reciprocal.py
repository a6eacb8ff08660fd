"""Re-ranking and query expansion against restatements in plain loops, and against fast-reid's."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from fastreid.evaluation.query_expansion import aqe
from fastreid.evaluation.rerank import re_ranking
from torch.nn.functional import normalize

from fastreid_star.evaluation import k_reciprocal as module
from fastreid_star.evaluation.k_reciprocal import (
    expand,
    jaccard_distances,
    k_reciprocal_distances,
    nearest,
    temporal_distances,
)


def distances(features):
    """Float64 [N, N]: Euclidean, or the mean over the parts; equal features are exactly 0 apart."""
    features = features.double().numpy()
    features = features if features.ndim == 3 else features[:, None]
    gaps = features[:, None] - features[None]
    return np.sqrt((gaps**2).sum(-1)).mean(-1)


def by_the_paper(d, queries, k1, k2, *, power=2):
    """Zhong et al.'s Jaccard distances and d^2 / max d^2, one feature after another.

    Args:
        d: [N, N], the queries first.
    """
    n = len(d)
    scaled = d**power / (d**power).max(axis=1, keepdims=True)
    order = [sorted(range(n), key=lambda j: (round(d[i, j] ** 2, 10), j)) for i in range(n)]

    def mutual(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    encoded = np.zeros((n, n))
    for i in range(n):
        near = mutual(i, k1)
        grown = set(near)
        for candidate in near:
            its = mutual(candidate, int(np.around(k1 / 2)))
            if len(its & near) > 2 / 3 * len(its):
                grown |= its
        for j in grown:
            encoded[i, j] = np.exp(-scaled[i, j])
        if grown:
            encoded[i] /= encoded[i].sum()
    if k2 > 1:
        encoded = np.array([encoded[order[i][:k2]].mean(axis=0) for i in range(n)])
    common = np.minimum(encoded[:queries, None], encoded[None, queries:]).sum(-1)
    return 1 - common / (2 - common), scaled[:queries, queries:]


def some(kind, count=60, queries=24):
    """Features of a few groups: ``continuous``, with many ``ties``, or of ``parts``."""
    random = torch.Generator().manual_seed(3)
    if kind == "ties":  # 12 vectors with exact products, and many copies of each
        signs = torch.tensor([[0.6, 0.8, 0], [0.6, -0.8, 0], [0, 0.6, 0.8], [0.0, 1, 0]])
        axes = torch.cat([signs, -signs, signs.roll(1, 1)])
        features = axes[torch.randint(12, (count,), generator=random)]
    else:
        shape = (count, 3, 4) if kind == "parts" else (count, 6)
        centers = torch.randn(8, *shape[1:], generator=random)
        noise = torch.randn(shape, generator=random)
        features = centers[torch.randint(8, (count,), generator=random)] + 0.7 * noise
        features = features if kind == "parts" else normalize(features)
    return features[:queries], features[queries:]


KINDS = ("continuous", "ties", "parts")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 3, 0.0), (7, 1, 0.5)])
def test_re_ranking_is_the_papers(kind, k1, k2, weight, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SIZE", 7)
    query, gallery = some(kind)
    jaccard, plain = by_the_paper(distances(torch.cat([query, gallery])), len(query), k1, k2)
    found = k_reciprocal_distances(query, gallery, k1=k1, k2=k2, weight=weight)
    np.testing.assert_allclose(found, (1 - weight) * jaccard + weight * plain, rtol=0, atol=1e-6)
    assert np.ptp(found) > 0.2


def test_re_ranking_is_fast_reids():
    query, gallery = some("continuous")
    d = distances(torch.cat([query, gallery]))
    n = len(query)
    expected = re_ranking(d[:n, n:], d[:n, :n], d[n:, n:], 9, 4, 0.3)
    found = k_reciprocal_distances(query, gallery, k1=9, k2=4, weight=0.3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_more_neighbors_than_features_and_features_of_zeros():
    query, gallery = some("continuous", count=9, queries=4)
    gallery[2] = query[1] = 0
    jaccard, plain = by_the_paper(distances(torch.cat([query, gallery])), 4, 20, 6)
    found = k_reciprocal_distances(query, gallery)
    np.testing.assert_allclose(found, 0.7 * jaccard + 0.3 * plain, rtol=0, atol=1e-6)
    same = torch.ones(3, 2)
    assert np.isfinite(k_reciprocal_distances(same, same)).all()


def test_a_feature_that_is_not_its_own_neighbor_is_at_distance_one():
    """Of six equal features the first two are the nearest of all: the others have no neighbors."""
    features = torch.cat([torch.eye(2)[:1].repeat(6, 1), torch.eye(2)[1:].repeat(4, 1)])
    found, _ = jaccard_distances(features[:1], features[1:], k1=1, k2=1)
    assert found.tolist() == [[0.0, *[1.0] * 8]]


def test_temporal_re_ranking_is_the_published_sum():
    views = [some("continuous"), some("continuous", 60), some("parts")]
    views = [(q.flatten(1)[:, :6], g.flatten(1)[:, :6]) for q, g in views]
    views[1] = views[1][0].flip(1), views[1][1].flip(1)
    query, gallery = (torch.stack([view[side] for view in views]) for side in (0, 1))
    expected = 0.8 * torch.cdist(query[0].double(), gallery[0].double()).numpy()
    for weight, q, g in ((0.2, 0, 0), (0.1, 1, 2), (0.1, 2, 1)):
        d = distances(torch.cat([query[q], gallery[g]]))
        expected += weight * by_the_paper(d, query.shape[1], 5, 3, power=1)[0]
    np.testing.assert_allclose(temporal_distances(query, gallery), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("times", "alpha"), [(1, 3.0), (2, 0.0)])
def test_query_expansion_is_its_formula(kind, times, alpha):
    query, gallery = some(kind)
    features = torch.cat([query, gallery]).double()
    for _ in range(times):
        d, flat = distances(features), normalize(features.flatten(1))
        new = []
        for i in range(len(features)):
            near = sorted(range(len(d)), key=lambda j, i=i: (round(d[i, j] ** 2, 10), j))[:4]
            weights = [max(0.0, float(flat[i] @ flat[j])) ** alpha for j in near]
            mean = sum(w * features[j] for w, j in zip(weights, near, strict=True)) / sum(weights)
            new.append(mean if kind == "parts" else normalize(mean, dim=0))
        features = torch.stack(new)
    found = expand(query, gallery, times=times, k=4, alpha=alpha)
    assert [len(part) for part in found] == [24, 36]
    torch.testing.assert_close(torch.cat(found).double(), features, rtol=0, atol=1e-6)


def test_query_expansion_is_fast_reids():
    query, gallery = some("continuous")
    expected = [normalize(part) for part in aqe(query, gallery, 1, 5, 3.0)]
    for part, other in zip(expand(query, gallery), expected, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-6)


def test_a_feature_of_zeros_is_not_expanded():
    query, gallery = some("continuous", count=12, queries=3)
    query[0] = 0
    assert expand(query, gallery)[0][0].tolist() == [0.0] * 6


def test_the_nearest_of_equals_are_the_first():
    order, radius = nearest(torch.eye(2)[[0, 1, 0, 1, 0]], 4)
    assert order.tolist() == [[0, 2, 4, 1], [1, 3, 0, 2], [0, 2, 4, 1], [1, 3, 0, 2], [0, 2, 4, 1]]
    assert radius.tolist() == [2.0] * 5


PROGRAM = """
import resource, torch
import fastreid_star
from fastreid_star.evaluation.k_reciprocal import expand, k_reciprocal_distances
features = torch.nn.functional.normalize(torch.randn(5159 + 5643, 2048))
expand(features[:5159], features[5159:])
k_reciprocal_distances(features[:5159], features[5159:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
def test_a_test_set_of_the_size_of_hitsz_vcm_fits_into_4_gb():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 4 * 2**20  # KiB
