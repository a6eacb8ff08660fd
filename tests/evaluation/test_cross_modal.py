"""Both directions from one extraction: the numbers, the protocol, one process or two."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from fastreid.evaluation.evaluator import DatasetEvaluator

from fastreid_star.errors import UserError
from fastreid_star.evaluation import cross_modal
from fastreid_star.evaluation.cross_modal import CrossModalEvaluator, cross_modal_results
from fastreid_star.evaluation.retrieval import evaluate_retrieval
from fastreid_star.evaluation.similarity import similarity
from fastreid_star.structures import Modality

from .toy import PROTOCOL, feed, make_tracklet, toy, with_roles


def test_metrics_are_both_directions_in_percent():
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    assert isinstance(evaluator, DatasetEvaluator)
    feed(evaluator, features, range(len(tracklets)))
    metrics = evaluator.evaluate()

    measures = ["Rank-1", "Rank-5", "Rank-10", "Rank-20", "mAP", "mINP"]
    keys = [f"{direction}/{measure}" for direction in ("I2V", "V2I") for measure in measures]
    assert isinstance(metrics, OrderedDict)
    assert list(metrics) == [*keys, "mean/Rank-1", "mean/mAP", "mean/mINP", "metric"]
    assert all(type(value) is float for value in metrics.values())

    unit = features / features.norm(dim=1, keepdim=True)
    pids, camids = np.array([t.pid for t in tracklets]), np.array([t.camid for t in tracklets])
    infrared, visible = np.arange(30), np.arange(30, 70)
    for direction, q, g in (("I2V", infrared, visible), ("V2I", visible, infrared)):
        products = (unit[q] @ unit[g].T).numpy()
        expected = evaluate_retrieval(products, pids[q], pids[g], camids[q], camids[g])
        got = [metrics[f"{direction}/{measure}"] for measure in measures]
        assert got == pytest.approx(
            [100 * value for value in (*expected.cmc, expected.mAP, expected.mINP)]
        )
    assert metrics["I2V/mAP"] != metrics["V2I/mAP"]
    for measure in ("Rank-1", "mAP", "mINP"):
        both = (metrics[f"I2V/{measure}"] + metrics[f"V2I/{measure}"]) / 2
        assert metrics[f"mean/{measure}"] == pytest.approx(both)
    assert metrics["metric"] == metrics["mean/mAP"]


@pytest.mark.parametrize("roles", [False, True])
def test_the_similarities_of_i2v_are_used_for_v2i(roles, monkeypatch):
    """With many ties: each feature is one of four axes with a sign, so that products are exact."""
    random = np.random.default_rng(0)
    _, tracklets = toy()
    if roles:
        tracklets = with_roles(tracklets, ["query", "gallery"] * 35)
    features = torch.eye(4)[torch.from_numpy(random.integers(4, size=70))]
    features *= torch.from_numpy(random.choice([-1.0, 1.0], (70, 1)))
    computed = []

    def spy(query, gallery):
        computed.append((len(query), len(gallery)))
        return similarity(query, gallery)

    monkeypatch.setattr(cross_modal, "similarity", spy)
    results = cross_modal_results(features, tracklets, **PROTOCOL)
    assert computed == ([(15, 20), (20, 15)] if roles else [(30, 40)])
    pids, camids = np.array([t.pid for t in tracklets]), np.array([t.camid for t in tracklets])
    for found, q, g in results.directions().values():
        products = (features[q] @ features[g].T).numpy()
        np.testing.assert_array_equal(found.similarity, products)
        alone = evaluate_retrieval(products, pids[q], pids[g], camids[q], camids[g])
        assert (found.cmc, found.mAP, found.mINP) == (alone.cmc, alone.mAP, alone.mINP)
        np.testing.assert_array_equal(found.per_query.ap, alone.per_query.ap)


def test_a_hand_computed_pair_of_directions():
    """Infrared 1, 2 and visible 1, 2 on a plane, by the angle in degrees; all under different cameras.

    infrared: pid 1 at 0, pid 2 at 90.  visible: pid 1 at 60, pid 2 at 40.
    I2V: 0 ranks 40 (2), 60 (1): AP 1/2.  90 ranks 60 (1), 40 (2): AP 1/2.  mAP 50, rank-1 0.
    V2I: 60 ranks 90 (2), 0 (1): AP 1/2.  40 ranks 0 (1), 90 (2): AP 1/2.   mAP 50, rank-1 0.
    Turning visible 2 to 80: I2V 0 ranks 60 (1) first, 90 ranks 80 (2) first: 100.  V2I: 60 is nearer to 90 (2), AP
    1/2; 80 is nearer to 90 (2), AP 1: mAP 75, rank-1 50.
    """

    def metrics(*degrees):
        angle = torch.deg2rad(torch.tensor(degrees))
        # Lengths differ: only the angle may count.
        features = torch.stack([angle.cos(), angle.sin()], dim=1) * torch.tensor(
            [[1.0], [5.0], [0.1], [30.0]]
        )
        tracklets = [
            make_tracklet(pid, camid, modality)
            for pid, camid, modality in (
                (1, 1, Modality.INFRARED),
                (2, 2, Modality.INFRARED),
                (1, 3, Modality.VISIBLE),
                (2, 4, Modality.VISIBLE),
            )
        ]
        values = cross_modal_results(features, tracklets, **PROTOCOL).metrics()
        return [values[key] for key in ("I2V/Rank-1", "I2V/mAP", "V2I/Rank-1", "V2I/mAP", "metric")]

    assert metrics(0.0, 90.0, 60.0, 40.0) == [0, 50, 0, 50, 50]
    assert metrics(0.0, 90.0, 60.0, 80.0) == [100, 100, 50, 75, 87.5]


def test_the_order_of_batches_does_not_matter():
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    in_order = evaluator.evaluate()
    evaluator.reset()
    feed(evaluator, features, np.random.default_rng(3).permutation(len(tracklets)), batch=11)
    assert evaluator.evaluate() == in_order
    order = np.random.default_rng(1).permutation(len(tracklets))
    other = cross_modal_results(features[order], [tracklets[index] for index in order], **PROTOCOL)
    assert other.metrics() == pytest.approx(in_order)


def test_features_are_kept_as_float32_and_apart_from_the_batch():
    (features, tracklets), dtype = toy(), torch.bfloat16
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    index, batch = torch.arange(len(tracklets)), features.to(dtype, copy=True).requires_grad_()
    evaluator.process({"index": index}, batch)
    expected = cross_modal_results(features.to(dtype).float(), tracklets, **PROTOCOL).metrics()
    with torch.no_grad():
        batch.zero_()
    index.zero_()
    assert evaluator.evaluate() == expected


@pytest.mark.parametrize(
    ("indexes", "message"),
    [
        ([], r"70 missing \(index 0, 1, 2,"),
        (range(67), r"70 tracklets .* 3 missing \(index 67, 68, 69\)"),
        ([*range(70), 5], r"0 missing .* 1 too often or unknown \(index 5\)"),
        ([*range(69), 3], r"1 missing \(index 69\), 1 too often or unknown \(index 3\)"),
        ([*range(70), 99], r"1 too often or unknown \(index 99\)"),
    ],
)
def test_every_tracklet_is_seen_exactly_once(indexes, message):
    features, tracklets = toy()
    features = torch.cat([features, features])
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    feed(evaluator, features, list(indexes))
    with pytest.raises(AssertionError, match=message):
        evaluator.evaluate()


def test_nan_features_are_named_by_their_tracklets():
    features, tracklets = toy()
    features[[3, 41], 0] = math.nan
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    with pytest.raises(UserError, match=r"Toy features: 2 of 70 tracklets .* index 3, 41;"):
        evaluator.evaluate()


def test_identities_of_one_modality_only():
    """The message says on which data, which direction and under which minimum length."""
    tracklets = [make_tracklet(1, 1, Modality.INFRARED), make_tracklet(2, 2, Modality.VISIBLE)]
    with pytest.raises(UserError, match=r"Toy, I2V, min_frames 2: no query identity.*\(1\).*\(2\)"):
        cross_modal_results(torch.eye(2), tracklets, **PROTOCOL)


@pytest.mark.parametrize(
    "build", [CrossModalEvaluator, lambda **kw: cross_modal_results(torch.eye(2), **kw)]
)
def test_a_protocol_that_cannot_hold_is_refused_at_once(build):
    infrared, visible = (
        make_tracklet(1, 1, Modality.INFRARED),
        make_tracklet(1, 2, Modality.VISIBLE),
    )
    with pytest.raises(UserError, match="Toy: 2 infrared and 0 visible"):
        build(tracklets=[infrared, infrared], **PROTOCOL)
    with pytest.raises(UserError, match="0 infrared and 0 visible"):
        build(tracklets=[], **PROTOCOL)
    with pytest.raises(UserError, match=r"1 of 2 tracklets have fewer than 2 frames, index 1"):
        build(tracklets=[infrared, make_tracklet(1, 2, Modality.VISIBLE, frames=1)], **PROTOCOL)
    with pytest.raises(UserError, match=r"fewer than 1 frames"):
        build(
            tracklets=[infrared, make_tracklet(1, 2, Modality.VISIBLE, frames=0)],
            min_frames=0,
            dataset_name="Toy",
        )
    with pytest.raises(UserError, match=r"TEST\.RANKS"):
        build(tracklets=[infrared, visible], ranks=(5, 1), **PROTOCOL)


def test_the_camera_rule_reaches_both_directions():
    """Each query's nearest neighbor is itself under its own camera; the rule takes that away."""
    tracklets = [
        make_tracklet(pid, camid, modality)
        for modality in (Modality.INFRARED, Modality.VISIBLE)
        for pid, camid in ((1, 1), (2, 1), (1, 2), (2, 2))
    ]
    features = torch.eye(4).repeat(2, 1)
    kept = cross_modal_results(features, tracklets, camera_filter=False, **PROTOCOL)
    removed = cross_modal_results(features, tracklets, camera_filter=True, **PROTOCOL)
    assert kept.metrics()["I2V/Rank-1"] == kept.metrics()["V2I/Rank-1"] == 100
    assert (
        removed.i2v.per_query.n_matches.tolist()
        == removed.v2i.per_query.n_matches.tolist()
        == [1, 1, 1, 1]
    )
    assert removed.metrics()["I2V/Rank-1"] == removed.metrics()["V2I/Rank-1"] == 25
    assert "camera kept in" in kept.protocol()
    assert "camera removed from" in removed.protocol()


def test_two_processes_give_the_numbers_of_one(monkeypatch):
    """tests/engine/test_distributed.py has real processes."""
    features, tracklets = toy()
    evaluators = [CrossModalEvaluator(tracklets=tracklets, **PROTOCOL) for _ in range(3)]
    # Neither contiguous nor of equal number in both processes.
    own = [[i for i in range(70) if (i % 3 == 0) == second] for second in (False, True)]
    for evaluator, indexes in zip(evaluators, [range(70), *own], strict=True):
        feed(evaluator, features, indexes)
    expected = evaluators[0].evaluate()
    sent = []
    monkeypatch.setattr(cross_modal.comm, "gather", lambda data, dst: sent.append(data) or sent)
    monkeypatch.setattr(cross_modal.comm, "is_main_process", lambda: len(sent) == 2)
    assert evaluators[2].evaluate() == {}, "not the main process"
    assert evaluators[1].evaluate() == expected
