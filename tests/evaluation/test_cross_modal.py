"""Both directions from one extraction: the numbers, the protocol, the per-query table, one process or two."""

import csv
import logging
import math
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fastreid_star  # noqa: F401  before fastreid: the spawned workers have no conftest

# isort: split
from fastreid.evaluation.evaluator import DatasetEvaluator
from fastreid.utils import comm

from fastreid_star.data.datasets import ListedTracklet
from fastreid_star.engine.launch import launch
from fastreid_star.errors import UserError
from fastreid_star.evaluation import cross_modal
from fastreid_star.evaluation.cross_modal import (
    CrossModalEvaluator,
    cross_modal_results,
    format_table,
    write_query_csv,
)
from fastreid_star.evaluation.retrieval import evaluate_retrieval
from fastreid_star.structures import Modality, Tracklet

PROTOCOL = {"min_frames": 2, "dataset_name": "Toy"}


def make_tracklet(pid, camid, modality, number=0, frames=2):
    folder = f"{pid:04d}/{modality.folder}/D{camid}"
    return Tracklet(
        pid,
        camid,
        modality,
        "/data",
        tuple(f"{folder}/{number}_{frame}.jpg" for frame in range(frames)),
    )


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
        expected = evaluate_retrieval(unit[q], unit[g], pids[q], pids[g], camids[q], camids[g])
        got = [metrics[f"{direction}/{measure}"] for measure in measures]
        assert got == pytest.approx(
            [100 * value for value in (*expected.cmc, expected.mAP, expected.mINP)]
        )
    assert metrics["I2V/mAP"] != metrics["V2I/mAP"]
    for measure in ("Rank-1", "mAP", "mINP"):
        both = (metrics[f"I2V/{measure}"] + metrics[f"V2I/{measure}"]) / 2
        assert metrics[f"mean/{measure}"] == pytest.approx(both)
    assert metrics["metric"] == metrics["mean/mAP"]


def direction_by_itself(features, tracklets, query, gallery):
    unit = torch.nn.functional.normalize(features, dim=1)
    pids, camids = np.array([t.pid for t in tracklets]), np.array([t.camid for t in tracklets])
    return evaluate_retrieval(
        unit[query], unit[gallery], pids[query], pids[gallery], camids[query], camids[gallery]
    )


def assert_equal(a, b):
    assert (a.cmc, a.mAP, a.mINP, a.valid_queries) == (b.cmc, b.mAP, b.mINP, b.valid_queries)
    for name in ("n_matches", "first_match", "ap", "inp", "top1", "top1_similarity"):
        np.testing.assert_array_equal(getattr(a.per_query, name), getattr(b.per_query, name))


@pytest.fixture
def products(monkeypatch):
    """What was ranked from features, as opposed to from similarities that were there."""
    sizes = []

    def spy(query, gallery, *args, **kwargs):
        sizes.append((len(query), len(gallery)))
        return evaluate_retrieval(query, gallery, *args, **kwargs)

    monkeypatch.setattr(cross_modal, "evaluate_retrieval", spy)
    return sizes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [30 * 40, 30 * 40 - 1])
def test_one_product_serves_both_directions_unless_it_is_too_large(
    seed, limit, products, monkeypatch
):
    monkeypatch.setattr(cross_modal, "MAX_SHARED", limit)
    _, tracklets = toy(seed)
    # one of four axes and a sign each: products are 1, 0 or -1 without rounding, and nearly all tied
    random = np.random.default_rng(seed)
    features = torch.eye(4)[torch.from_numpy(random.integers(4, size=70))]
    features *= torch.from_numpy(random.choice([-1.0, 1.0], (70, 1)))
    results = cross_modal_results(features, tracklets, **PROTOCOL)
    assert products == [(30, 40)] if limit == 30 * 40 else [(30, 40), (40, 30)]
    infrared, visible = np.arange(30), np.arange(30, 70)
    assert_equal(results.i2v, direction_by_itself(features, tracklets, infrared, visible))
    assert_equal(results.v2i, direction_by_itself(features, tracklets, visible, infrared))
    assert results.i2v.similarity is results.v2i.similarity is None


def test_a_dataset_with_roles_has_a_product_a_direction(products):
    features, tracklets = toy()
    roles = ["gallery" if row % 2 else "query" for row in range(70)]
    listed = [
        ListedTracklet(t.pid, t.camid, t.modality, t.root, t.frames, role)
        for t, role in zip(tracklets, roles, strict=True)
    ]
    results = cross_modal_results(features, listed, **PROTOCOL)
    assert products == [(15, 20), (20, 15)]
    _, _, query, gallery = results.sides
    assert_equal(results.v2i, direction_by_itself(features, tracklets, query, gallery))


