"""Protocols with trials: means, cameras that are skipped, identities in the CMC, a missing direction."""

import numpy as np
import pytest
import torch

from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import CrossModalEvaluator, cross_modal_results
from fastreid_star.evaluation.rerank import Reranking
from fastreid_star.evaluation.retrieval import rank_queries
from fastreid_star.evaluation.tables import format_table
from fastreid_star.structures import Trials

from .toy import PROTOCOL, toy

FALLING = np.linspace(1, 0, 6, dtype=np.float32)[None]  # the gallery is in ranked order


def test_identities_count_once_in_the_cmc_and_images_in_ap():
    """Ahead of the match at place 5 are 2, 2, 3, 2: two identities. Places 5 and 6: AP (1/5 + 2/6) / 2."""
    labels = ([1], [2, 2, 3, 2, 1, 1], [0], [1] * 6)
    images = rank_queries(FALLING, *labels)
    identities = rank_queries(FALLING, *labels, by_identity=True)
    assert (images.first_match.tolist(), identities.first_match.tolist()) == ([5], [3])
    assert images.ap == identities.ap == pytest.approx([(1 / 5 + 2 / 6) / 2])
    assert images.inp == identities.inp == pytest.approx([2 / 6])


def test_ties_keep_the_order_of_the_gallery_in_identities_too():
    ones = np.ones((1, 4), np.float32)
    for pids, first in (([1, 2, 3, 4], 1), ([2, 2, 1, 3], 2), ([2, 3, 4, 1], 4)):
        found = rank_queries(ones, [1], pids, [0], [1] * 4, by_identity=True)
        assert found.first_match.tolist() == [first]


def test_skipped_cameras_are_left_out_whoever_they_show():
    """Without camera 2: 3, 1 remain, so the match is second; the other query keeps all six."""
    labels = ([1, 1], [2, 1, 2, 3, 2, 1], [3, 6], [2, 2, 2, 1, 2, 1])
    found = rank_queries(np.repeat(FALLING, 2, axis=0), *labels, skipped={(3, 2)})
    assert found.n_matches.tolist() == [1, 2]
    assert found.first_match.tolist() == [2, 2]
    assert found.top1.tolist() == [3, 0]
    assert found.ap[0] == 1 / 2


def some_trials(count=3):
    rng = np.random.default_rng(0)
    infrared, visible = np.arange(30), np.arange(30, 70)
    return [(infrared, np.sort(rng.choice(visible, 25, replace=False))) for _ in range(count)]


@pytest.mark.parametrize("reranking", [None, Reranking(k_reciprocal=(5, 2, 0.3))])
def test_results_are_means_over_the_trials(reranking):
    features, tracklets = toy()
    pairs = some_trials()
    swapped = [(gallery, query) for query, gallery in pairs]
    options = {**PROTOCOL, "reranking": reranking}
    one_by_one = [
        cross_modal_results(
            features, tracklets, trials=Trials({"I2V": [pair], "V2I": [other]}), **options
        ).metrics()
        for pair, other in zip(pairs, swapped, strict=True)
    ]
    trials = Trials({"I2V": pairs, "V2I": swapped})
    results = cross_modal_results(features, tracklets, trials=trials, **options)
    metrics = results.metrics()
    for key in ("I2V/Rank-1", "I2V/mAP", "V2I/mINP", "mean/mAP", "metric"):
        values = [other[key] for other in one_by_one]
        assert metrics[key] == pytest.approx(np.mean(values))
        assert len(set(values)) > 1 or "Rank" in key
    np.testing.assert_array_equal(results.sides.i2v_gallery, pairs[0][1])
    assert results.i2v.similarity.shape == (30, 25)


def test_a_protocol_without_v2i_is_one_row_and_its_own_mean(caplog):
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(
        tracklets=tracklets, trials=Trials({"I2V": some_trials(2)}), **PROTOCOL
    )
    evaluator.process({"index": torch.arange(70)}, features)
    with caplog.at_level("INFO"):
        metrics = evaluator.evaluate()
    assert "mean over 2 trials" in caplog.text
    assert metrics["mean/mAP"] == metrics["I2V/mAP"] == metrics["metric"]
    assert [line.split("|")[1].strip() for line in format_table({"a": metrics}).splitlines()] == [
        "%", ":------", "a I2V",
    ]  # fmt: skip


def test_the_message_of_a_trial_without_a_match_names_the_direction():
    features, tracklets = toy()
    other = [p for p in range(30, 70) if tracklets[p].pid != tracklets[0].pid]
    trials = Trials({"I2V": [(np.array([0]), np.array(other))]})
    with pytest.raises(UserError, match=r"Toy, I2V, .* no query identity appears in the gallery"):
        cross_modal_results(features, tracklets, trials=trials, **PROTOCOL)
