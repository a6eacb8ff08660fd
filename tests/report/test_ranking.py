"""Ranked lists by hand and against the evaluation; similarities, cameras, confusions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fastreid_star.data.datasets.base import ListedTracklet
from fastreid_star.engine.trainer import Trainer
from fastreid_star.errors import UserError
from fastreid_star.report.ranking import (
    camera_pairs,
    choose_queries,
    confusions,
    distribution,
    most_changed,
    rank,
    rank_changes,
    require_comparable,
)
from fastreid_star.structures import Modality, Tracklet

PROTOCOL = {"min_frames": 1, "dataset_name": "made up", "ranks": (1, 5), "camera_filter": True}
IR, RGB = Modality.INFRARED, Modality.VISIBLE


def made_up(rows, roles=()):
    """A ranking of (pid, camid, modality, angle of the feature in degrees)."""
    tracklets = [
        Tracklet(pid, camid, modality, ".", (f"{n}.jpg",))
        for n, (pid, camid, modality, _) in enumerate(rows)
    ]
    if roles:
        tracklets = [
            ListedTracklet(t.pid, t.camid, t.modality, t.root, t.frames, role)
            for t, role in zip(tracklets, roles, strict=True)
        ]
    angles = torch.deg2rad(torch.tensor([row[3] for row in rows], dtype=torch.float32))
    features = 3 * torch.stack([angles.cos(), angles.sin()], dim=1)
    return rank(features, SimpleNamespace(tracklets=tracklets), **PROTOCOL)


def cosine(degrees):
    return np.cos(np.deg2rad(degrees))


@pytest.fixture
def small():
    """Query 0 is person 1: its own camera's clip is nearest, then come persons 2, 1 and 2."""
    rows = [(1, 1, IR, 0), (2, 1, IR, 50)]
    return made_up([*rows, (1, 1, RGB, 1), (2, 2, RGB, 10), (1, 2, RGB, 20), (2, 3, RGB, 30)])


def test_a_ranked_list_by_hand(small):
    direction = small.directions["I2V"]
    assert direction.queries.tolist() == [0, 1]
    assert direction.gallery.tolist() == [2, 3, 4, 5]
    assert direction.top(0, 5) == [1, 2, 3], "what the camera rule removes is in no list"
    assert direction.top(0, 2) == [1, 2]
    assert [direction.rank_of(0, column) for column in (1, 2, 3)] == [1, 2, 3]
    assert direction.best_right(0) == 2
    assert direction.per_query.first_match.tolist() == [2, 1]
    assert direction.lead(0) == pytest.approx(cosine(20) - cosine(10), abs=1e-6)
    assert direction.cmc(3).tolist() == [0.5, 1, 1]
    free = rank(small.features, small.dataset, **{**PROTOCOL, "camera_filter": False})
    assert free.directions["I2V"].top(0, 5) == [0, 1, 2, 3]
    assert free.directions["I2V"].rank_of(0, 2) == 3


def test_of_equals_the_lower_column_comes_first():
    rows = [(1, 1, IR, 0), (2, 2, RGB, 20), (1, 2, RGB, 20), (3, 2, RGB, 20), (2, 1, IR, 90)]
    direction = made_up(rows).directions["I2V"]
    assert direction.top(0, 3) == [0, 1, 2]
    assert [direction.rank_of(0, column) for column in range(3)] == [1, 2, 3]


def test_lists_and_numbers_are_the_evaluations(star):
    e = star
    assert e.metrics == Trainer.test(e.run.cfg, e.model)
    for direction in e.ranking.directions.values():
        results = direction.per_query
        for row in range(len(direction.queries)):
            column = direction.best_right(row)
            assert direction.rank_of(row, column) == results.first_match[row]
            order = direction.top(row, len(direction.gallery))
            assert order[0] == results.top1[row]
            hits = direction.right[row, order]
            precision = hits.cumsum() / np.arange(1, len(hits) + 1)
            assert precision[hits].mean() == pytest.approx(results.ap[row])
    batch = {
        key: value[None] if isinstance(value, torch.Tensor) else torch.tensor([value])
        for key, value in e.ranking.dataset[4].items()
    }
    assert torch.allclose(e.ranking.features[4], e.model(batch)[0], atol=1e-5)


def test_queries_of_a_list_are_in_no_ranked_list():
    rows = [(1, 1, IR, 0), (2, 1, RGB, 90), (2, 2, IR, 80), (1, 2, RGB, 5)]
    gallery = [(1, 3, RGB, 30), (2, 3, RGB, 60), (1, 4, IR, 50), (2, 4, IR, 40)]
    listed = made_up(rows + gallery, ["query"] * 4 + ["gallery"] * 4)
    i2v, v2i = listed.directions["I2V"], listed.directions["V2I"]
    assert (i2v.queries.tolist(), i2v.gallery.tolist()) == ([0, 2], [4, 5])
    assert (v2i.queries.tolist(), v2i.gallery.tolist()) == ([1, 3], [6, 7])
    assert v2i.per_query.first_match.tolist() == [2, 2]
    found = camera_pairs(v2i, listed.tracklets)
    assert (found.query_cameras, found.gallery_cameras) == ([1, 2], [4])
    assert found.accuracy.tolist() == [[0], [0]]