@pytest.mark.parametrize("limit", [0, 30 * 40])
def test_similarities_are_kept_where_they_are_asked_for(limit, monkeypatch):
    monkeypatch.setattr(cross_modal, "MAX_SHARED", limit)
    features, tracklets = toy()
    results = cross_modal_results(features, tracklets, **PROTOCOL, keep_similarity=True)
    unit = torch.nn.functional.normalize(features, dim=1)
    for direction, queries, gallery in (
        (results.i2v, unit[:30], unit[30:]),
        (results.v2i, unit[30:], unit[:30]),
    ):
        np.testing.assert_allclose(
            direction.similarity, (queries @ gallery.T).numpy(), rtol=0, atol=1e-6
        )
        top1 = np.take_along_axis(direction.similarity, direction.per_query.top1[:, None], axis=1)[
            :, 0
        ]
        np.testing.assert_array_equal(top1, direction.per_query.top1_similarity)


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


def test_swapping_the_modalities_swaps_the_directions():
    features, tracklets = toy()
    other = {Modality.INFRARED: Modality.VISIBLE, Modality.VISIBLE: Modality.INFRARED}
    swapped = [replace(tracklet, modality=other[tracklet.modality]) for tracklet in tracklets]
    before = cross_modal_results(features, tracklets, **PROTOCOL).metrics()
    after = cross_modal_results(features, swapped, **PROTOCOL).metrics()
    for key in before:
        direction, _, measure = key.partition("/")
        assert (
            before[key]
            == after[{"I2V": "V2I", "V2I": "I2V"}.get(direction, direction) + _ + measure]
        )


def test_tracklets_need_no_order():
    features, tracklets = toy()
    order = np.random.default_rng(1).permutation(len(tracklets))
    before = cross_modal_results(features, tracklets, **PROTOCOL)
    after = cross_modal_results(features[order], [tracklets[index] for index in order], **PROTOCOL)
    assert before.metrics() == pytest.approx(after.metrics())
    for one, other in zip(before.sides, after.sides, strict=True):
        assert sorted(order[other]) == one.tolist()


def test_the_order_of_batches_does_not_matter():
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    in_order = evaluator.evaluate()
    evaluator.reset()
    feed(evaluator, features, np.random.default_rng(3).permutation(len(tracklets)), batch=11)
    assert evaluator.evaluate() == in_order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_kept_as_float32_and_apart_from_the_batch(dtype):
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    index, batch = torch.arange(len(tracklets)), features.to(dtype, copy=True).requires_grad_()
    evaluator.process({"index": index}, batch)
    expected = cross_modal_results(features.to(dtype).float(), tracklets, **PROTOCOL).metrics()
    with torch.no_grad():
        batch.zero_()
    index.zero_()
    assert evaluator.evaluate() == expected


def test_a_second_evaluation_starts_anew():
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    feed(evaluator, torch.ones_like(features), range(len(tracklets)))
    evaluator.reset()
    feed(evaluator, features, range(len(tracklets)))
    assert evaluator.evaluate() == cross_modal_results(features, tracklets, **PROTOCOL).metrics()


@pytest.mark.parametrize(
    ("indexes", "message"),
    [
        ([], r"70 missing \(index 0, 1, 2,"),
        (range(67), r"70 tracklets .* 3 missing \(index 67, 68, 69\)"),
        ([*range(70), 5], r"1 seen more than once \(index 5\)"),
        ([*range(69), 3], r"1 missing \(index 69\); 1 seen more than once \(index 3\)"),
    ],
)
def test_every_tracklet_is_seen_exactly_once(indexes, message):
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    feed(evaluator, features, list(indexes))
    with pytest.raises(AssertionError, match=message):
        evaluator.evaluate()


def test_an_index_beyond_the_tracklets():
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets[:-1], **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    with pytest.raises(AssertionError, match=r"1 unknown \(index 69\)"):
        evaluator.evaluate()


def test_a_batch_that_does_not_fit_its_index():
    evaluator = CrossModalEvaluator(tracklets=toy()[1], **PROTOCOL)
    with pytest.raises(ValueError, match=r"index \[3\] and features \[2, 4\]"):
        evaluator.process({"index": torch.arange(3)}, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"\[B\] and \[B, D\]"):
        evaluator.process({"index": torch.arange(3)}, torch.ones(3, 4, 1))


