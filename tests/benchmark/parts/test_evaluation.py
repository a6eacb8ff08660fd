import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastreid_star.benchmark.parts import evaluation
from fastreid_star.benchmark.parts.evaluation import Loops, Size
from fastreid_star.structures import Modality, Tracklet

SMALL = Size(infrared=90, visible=110, width=70)


@pytest.fixture(autouse=True)
def _few_identities(monkeypatch):
    monkeypatch.setattr(evaluation, "IDENTITIES", 20)


def test_features_have_no_rounding_in_them():
    features, tracklets = evaluation.make(SMALL)
    assert features.shape == (200, 70)
    assert features.norm(dim=1).unique().tolist() == [
        8.0
    ]  # 64 places, the largest power of 4 in 70
    assert sum(tracklet.modality == Modality.INFRARED for tracklet in tracklets) == 90
    exact = features.double() @ features.double().T / 64
    normalized = torch.nn.functional.normalize(features)
    assert torch.equal((normalized @ normalized.T).double(), exact)
    assert len(exact.unique()) < 200, "many are equal: ties are broken alike too"


def test_the_loop_by_hand():
    """One infrared query; by similarity: match, other, own camera's match, match. It is left out, so ranks 1 and 3."""
    features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [1.0, 0.01], [0.7, 0.7]])
    rows = [(1, 1), (1, 3), (1, 4), (1, 2), (2, 5)]
    tracklets = [
        Tracklet(pid, camera, Modality.INFRARED if row == 0 else Modality.VISIBLE, "", ("1.jpg",))
        for row, (pid, camera) in enumerate(rows)
    ]
    tracklets[3] = Tracklet(1, 1, Modality.VISIBLE, "", ("1.jpg",))
    assert Loops(features, tracklets, 1).rank(0) == (
        1,
        pytest.approx((1 + 2 / 3) / 2),
        pytest.approx(2 / 3),
    )
    tracklets[0] = Tracklet(3, 1, Modality.INFRARED, "", ("1.jpg",))
    first, precision, penalty = Loops(features, tracklets, 1).rank(0)
    assert first == 0
    assert math.isnan(precision)
    assert math.isnan(penalty)


@pytest.mark.parametrize(
    ("queries", "note"), [(None, "all its queries"), (7, "scaled up from 14 queries")]
)
def test_figures(options, here, queries, note):
    here(evaluation)
    figures = {
        figure.name: figure for figure in evaluation.compare(SMALL, options, queries=queries)
    }
    for name in ("ranking_seconds", "ranking_seconds_over_short_loop"):
        assert note in figures[name].note
    assert figures["ranking_seconds_over_short_loop"].value == figures["ranking_seconds"].value
    assert figures["ranking_memory_mb"].value == 1


def test_the_loop_goes_through_all_queries_of_both_directions(options, here, monkeypatch):
    here(evaluation)
    seen = []
    monkeypatch.setattr(
        evaluation, "check_equal", lambda ranked, results, size: seen.extend(q for q, _ in ranked)
    )
    by_fastreid, evaluate_rank = [], evaluation.evaluate_rank

    def spy(distances, q_pids, g_pids, *cameras, use_cython):
        assert distances.shape == (len(q_pids), len(g_pids))
        assert not use_cython
        by_fastreid.append(distances.shape)
        return evaluate_rank(distances, q_pids, g_pids, *cameras, use_cython=use_cython)

    monkeypatch.setattr(evaluation, "evaluate_rank", spy)
    list(evaluation.compare(SMALL, replace(options, repeats=3), queries=None))
    assert sorted(seen) == list(range(200))
    assert [sum(q for q, g in by_fastreid if g == gallery) for gallery in (110, 90)] == [90, 110]


def test_fastreids_loop_ranks_as_ours_does(monkeypatch):
    """But for ties, which it leaves to the sort: so of features that have none."""
    _, tracklets = evaluation.make(SMALL)
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    found, evaluate_rank = [], evaluation.evaluate_rank
    monkeypatch.setattr(
        evaluation, "evaluate_rank", lambda *a, **k: found.append(evaluate_rank(*a, **k))
    )
    Loops(features, tracklets, SMALL.infrared).rank_by_fastreid(np.arange(200))
    results = evaluation.rank(features, tracklets)
    for (_, ap, inp), ours in zip(found, (results.i2v, results.v2i), strict=True):
        assert np.mean(ap) == pytest.approx(ours.mAP)
        assert np.mean(inp) == pytest.approx(ours.mINP)


def test_other_ranks_are_noticed():
    features, tracklets = evaluation.make(SMALL)
    results = evaluation.rank(features, tracklets)
    loop = Loops(features, tracklets, SMALL.infrared)
    ranked = [(query, loop.rank(query)) for query in range(200)]
    evaluation.check_equal(ranked, results, SMALL)
    for row, change in ((3, (1, 0, 0)), (150, (0, 1e-9, 0)), (199, (0, 0, 1e-9))):
        wrong = list(ranked)
        wrong[row] = (row, tuple(np.add(ranked[row][1], change)))
        with pytest.raises(RuntimeError, match=f"query {row}: first match"):
            evaluation.check_equal(wrong, results, SMALL)
