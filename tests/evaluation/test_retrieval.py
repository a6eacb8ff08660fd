"""The measures against their definitions, written as plain loops, and against fast-reid."""

import math
from unittest import mock

import numpy as np
import pytest
from fastreid.evaluation.rank import evaluate_rank
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.errors import UserError
from fastreid_star.evaluation import retrieval
from fastreid_star.evaluation.retrieval import QueryResults, evaluate_retrieval, rank_queries
from fastreid_star.evaluation.similarity import first_ranked


def brute_force(similarity, q_pids, g_pids, q_camids, g_camids, camera_filter):
    """[(n_matches, first rank, AP, INP, top1)] by the definition; None for a measure that does not exist."""
    rows = []
    for q in range(len(q_pids)):
        ranked = []
        for g in range(len(g_pids)):
            same = q_pids[q] == g_pids[g]
            if not (camera_filter and same and q_camids[q] == g_camids[g]):
                ranked.append((-similarity[q][g], g))
        ranked.sort()  # by distance, then by gallery index
        ranks = [rank for rank, (_, g) in enumerate(ranked, 1) if g_pids[g] == q_pids[q]]
        top1 = ranked[0][1] if ranked else -1
        if not ranks:
            rows.append((0, 0, None, None, top1))
            continue
        precision = []
        for rank in ranks:
            hits = 0
            for other in ranks:
                if other <= rank:
                    hits += 1
            precision.append(hits / rank)
        rows.append(
            (len(ranks), ranks[0], sum(precision) / len(precision), len(ranks) / ranks[-1], top1)
        )
    return rows


def assert_same(results: QueryResults, expected):
    assert len(results.ap) == len(expected)
    for row, (n_matches, first, ap, inp, top1) in enumerate(expected):
        assert results.n_matches[row] == n_matches
        assert results.first_match[row] == first
        assert results.top1[row] == top1
        assert results.valid[row] == (ap is not None)
        if ap is None:
            assert math.isnan(results.ap[row])
            assert math.isnan(results.inp[row])
        else:
            assert results.ap[row] == pytest.approx(ap, abs=1e-12)
            assert results.inp[row] == pytest.approx(inp, abs=1e-12)


@st.composite
def problems(draw):
    """Small, so that ties, queries without a match and galleries that the camera rule empties are common."""
    q, g = draw(st.integers(1, 7)), draw(st.integers(1, 10))
    integers = lambda size, top: draw(st.lists(st.integers(0, top), min_size=size, max_size=size))  # noqa: E731
    values = draw(st.sampled_from([1, 4, 1000]))
    similarity = np.array(
        integers(q * g, values), dtype=draw(st.sampled_from([np.float32, np.float64]))
    ).reshape(q, g)
    return similarity, integers(q, 3), integers(g, 3), integers(q, 2), integers(g, 2)


@settings(max_examples=200, deadline=None)
@given(problem=problems(), camera_filter=st.booleans(), counted=st.sampled_from([0, 2, 64]))
def test_every_measure_against_brute_force(problem, camera_filter, counted):
    with mock.patch.object(
        retrieval, "_COUNTED", counted
    ):  # more matches than this, and the whole gallery is sorted
        results = rank_queries(*problem, camera_filter=camera_filter)
    assert_same(results, brute_force(*problem, camera_filter))
    for row, top1 in enumerate(results.top1):
        if top1 >= 0:
            assert results.top1_similarity[row] == problem[0][row, top1]
        else:
            assert math.isnan(results.top1_similarity[row])


@settings(max_examples=50, deadline=None)
@given(problem=problems(), k=st.integers(1, 12))
def test_ranked_lists_have_the_order_that_the_evaluation_counts(problem, k):
    """The first match in a list of the whole gallery stands at the rank that the evaluation gives."""
    similarity, q_pids, g_pids, *cameras = problem
    whole = first_ranked(similarity, len(g_pids))
    np.testing.assert_array_equal(whole, np.argsort(-similarity, axis=1, kind="stable"))
    np.testing.assert_array_equal(first_ranked(similarity, k), whole[:, :k])
    results = rank_queries(similarity, q_pids, g_pids, *cameras, camera_filter=False)
    hits = np.array(g_pids)[whole] == np.array(q_pids)[:, None]
    np.testing.assert_array_equal(np.where(hits.any(1), hits.argmax(1) + 1, 0), results.first_match)
    np.testing.assert_array_equal(whole[:, 0], results.top1)