def test_queries_are_chosen_by_average_precision_and_of_different_people(star):
    direction, tracklets = star.ranking.directions["I2V"], star.ranking.tracklets
    chosen = choose_queries(direction, tracklets, 4, seed=3)
    ap = direction.per_query.ap
    for rows in chosen.values():
        assert len({tracklets[direction.queries[row]].pid for row in rows}) == len(rows) == 4
    assert ap[chosen["best"][0]] == ap.max()
    assert ap[chosen["worst"][0]] == ap.min()
    assert list(ap[chosen["best"]]) == sorted(ap[chosen["best"]], reverse=True)
    assert chosen == choose_queries(direction, tracklets, 4, seed=3)
    assert any(
        chosen["random"] != choose_queries(direction, tracklets, 4, seed=seed)["random"]
        for seed in range(5)
    )
    everything = choose_queries(direction, tracklets, 999, seed=3)["random"]
    assert sorted(everything) == list(range(len(direction.queries)))


def test_of_equally_good_queries_the_clearest_comes_first():
    rows = [(1, 1, IR, 0), (2, 1, IR, 90), (1, 2, RGB, 5), (2, 2, RGB, 60)]
    ranking = made_up([*rows, (3, 1, IR, 180), (3, 2, RGB, 180)])
    direction = ranking.directions["I2V"]
    assert (direction.per_query.ap == 1).all()
    assert choose_queries(direction, ranking.tracklets, 3, 0)["best"] == [2, 1, 0]


def test_the_overlap_is_one_minus_the_area_under_the_roc_curve(star):
    direction = star.ranking.directions["I2V"]
    kept = np.isfinite(direction.similarity)
    found = distribution(direction)
    area = roc_auc_score(direction.right[kept], direction.similarity[kept])
    assert found.overlap == pytest.approx(1 - area, abs=1e-9)
    assert found.pairs == (direction.right.sum(), kept.sum() - direction.right.sum())
    assert found.same.sum() == pytest.approx(1)
    assert found.different.sum() == pytest.approx(1)
    assert found.same_median == pytest.approx(np.median(direction.similarity[direction.right]))
    assert found.edges[0] == pytest.approx(direction.similarity[kept].min())


def test_equal_similarities_overlap_by_half_and_one_kind_is_no_distribution():
    rows = [(1, 1, IR, 0), (1, 2, RGB, 30)]
    assert distribution(made_up(rows).directions["I2V"]) is None
    ranking = made_up([*rows, (2, 2, RGB, 30), (2, 1, IR, 0)])
    assert distribution(ranking.directions["I2V"]).overlap == 0.5


def test_camera_pairs_by_hand():
    infrared = [(1, 1, IR, 0), (2, 1, IR, 40), (1, 2, IR, 3)]
    visible = [(1, 2, RGB, 5), (2, 2, RGB, 30), (1, 3, RGB, 39), (2, 3, RGB, 60), (1, 1, RGB, 1)]
    ranking = made_up(infrared + visible)
    found = camera_pairs(ranking.directions["I2V"], ranking.tracklets)
    assert (found.query_cameras, found.gallery_cameras) == ([1, 2], [1, 2, 3])
    # Camera 1: person 1 is right in 2 and 3, person 2 (at 40) right in 2 and wrong in 3.
    # Camera 2: person 1 in 1 and 3; the query's own camera is removed.
    assert found.queries.tolist() == [[0, 2, 2], [1, 0, 1]]
    np.testing.assert_array_equal(found.accuracy, [[np.nan, 1, 0.5], [1, np.nan, 1]])


def test_confusions_by_hand():
    infrared = [(1, 1, IR, 0), (1, 4, IR, 2), (2, 1, IR, 40), (3, 1, IR, 90)]
    ranking = made_up([*infrared, (1, 2, RGB, 30), (2, 2, RGB, 4), (3, 2, RGB, 95)])
    direction = ranking.directions["I2V"]
    # 1 is taken for 2 twice, of which the clearer is shown, and 2 for 1; 3 is right
    assert confusions(direction, ranking.tracklets, 5) == [2, 0]
    assert confusions(direction, ranking.tracklets, 1) == [2]
    assert -direction.lead(2) == pytest.approx(cosine(10) - cosine(36), abs=1e-6)


def test_the_queries_that_moved_most():
    def ranks(*first_match):
        first = np.array(first_match)
        return SimpleNamespace(per_query=SimpleNamespace(first_match=first, valid=first > 0))

    ours, theirs = ranks(1, 5, 9, 0, 2, 7, 3), ranks(4, 1, 9, 0, 5, 3, 1)
    assert rank_changes(ours, theirs) == {0: 3, 1: -4, 2: 0, 4: 3, 5: -4, 6: -2}
    assert most_changed(ours, theirs, 3) == ([0, 4], [1, 5, 6])
    assert most_changed(ours, theirs, 1) == ([0], [1])


def test_runs_on_other_tracklets_or_rules_are_refused():
    rows = [(1, 1, IR, 0), (2, 1, IR, 50), (2, 2, RGB, 10), (1, 2, RGB, 20)]
    one = made_up(rows)
    require_comparable(one, made_up(rows), ("A", "B"))
    other = made_up([(3, *row[1:]) if row[0] == 2 else row for row in rows])
    with pytest.raises(UserError, match="different tracklets"):
        require_comparable(one, other, ("A", "B"))
    looser = replace(one, results=replace(one.results, camera_filter=False))
    with pytest.raises(UserError, match=r"TEST\.CAMERA_FILTER"):
        require_comparable(one, looser, ("A", "B"))