def test_nan_features_are_named_by_their_tracklets():
    features, tracklets = toy()
    features[[3, 41], 0] = math.nan
    evaluator = CrossModalEvaluator(tracklets=tracklets, **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    with pytest.raises(UserError, match=r"Toy features: 2 of 70 tracklets .* index 3, 41;"):
        evaluator.evaluate()


def test_features_and_tracklets_must_be_as_many():
    features, tracklets = toy()
    with pytest.raises(ValueError, match=r"70 tracklets need features \[70, D\], got \[69, 12\]"):
        cross_modal_results(features[1:], tracklets, **PROTOCOL)


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


def test_results_that_are_not_each_others_reverse():
    results = cross_modal_results(*toy(), **PROTOCOL)
    with pytest.raises(
        ValueError, match="I2V must use all of 30 queries and 40 gallery entries, V2I of 40 and 30"
    ):
        replace(results, v2i=results.i2v)
    with pytest.raises(ValueError, match="ranks"):
        replace(results, v2i=replace(results.v2i, ranks=(1, 2, 3, 4)))


# --- queries that are a list of their own ----------------------------------------------------------------------------


def listed(seed=0):
    """Features and tracklets, each a query or a gallery entry, modalities and roles in no order."""
    features, tracklets = toy(seed)
    roles = np.random.default_rng(seed).choice(["query", "gallery"], len(tracklets), p=[0.3, 0.7])
    order = np.random.default_rng(seed + 1).permutation(len(tracklets))
    given = [
        ListedTracklet(t.pid, t.camid, t.modality, t.root, t.frames, str(role))
        for t, role in zip(tracklets, roles, strict=True)
    ]
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
            if t.role == "gallery" and t.modality != query_modality
        ]
        if camera_filter:
            gallery = [
                j for j in gallery if (tracklets[j].pid, tracklets[j].camid) != (one.pid, one.camid)
            ]
        gallery.sort(key=lambda j: -(unit[i] @ unit[j]))
        ranks = [rank for rank, j in enumerate(gallery, start=1) if tracklets[j].pid == one.pid]
        if ranks:
            firsts.append(ranks[0])
            precisions.append(np.mean([n / rank for n, rank in enumerate(ranks, start=1)]))
    return [100 * np.mean(np.array(firsts) <= k) for k in range(1, 21)], 100 * np.mean(precisions)