def hand_example():
    """Two identities, five gallery entries, worked out on paper.

    Gallery: a = (pid 1, camera 1), b = (2, 1), c = (1, 2), d = (2, 2), e = (1, 3).

    Query 1 (pid 1, camera 9), similarity  a .9  b .8  c .7  d .6  e .5: ranking a b c d e,
      matches a c e at ranks 1 3 5:  AP = (1/1 + 2/3 + 3/5) / 3 = 34/45,  INP = 3/5.
    Query 2 (pid 2, camera 9), similarity  a .9  b .1  c .8  d .7  e .6: ranking a c d e b,
      matches d b at ranks 3 5:      AP = (1/3 + 2/5) / 2 = 11/30,        INP = 2/5.
    Query 3 (pid 1, camera 1), similarity  a .9  b .8  c .7  d .6  e .5: a is removed, ranking b c d e,
      matches c e at ranks 2 4:      AP = (1/2 + 2/4) / 2 = 1/2,          INP = 2/4.
    Query 4 (pid 3, camera 1): no match, not counted.

    First matches at 1, 3, 2:  CMC_1 = 1/3, CMC_2 = 2/3, CMC_3 = 1.
    """
    similarity = (
        np.array(
            [[9, 8, 7, 6, 5], [9, 1, 8, 7, 6], [9, 8, 7, 6, 5], [1, 2, 3, 4, 5]], dtype=np.float32
        )
        / 10
    )
    return similarity, [1, 2, 1, 3], [1, 2, 1, 2, 1], [9, 9, 1, 1], [1, 1, 2, 2, 3]


def test_hand_computed_example():
    similarity, *labels = hand_example()
    result = evaluate_retrieval(similarity, *labels, ranks=(1, 2, 3, 20))
    assert result.cmc == pytest.approx((1 / 3, 2 / 3, 1, 1))
    assert result.mAP == pytest.approx((34 / 45 + 11 / 30 + 1 / 2) / 3)
    assert result.mINP == pytest.approx((3 / 5 + 2 / 5 + 2 / 4) / 3)
    assert (result.identities, result.per_query.valid.tolist()) == (3, [True, True, True, False])
    assert result.ranks == (1, 2, 3, 20)
    assert result.per_query.first_match.tolist() == [1, 3, 2, 0]
    assert result.per_query.top1.tolist() == [0, 0, 1, 4]
    assert result.per_query.top1_similarity == pytest.approx([0.9, 0.9, 0.8, 0.5])


def test_without_the_camera_rule_the_same_camera_counts():
    similarity, *labels = hand_example()
    before = similarity.copy()
    result = evaluate_retrieval(similarity, *labels, camera_filter=False)
    assert result.per_query.ap[2] == pytest.approx(34 / 45)
    assert result.per_query.first_match[2] == 1
    evaluate_retrieval(similarity, *labels)
    np.testing.assert_array_equal(similarity, before)  # the camera rule writes into a copy


def test_ties_stay_in_gallery_order():
    ones = np.ones((1, 4), dtype=np.float32)
    for pids, first in (([2, 1, 2, 1], 2), ([1, 2, 2, 2], 1), ([2, 2, 2, 1], 4)):
        assert rank_queries(ones, [1], pids, [0], [1, 1, 1, 1]).first_match == [first]


def test_against_fastreid():
    random = np.random.default_rng(0)
    similarity = random.standard_normal((90, 60)).astype(np.float32).T  # a view, as that of V2I
    labels = [random.integers(0, top, n) for top, n in ((12, 60), (12, 90), (4, 60), (4, 90))]
    result = evaluate_retrieval(similarity, *labels, ranks=(1, 5, 10, 20))
    cmc, ap, inp = evaluate_rank(-similarity, *labels, max_rank=20, use_cython=False)
    assert result.cmc == pytest.approx([cmc[rank - 1] for rank in result.ranks], abs=1e-6)
    assert result.per_query.ap[result.per_query.valid] == pytest.approx(np.array(ap), abs=1e-12)
    assert result.per_query.inp[result.per_query.valid] == pytest.approx(np.array(inp), abs=1e-12)
    assert result.mAP == pytest.approx(np.mean(ap))
    assert result.mINP == pytest.approx(np.mean(inp))


def test_foreign_identities_are_named():
    with pytest.raises(
        UserError, match=r"no query identity.* 2 query pids \(1, 2\), 2 gallery pids \(7, 8\)"
    ) as error:
        evaluate_retrieval(np.eye(2), [1, 2], [7, 8], [0, 0], [0, 0])
    assert "MIN_FRAMES" in str(error.value)


def test_a_camera_rule_that_leaves_nothing_is_named():
    problem = (np.eye(2), [1, 2], [1, 2], [0, 0], [0, 0])
    with pytest.raises(
        UserError, match=r"camera rule.*2 identities .*\(1, 2\).*CAMERA_FILTER False"
    ):
        evaluate_retrieval(*problem)
    assert evaluate_retrieval(*problem, camera_filter=False).mAP == 1


@pytest.mark.parametrize("ranks", [(), (0, 1), (5, 1), (1, 1), (1.5,), (True,)])
def test_impossible_ranks(ranks):
    with pytest.raises(UserError, match=r"TEST\.RANKS"):
        evaluate_retrieval(np.eye(2), [1, 2], [1, 2], [0, 0], [1, 1], ranks=ranks)


@pytest.mark.parametrize(("q", "g"), [(0, 2), (2, 0)])
def test_an_empty_side_is_named(q, g):
    with pytest.raises(UserError, match=f"{q} queries and {g} gallery entries"):
        evaluate_retrieval(np.zeros((q, g)), [1] * q, [1] * g, [0] * q, [1] * g)
