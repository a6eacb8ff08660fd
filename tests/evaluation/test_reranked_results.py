"""Results that are re-ranked are those of the re-ranking alone, in both directions."""

import json

import numpy as np
import pytest
import torch

from fastreid_star.evaluation.cross_modal import CrossModalEvaluator, cross_modal_results
from fastreid_star.evaluation.k_reciprocal import (
    expand,
    k_reciprocal_distances,
    temporal_distances,
)
from fastreid_star.evaluation.rerank import Reranking
from fastreid_star.evaluation.retrieval import evaluate_retrieval

from .toy import PROTOCOL, feed, toy, with_roles

K_RECIPROCAL = Reranking(k_reciprocal=(5, 2, 0.3))


@pytest.mark.parametrize("roles", [False, True])
def test_each_direction_is_re_ranked_with_its_own_queries_and_gallery(roles):
    features, tracklets = toy()
    if roles:
        tracklets = with_roles(tracklets, ["query", "gallery"] * 35)
    unit = features / features.norm(dim=1, keepdim=True)
    results = cross_modal_results(features, tracklets, reranking=K_RECIPROCAL, **PROTOCOL)
    for result, query, gallery in results.directions().values():
        expected = k_reciprocal_distances(unit[query], unit[gallery], k1=5, k2=2, weight=0.3)
        np.testing.assert_allclose(-result.similarity, expected, rtol=0, atol=1e-6)
    assert "re-ranked: k-reciprocal (k1 5, k2 2, lambda 0.3)" in results.protocol()
    assert "re-ranked" not in cross_modal_results(features, tracklets, **PROTOCOL).protocol()
    assert results.metrics() != cross_modal_results(features, tracklets, **PROTOCOL).metrics()


def test_expanded_features_are_re_ranked():
    features, tracklets = toy()
    both = Reranking(expansion=(1, 4, 3.0), k_reciprocal=(5, 2, 0.3))
    results = cross_modal_results(features, tracklets, reranking=both, **PROTOCOL)
    query, gallery = expand(features[:30], features[30:], k=4)
    expected = k_reciprocal_distances(query, gallery, k1=5, k2=2, weight=0.3)
    np.testing.assert_allclose(-results.i2v.similarity, expected, rtol=0, atol=1e-6)
    alone = Reranking(expansion=(1, 4, 3.0))
    results = cross_modal_results(features, tracklets, reranking=alone, **PROTOCOL)
    np.testing.assert_allclose(results.i2v.similarity, query @ gallery.T, rtol=0, atol=1e-6)


def test_temporal_re_ranking_takes_the_features_of_the_halves(tmp_path):
    views, (_, tracklets) = [toy(seed)[0] for seed in range(3)], toy()
    evaluator = CrossModalEvaluator(
        tracklets=tracklets,
        reranking=Reranking(temporal=True),
        protocol_name="all",
        json_path=tmp_path / "results.json",
        **PROTOCOL,
    )
    order = np.random.default_rng(0).permutation(210)
    feed(evaluator, torch.cat(views), order)
    metrics = evaluator.evaluate()
    unit = torch.stack([view / view.norm(dim=1, keepdim=True) for view in views])
    pids, camids = np.array([t.pid for t in tracklets]), np.array([t.camid for t in tracklets])
    for direction, q, g in (("I2V", slice(30), slice(30, 70)), ("V2I", slice(30, 70), slice(30))):
        values = -temporal_distances(unit[:, q], unit[:, g])
        expected = evaluate_retrieval(values, pids[q], pids[g], camids[q], camids[g])
        assert metrics[f"{direction}/mAP"] == pytest.approx(100 * expected.mAP)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["metrics"] == metrics
    assert (written["reranking"], written["protocol"]) == ("temporal (BUPTCampus)", "all")
    assert written["tracklets"]["i2v_query"] == 30
    feed(evaluator, views[0], range(1))
    with pytest.raises(AssertionError, match="too often"):
        evaluator.evaluate()


def test_temporal_re_ranking_needs_all_three_features():
    features, tracklets = toy()
    with pytest.raises(ValueError, match="70 tracklets need 210 features"):
        cross_modal_results(features, tracklets, reranking=Reranking(temporal=True), **PROTOCOL)
