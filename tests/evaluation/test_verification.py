"""ROC, equal error rate and open set: by hand, against scikit-learn, and in plain loops."""

import json
import logging

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from fastreid_star.errors import UserError
from fastreid_star.evaluation.cross_modal import CrossModalEvaluator, cross_modal_results
from fastreid_star.evaluation.rerank import Reranking
from fastreid_star.evaluation.verification import RATES, Pairs, share_above, threshold_at, verify
from fastreid_star.structures import Modality, Trials

from .toy import PROTOCOL, feed, make_tracklet, toy, with_roles


def pairs(same, different):
    return Pairs(np.array(same, np.float32), np.array(different, np.float32))


def test_by_hand():
    """At most one false accept of four: 0.4 is the lowest threshold that leaves one above it."""
    found = pairs([0.3, 0.9, 0.8], [0.1, 0.7, 0.2, 0.4])
    assert threshold_at(found.different, 0.25) == np.float32(0.4)
    assert threshold_at(found.different, 0.49) == np.float32(0.4)
    assert threshold_at(found.different, 0) == np.float32(0.7)
    assert threshold_at(found.different, 0.999) == np.float32(0.1)
    assert share_above(found.different, 0.4) == 0.25
    assert found.true_accepts(0.25) == found.true_accepts(0) == pytest.approx(2 / 3)
    assert found.true_accepts(0.75) == 1
    # from t = 0.2 (FPR 1/2, 1 - TPR 0) through 0.3 (1/2, 1/3) to 0.4 (1/4, 1/3)
    assert found.equal_error_rate() == pytest.approx(1 / 3)
    false, true = found.curve()
    assert false.tolist() == [0.25, 0.5, 0.75, 1]
    assert true == pytest.approx([2 / 3, 1, 1, 1])


def test_equal_scores_are_accepted_together_or_not_at_all():
    found = pairs([0.5, 0.9], [0.5] * 3 + [0.1])
    assert threshold_at(found.different, 0.5) == 0.5, "two of four are allowed, but three are equal"
    assert share_above(found.different, 0.5) == 0
    assert found.true_accepts(0.5) == 0.5


def test_a_share_is_counted_exactly():
    """0.29 * 100 is 28.999999999999996 in floating point."""
    scores = np.arange(100, dtype=np.float32)
    assert [share_above(scores, threshold_at(scores, n / 100)) for n in (1, 29, 57)] == (
        pytest.approx([0.01, 0.29, 0.57])
    )


@pytest.mark.parametrize("decimals", [8, 1], ids=["distinct", "ties"])
@pytest.mark.parametrize("apart", [-0.5, 0.0, 1.5, 20.0])
def test_as_scikit_learn_computes_them(apart, decimals):
    rng = np.random.default_rng(0)
    same = (rng.standard_normal(150) + apart).round(decimals).astype(np.float32)
    different = rng.standard_normal(1300).round(decimals).astype(np.float32)
    labels, scores = [1] * 150 + [0] * 1300, np.concatenate([same, different])
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = Pairs(same, different)
    for rate in (*RATES, 0.5):
        assert found.true_accepts(rate) == pytest.approx(tpr[fpr <= rate].max())
    expected = brentq(lambda rate: 1 - rate - np.interp(rate, fpr, tpr), 0, 1)
    vertical = tpr[fpr == 0].max() == 1  # the curve touches the corner
    assert found.equal_error_rate() == pytest.approx(0 if vertical else expected, abs=1e-9)
    for x, y in zip(*found.curve(), strict=True):
        assert y == pytest.approx(tpr[np.isclose(fpr, x)].max())


def test_pairs_of_one_kind_are_not_enough():
    with pytest.raises(UserError, match="0 pairs of one person and 2 of two"):
        pairs([], [0.1, 0.2])
    infrared, visible = (
        make_tracklet(1, 1, Modality.INFRARED),
        make_tracklet(1, 2, Modality.VISIBLE),
    )
    with pytest.raises(UserError, match="1 pairs of one person and 0 of two"):
        cross_modal_results(torch.eye(2), [infrared, visible], roc=True, **PROTOCOL)


