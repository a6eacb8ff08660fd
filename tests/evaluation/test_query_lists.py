"""Queries that are a list of their own: never found, and never looked for elsewhere."""

import numpy as np
import pytest
import torch

from fastreid_star.evaluation.cross_modal import CrossModalEvaluator, cross_modal_results
from fastreid_star.evaluation.tables import write_query_csv
from fastreid_star.structures import Modality

from .toy import PROTOCOL, feed, make_tracklet, read_csv, toy, with_roles


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