@pytest.mark.parametrize("camera_filter", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_listed_queries_against_brute_force(seed, camera_filter):
    features, tracklets = listed(seed)
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

    def both(pid, role):
        camid = 1 if role == "query" else 2
        plain = [make_tracklet(pid, camid, modality) for modality in Modality]
        return [ListedTracklet(t.pid, t.camid, t.modality, t.root, t.frames, role) for t in plain]

    tracklets = [*both(1, "query"), *both(2, "query"), *both(1, "gallery"), *both(2, "gallery")]
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
    write_query_csv(tmp_path / "per_query.csv", results, tracklets)
    rows = read_csv(tmp_path / "per_query.csv")
    assert [(row["direction"], row["tracklet"], row["top1_tracklet"]) for row in rows] == [
        ("I2V", "0", "7"),
        ("I2V", "2", "5"),
        ("V2I", "1", "6"),
        ("V2I", "3", "4"),
    ]


def test_listed_queries_of_one_modality_only():
    _, tracklets = listed()
    kept = [t for t in tracklets if t.role == "gallery" or t.modality is Modality.INFRARED]
    queries = sum(t.role == "query" for t in kept)
    with pytest.raises(
        UserError,
        match=rf"Toy: {queries} infrared and 0 visible queries, \d+ infrared and \d+ visible",
    ):
        CrossModalEvaluator(tracklets=kept, **PROTOCOL)


def test_a_role_that_there_is_none_of():
    with pytest.raises(ValueError, match="'probe' is neither query nor gallery"):
        ListedTracklet(1, 1, Modality.VISIBLE, "/data", ("a.jpg",), "probe")


def test_the_log_shows_the_table_beside_its_protocol(caplog):
    features, tracklets = toy()
    tracklets[0] = replace(tracklets[0], pid=99)  # a query without a match
    evaluator = CrossModalEvaluator(tracklets=tracklets, ranks=(1, 3), **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    with caplog.at_level(logging.INFO, logger="fastreid_star.evaluation.cross_modal"):
        metrics = evaluator.evaluate()
    assert [key for key in metrics if "Rank" in key] == [
        "I2V/Rank-1",
        "I2V/Rank-3",
        "V2I/Rank-1",
        "V2I/Rank-3",
        "mean/Rank-1",
    ]
    (record,) = caplog.records
    identities = len({tracklet.pid for tracklet in tracklets[:30]})
    valid = sum(count_matches(tracklet, tracklets) > 0 for tracklet in tracklets[:30])
    assert valid < 30
    for expected in (
        "Toy: tracklets of at least 2 frames; same identity and camera removed from the gallery",
        f"I2V: 30 infrared queries x 40 visible gallery tracklets, {identities} identities, {valid} valid queries",
        "V2I: 40 visible queries x 30 infrared gallery tracklets",
        f"{metrics['I2V/mAP']:.2f}",
        f"{metrics['mean/mINP']:.2f}",
    ):
        assert expected in record.getMessage()
    assert record.name == "fastreid_star.evaluation.cross_modal"


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_shows_runs_side_by_side():
    results = cross_modal_results(*toy(), **PROTOCOL)
    metrics = cross_modal_results(*toy(seed=1), **PROTOCOL).metrics()
    # The metrics an evaluator returned, and fast-reid adds the dataset's name to.
    header, rule, *rows = cells(
        format_table({"untrained": results, "trained": {**metrics, "dataset": "Toy"}})
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


def test_a_table_of_one_run_names_only_the_directions():
    table = format_table({"": cross_modal_results(*toy(), **PROTOCOL)})
    assert [row[0] for row in cells(table)[2:]] == ["I2V", "V2I", "mean"]
    assert "\033" not in table


def test_tables_that_cannot_be_made():
    with pytest.raises(ValueError, match="no results"):
        format_table({})
    with pytest.raises(ValueError, match="'b' has the columns"):
        format_table(
            {
                "a": cross_modal_results(*toy(), **PROTOCOL),
                "b": cross_modal_results(*toy(), ranks=(1,), **PROTOCOL),
            }
        )
    with pytest.raises(ValueError, match="'a' has the columns"):
        format_table({"a": {"mAP": 1.0}})


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
    assert list(rows[0]) == list(cross_modal.CSV_COLUMNS)
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
    write_query_csv(tmp_path / "per_query.csv", results, tracklets)
    rows = read_csv(tmp_path / "per_query.csv")
    assert [int(row["n_matches"]) for row in rows] == [1, 1, 0, 0]
    measures = ("first_match_rank", "AP", "INP")
    top1 = ("top1_pid", "top1_tracklet", "top1_similarity")
    assert (
        [rows[2][name] for name in measures] == [rows[3][name] for name in measures] == ["", "", ""]
    )
    assert [rows[2][name] for name in top1[:2]] == ["1", "0"]
    assert [rows[3][name] for name in top1] == ["", "", ""]


def test_an_interrupted_csv_leaves_the_previous_one(tmp_path, monkeypatch):
    features, tracklets = toy()
    path = tmp_path / "per_query.csv"
    path.write_text("previous")
    results = cross_modal_results(features, tracklets, **PROTOCOL)

    def interrupted(*args):
        yield ("I2V", 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_modal, "_csv_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_query_csv(path, results, tracklets)
    assert path.read_text() == "previous"
    assert [file.name for file in tmp_path.iterdir()] == ["per_query.csv"]


def test_two_processes_give_the_numbers_of_one(tmp_path):
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets, csv_path=tmp_path / "one.csv", **PROTOCOL)
    feed(evaluator, features, range(len(tracklets)))
    expected = evaluator.evaluate()
    # In a Python of its own: spawned workers import the main module, which under pytest is not this one.
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=120)
    assert torch.load(tmp_path / "rank0.pt") == expected
    assert torch.load(tmp_path / "rank1.pt") == {}
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()


def _worker(folder):
    rank = comm.get_rank()
    features, tracklets = toy()
    evaluator = CrossModalEvaluator(tracklets=tracklets, csv_path=folder / "two.csv", **PROTOCOL)
    # Neither contiguous nor equally many a process.
    feed(
        evaluator,
        features,
        list(range(len(tracklets)))[::3] if rank else [i for i in range(70) if i % 3],
    )
    torch.save(dict(evaluator.evaluate()), folder / f"rank{rank}.pt")


if __name__ == "__main__":
    launch(_worker, 2, device="cpu", args=(Path(sys.argv[1]),))