def in_loops(results, tracklets, camera_filter, skipped=()):
    """The pairs, and by direction DIR at FAR 1/10, one query after the other."""
    seen, same, different, identified = set(), [], [], {}
    for way, (result, queries, gallery) in results.directions().items():
        first, first_of_others = [], []
        for row, query in enumerate(queries.tolist()):
            mated, others, q = [], [], tracklets[query]
            for column, entry in enumerate(gallery.tolist()):
                g, value = tracklets[entry], float(result.similarity[row, column])
                match = q.pid == g.pid
                if match and camera_filter and q.camid == g.camid:
                    continue
                if (q.camid, g.camid) in skipped:
                    continue
                mated.append((value, match))
                others += [] if match else [value]
                if frozenset((query, entry)) not in seen:
                    (same if match else different).append(value)
                    seen.add(frozenset((query, entry)))
            if any(match for _, match in mated):
                first.append(max(mated, key=lambda pair: pair[0]))
            first_of_others.append(max(others))
        allowed = len(first_of_others) // 10
        threshold = sorted(first_of_others, reverse=True)[allowed]
        right = [match and value > threshold for value, match in first]
        identified[way] = sum(right) / len(right)
    return sorted(same), sorted(different), identified


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize("camera_filter", [True, False])
def test_pairs_and_open_set_in_plain_loops(roles, camera_filter, parts, monkeypatch):
    monkeypatch.setattr("fastreid_star.evaluation.verification.BLOCK_SIZE", 16)
    features, tracklets = toy(width=30)
    if roles:
        tracklets = with_roles(tracklets, ["query", "gallery"] * 35)
    if parts:
        features = features.unflatten(1, (3, 10))
    rules = {"camera_filter": camera_filter, **PROTOCOL}
    results = cross_modal_results(features, tracklets, roc=True, **rules)
    same, different, identified = in_loops(results, tracklets, camera_filter)
    np.testing.assert_array_equal(results.verification.pairs.same, same)
    np.testing.assert_array_equal(results.verification.pairs.different, different)
    metrics = results.metrics()
    for way, share in identified.items():
        assert 0 < share < 1
        assert metrics[f"DIR/{way}@FAR=1e-01"] == pytest.approx(100 * share)
    assert metrics["ROC/EER"] == 100 * results.verification.pairs.equal_error_rate()
    others = {key: value for key, value in metrics.items() if key[:3] not in ("ROC", "DIR")}
    assert others == cross_modal_results(features, tracklets, **rules).metrics()


def test_trials_without_v2i_have_the_pairs_of_the_first_one():
    """And none of cameras that are never compared."""
    features, tracklets = toy(width=30)
    infrared, visible = np.arange(30), np.arange(30, 70)
    pairs = [(infrared, visible[::2]), (infrared, visible)]
    trials = Trials({"I2V": pairs}, skipped=frozenset({(1, 2)}))
    results = cross_modal_results(features, tracklets, roc=True, trials=trials, **PROTOCOL)
    same, different, identified = in_loops(results, tracklets, True, trials.skipped)
    np.testing.assert_array_equal(results.verification.pairs.same, same)
    np.testing.assert_array_equal(results.verification.pairs.different, different)
    metrics = results.metrics()
    assert metrics["DIR/I2V@FAR=1e-01"] == pytest.approx(100 * identified["I2V"])
    assert not any("V2I" in name for name in metrics)


def test_perfect_features_find_everybody_and_nobody():
    tracklets = [
        make_tracklet(pid, camid, modality)
        for camid, modality in ((1, Modality.INFRARED), (2, Modality.VISIBLE))
        for pid in range(4)
    ]
    results = cross_modal_results(torch.eye(4).repeat(2, 1), tracklets, roc=True, **PROTOCOL)
    metrics = results.metrics()
    assert metrics.pop("ROC/EER") == 0
    assert {value for key, value in metrics.items() if key[:3] in ("ROC", "DIR")} == {100}


def test_re_ranked_directions_have_pairs_of_their_own():
    features, tracklets = toy()
    reranking = Reranking(k_reciprocal=(5, 2, 0.3))
    results = cross_modal_results(features, tracklets, roc=True, reranking=reranking, **PROTOCOL)
    plain = cross_modal_results(features, tracklets, **PROTOCOL)
    numbers = [len(verify(each, tracklets).pairs.different) for each in (plain, results)]
    assert numbers[1] == 2 * numbers[0]


def test_the_evaluator_logs_and_writes_them(tmp_path, caplog):
    features, tracklets = toy()
    path = tmp_path / "results.json"
    evaluator = CrossModalEvaluator(tracklets=tracklets, roc=True, json_path=path, **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    with caplog.at_level(logging.INFO):
        metrics = evaluator.evaluate()
    assert json.loads(path.read_text())["metrics"] == metrics
    assert f"equal error rate {metrics['ROC/EER']:.2f} %" in caplog.text
    (row,) = [line for line in caplog.text.splitlines() if line.startswith("| DIR, V2I")]
    values = [f"{metrics[f'DIR/V2I@FAR={rate:.0e}']:.2f}" for rate in RATES]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == values


@pytest.mark.parametrize("seed", range(2))
def test_a_threshold_holds_for_other_people(seed):
    """One percent of false accepts among 150 people gives a half to two among 150 others."""
    rng = np.random.default_rng(seed)
    tracklets = [
        make_tracklet(pid, camid, modality, number)
        for pid in range(300)
        for camid, modality in ((1, Modality.INFRARED), (2, Modality.VISIBLE))
        for number in range(2)
    ]
    people, spread = rng.standard_normal((300, 24)), np.geomspace(2, 0.2, 24)
    features = np.array([people[t.pid] for t in tracklets]) * spread
    features = torch.tensor(features + 0.5 * rng.standard_normal(features.shape))
    halves = []
    for own in ([n for n, t in enumerate(tracklets) if (t.pid < 150) == half] for half in (1, 0)):
        subset = [tracklets[n] for n in own]
        results = cross_modal_results(features[own], subset, roc=True, **PROTOCOL)
        halves.append(results.verification.pairs)
    threshold = threshold_at(halves[0].different, 0.01)
    assert share_above(halves[0].different, threshold) == pytest.approx(0.01, abs=1e-5)
    assert 0.005 < share_above(halves[1].different, threshold) < 0.02
    assert share_above(halves[1].same, threshold) > 0.5
