"""Both directions from one extraction: the numbers, the protocol, the per-query table, one process or two."""

import csv
import json
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from fastreid.evaluation.evaluator import DatasetEvaluator

from fastreid_star.data.datasets import ListedTracklet
from fastreid_star.errors import UserError
from fastreid_star.evaluation import cross_modal
from fastreid_star.evaluation.cross_modal import CrossModalEvaluator, cross_modal_results
from fastreid_star.evaluation.k_reciprocal import (
    expand,
    k_reciprocal_distances,
    temporal_distances,
)
from fastreid_star.evaluation.rerank import Reranking
from fastreid_star.evaluation.retrieval import evaluate_retrieval
from fastreid_star.evaluation.similarity import similarity
from fastreid_star.evaluation.tables import CSV_COLUMNS, format_table, write_query_csv
from fastreid_star.structures import Modality, Tracklet

PROTOCOL = {"min_frames": 2, "dataset_name": "Toy"}


def make_tracklet(pid, camid, modality, number=0, frames=2, role=None):
    folder = f"{pid:04d}/{modality.folder}/D{camid}"
    names = tuple(f"{folder}/{number}_{frame}.jpg" for frame in range(frames))
    if role is None:
        return Tracklet(pid, camid, modality, "/data", names)
    return ListedTracklet(pid, camid, modality, "/data", names, role)


def with_roles(tracklets, roles):
    pairs = zip(tracklets, roles, strict=True)
    return [make_tracklet(t.pid, t.camid, t.modality, role=str(role)) for t, role in pairs]


def toy(seed=0, infrared=30, visible=40, pids=8, width=12):
    """Random tracklets, queries first, and features that know a little about the identity."""
    random = np.random.default_rng(seed)
    tracklets = [
        make_tracklet(int(random.integers(pids)), int(random.integers(1, 4)), modality, number)
        for modality, count in ((Modality.INFRARED, infrared), (Modality.VISIBLE, visible))
        for number in range(count)
    ]
    centers = random.standard_normal((pids, width))
    features = np.array([centers[t.pid] for t in tracklets]) + 1.5 * random.standard_normal(
        (len(tracklets), width)
    )
    return torch.tensor(features, dtype=torch.float32), tracklets


def count_matches(tracklet, tracklets):
    """By the definition, camera rule included."""
    return sum(
        other.modality != tracklet.modality
        and other.pid == tracklet.pid
        and other.camid != tracklet.camid
        for other in tracklets
    )


def feed(evaluator, features, indexes, batch=7):
    for start in range(0, len(indexes), batch):
        index = torch.as_tensor(indexes[start : start + batch])
        evaluator.process({"index": index}, features[index])


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


# --- queries that are a list of their own ----------------------------------------------------------------------------


def listed(seed=0):
    """Features and tracklets, each a query or a gallery entry, modalities and roles in no order."""
    features, tracklets = toy(seed)
    roles = np.random.default_rng(seed).choice(["query", "gallery"], len(tracklets), p=[0.3, 0.7])
    order = np.random.default_rng(seed + 1).permutation(len(tracklets))
    given = with_roles(tracklets, roles)
    return features[order], [given[index] for index in order]


def by_brute_force(features, tracklets, query_modality, *, camera_filter):
    """Rank-k for k = 1 .. 20 and mAP in percent, from the definitions, with one loop a query."""
    unit = features.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    firsts, precisions = [], []
    for i, one in enumerate(tracklets):
        if one.role != "query" or one.modality != query_modality:
            continue
        gallery = [
            j
            for j, t in enumerate(tracklets)
            if t.role == "gallery"
            and t.modality != query_modality
            and not (camera_filter and (t.pid, t.camid) == (one.pid, one.camid))
        ]
        gallery.sort(key=lambda j: -(unit[i] @ unit[j]))
        ranks = [rank for rank, j in enumerate(gallery, start=1) if tracklets[j].pid == one.pid]
        if ranks:
            firsts.append(ranks[0])
            precisions.append(np.mean([n / rank for n, rank in enumerate(ranks, start=1)]))
    return [100 * np.mean(np.array(firsts) <= k) for k in range(1, 21)], 100 * np.mean(precisions)


@pytest.mark.parametrize("camera_filter", [False, True])
def test_listed_queries_against_brute_force(camera_filter):
    features, tracklets = listed()
    ranks = range(1, 21)
    evaluator = CrossModalEvaluator(
        tracklets=tracklets, ranks=ranks, camera_filter=camera_filter, **PROTOCOL
    )
    feed(evaluator, features, range(len(tracklets)))
    metrics = evaluator.evaluate()
    for direction, modality in (("I2V", Modality.INFRARED), ("V2I", Modality.VISIBLE)):
        cmc, mean_precision = by_brute_force(
            features, tracklets, modality, camera_filter=camera_filter
        )
        assert [metrics[f"{direction}/Rank-{k}"] for k in ranks] == pytest.approx(cmc)
        assert metrics[f"{direction}/mAP"] == pytest.approx(mean_precision)


def test_a_listed_query_is_never_found_and_a_gallery_entry_never_looked_for(tmp_path):
    """Every query's double stands in the query list: found there, all would be right; the gallery has it wrong."""

    tracklets = [
        make_tracklet(pid, 1 if role == "query" else 2, modality, role=role)
        for role in ("query", "gallery")
        for pid in (1, 2)
        for modality in Modality
    ]
    features = torch.eye(2)[
        [0, 0, 1, 1, 1, 1, 0, 0]
    ]  # a gallery entry looks like the other identity's query
    results = cross_modal_results(features, tracklets, camera_filter=False, **PROTOCOL)
    assert [side.tolist() for side in results.sides] == [[0, 2], [5, 7], [1, 3], [4, 6]]
    assert results.metrics()["I2V/Rank-1"] == results.metrics()["V2I/Rank-1"] == 0
    assert results.metrics()["I2V/mAP"] == results.metrics()["V2I/mAP"] == 50
    assert (
        "I2V: 2 infrared queries x 2 visible gallery tracklets, 2 identities, 2 valid queries"
        in results.protocol()
    )
    write_query_csv(tmp_path / "per_query.csv", results.directions(), tracklets)
    rows = read_csv(tmp_path / "per_query.csv")
    assert [(row["direction"], row["tracklet"], row["top1_tracklet"]) for row in rows] == [
        ("I2V", "0", "7"),
        ("I2V", "2", "5"),
        ("V2I", "1", "6"),
        ("V2I", "3", "4"),
    ]


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


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_shows_runs_side_by_side():
    results = cross_modal_results(*toy(), **PROTOCOL)
    metrics = cross_modal_results(*toy(seed=1), **PROTOCOL).metrics()
    # The metrics an evaluator returned, and fast-reid adds the dataset's name to.
    header, rule, *rows = cells(
        format_table({"untrained": results.metrics(), "trained": {**metrics, "dataset": "Toy"}})
    )
    assert header == ["%", "Rank-1", "Rank-5", "Rank-10", "Rank-20", "mAP", "mINP"]
    assert set("".join(rule)) <= set(":-")
    names = [
        f"{run} {direction}"
        for run in ("untrained", "trained")
        for direction in ("I2V", "V2I", "mean")
    ]
    assert [row[0] for row in rows] == names
    assert rows[0][1:] == [
        f"{100 * value:.2f}" for value in (*results.i2v.cmc, results.i2v.mAP, results.i2v.mINP)
    ]
    assert rows[4][5] == f"{metrics['V2I/mAP']:.2f}"
    assert rows[5][5] == f"{metrics['metric']:.2f}"
    assert rows[5][2] == f"{(metrics['I2V/Rank-5'] + metrics['V2I/Rank-5']) / 2:.2f}"
    with pytest.raises(ValueError, match="columns"):
        format_table({"a": metrics, "b": {"I2V/Rank-1": 1.0, "V2I/Rank-1": 1.0}})


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_a_row_for_each_query_and_direction(tmp_path):
    features, tracklets = toy()
    path = tmp_path / "new" / "per_query.csv"
    evaluator = CrossModalEvaluator(tracklets=tracklets, csv_path=path, **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    metrics = evaluator.evaluate()
    rows = read_csv(path)
    assert list(rows[0]) == list(CSV_COLUMNS)
    assert [row["direction"] for row in rows] == ["I2V"] * 30 + ["V2I"] * 40
    assert [int(row["tracklet"]) for row in rows] == list(range(70))
    assert [path.name for path in path.parent.iterdir()] == ["per_query.csv"]

    unit = features / features.norm(dim=1, keepdim=True)
    for row in rows:
        index, top1 = int(row["tracklet"]), int(row["top1_tracklet"])
        tracklet = tracklets[index]
        assert (int(row["pid"]), int(row["camid"])) == (tracklet.pid, tracklet.camid)
        assert row["modality"] == tracklet.modality.name.lower()
        assert row["first_frame"] == tracklet.path(0)
        assert tracklets[top1].modality != tracklet.modality
        assert int(row["top1_pid"]) == tracklets[top1].pid
        assert float(row["top1_similarity"]) == pytest.approx(
            float(unit[index] @ unit[top1]), abs=1e-6
        )
        assert (row["first_match_rank"] == "1") == (tracklets[top1].pid == tracklet.pid)
        assert int(row["n_matches"]) == count_matches(tracklet, tracklets)

    for direction in ("I2V", "V2I"):
        mine = [row for row in rows if row["direction"] == direction]
        for column, measure in (("AP", "mAP"), ("INP", "mINP")):
            mean = 100 * np.mean([float(row[column]) for row in mine if row[column]])
            assert mean == pytest.approx(metrics[f"{direction}/{measure}"], abs=1e-12)


def test_the_csv_leaves_out_what_does_not_exist(tmp_path):
    # V2I, one gallery entry (1, camera 1): tracklet 2 has no match, tracklet 3 has its whole gallery removed.
    tracklets = [
        make_tracklet(1, 1, Modality.INFRARED),
        make_tracklet(1, 2, Modality.VISIBLE),
        make_tracklet(2, 1, Modality.VISIBLE),
        make_tracklet(1, 1, Modality.VISIBLE),
    ]
    results = cross_modal_results(torch.eye(4) + 1, tracklets, **PROTOCOL)
    write_query_csv(tmp_path / "per_query.csv", results.directions(), tracklets)
    rows = read_csv(tmp_path / "per_query.csv")
    assert [int(row["n_matches"]) for row in rows] == [1, 1, 0, 0]
    measures = ("first_match_rank", "AP", "INP")
    top1 = ("top1_pid", "top1_tracklet", "top1_similarity")
    assert (
        [rows[2][name] for name in measures] == [rows[3][name] for name in measures] == ["", "", ""]
    )
    assert [rows[2][name] for name in top1[:2]] == ["1", "0"]
    assert [rows[3][name] for name in top1] == ["", "", ""]


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
