"""Ranked lists: by hand, against the evaluation, and the choice of queries."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastreid_star.data.datasets.base import ListedTracklet
from fastreid_star.engine.trainer import Trainer
from fastreid_star.report import ranking as module
from fastreid_star.report.ranking import choose_queries, margin, rank
from fastreid_star.report.sections import distribution_charts
from fastreid_star.report.similarity import camera_pairs, confusions
from fastreid_star.structures import Modality, Tracklet

PROTOCOL = {"min_frames": 1, "dataset_name": "made up", "ranks": (1, 5), "camera_filter": True}


def made_up(rows, roles=()):
    """A ranking of (pid, camid, modality, angle of the feature in degrees); `roles` where the queries are a list."""
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


IR, RGB = Modality.INFRARED, Modality.VISIBLE


@pytest.fixture
def small():
    """Query 0 is person 1: its own camera's clip is nearest and left out, then come person 2, 1 and 2."""
    return made_up(
        [
            (1, 1, IR, 0),
            (2, 1, IR, 50),
            (1, 1, RGB, 1),
            (2, 2, RGB, 10),
            (1, 2, RGB, 20),
            (2, 3, RGB, 30),
        ]
    )


def test_a_ranked_list_by_hand(small):
    direction = small.directions["I2V"]
    assert direction.queries.tolist() == [0, 1]
    assert direction.gallery.tolist() == [2, 3, 4, 5]
    assert direction.top(0, 5) == [1, 2, 3], "what the camera rule leaves out is in no list"
    assert direction.top(0, 2) == [1, 2]
    assert [direction.rank_of(0, column) for column in (1, 2, 3)] == [1, 2, 3]
    assert direction.best_right(0) == 2
    assert direction.per_query.first_match.tolist() == [2, 1]
    assert direction.similarity[0, 1] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-6)
    assert margin(direction, 0) == pytest.approx(
        np.cos(np.deg2rad(20)) - np.cos(np.deg2rad(10)), abs=1e-6
    )
    assert direction.cmc(3).tolist() == [0.5, 1, 1]


def test_of_equals_the_lower_column_comes_first():
    ranking = made_up(
        [(1, 1, IR, 0), (2, 2, RGB, 20), (1, 2, RGB, 20), (3, 2, RGB, 20), (2, 1, IR, 90)]
    )
    direction = ranking.directions["I2V"]
    assert direction.top(0, 3) == [0, 1, 2]
    assert [direction.rank_of(0, column) for column in range(3)] == [1, 2, 3]


def test_lists_that_are_not_the_evaluations_are_refused(small, monkeypatch):
    rows = [(1, 1, IR, 0), (2, 1, IR, 50), (2, 2, RGB, 10), (1, 2, RGB, 20)]
    made_up(rows)
    real = np.argsort
    monkeypatch.setattr(module.np, "argsort", lambda values, **kwargs: real(-values, **kwargs))
    with pytest.raises(AssertionError, match="not the one that the evaluation has measured"):
        module._ordered(
            small.directions["I2V"].similarity,
            small.directions["I2V"].right,
            small.directions["I2V"].left_out,
            small.directions["I2V"].per_query,
            5,
        )


def test_the_features_are_the_evaluators_and_so_are_the_numbers(star):
    metrics = Trainer.test(star.run.cfg, star.model)
    assert star.ranking.results.metrics() == metrics
    first = star.model({key: value[None] if isinstance(value, torch.Tensor) else torch.tensor([value])
                        for key, value in star.ranking.dataset[4].items()})  # fmt: skip
    assert torch.allclose(star.ranking.features[4], first[0], atol=1e-5), (
        "in the order of the tracklets"
    )
    for direction in star.ranking.directions.values():
        for row in range(len(direction.queries)):
            column = direction.best_right(row)
            assert direction.rank_of(row, column) == direction.per_query.first_match[row]


def test_without_a_camera_rule_nothing_is_left_out(small):
    assert small.directions["I2V"].left_out.sum() == 1
    free = rank(small.features, small.dataset, **{**PROTOCOL, "camera_filter": False}).directions[
        "I2V"
    ]
    assert not free.left_out.any()
    assert free.top(0, 5) == [0, 1, 2, 3]
    assert free.rank_of(0, 2) == 3


@pytest.fixture
def listed():
    """Two queries of each modality, whose own list they are, and a gallery of two of each."""
    rows = [(1, 1, IR, 0), (2, 1, RGB, 90), (2, 2, IR, 80), (1, 2, RGB, 5)]
    gallery = [(1, 3, RGB, 30), (2, 3, RGB, 60), (1, 4, IR, 50), (2, 4, IR, 40)]
    return made_up(rows + gallery, ["query"] * 4 + ["gallery"] * 4)


def test_queries_of_a_list_are_in_no_ranked_list(listed):
    i2v, v2i = listed.directions["I2V"], listed.directions["V2I"]
    assert (i2v.queries.tolist(), i2v.gallery.tolist()) == ([0, 2], [4, 5])
    assert (v2i.queries.tolist(), v2i.gallery.tolist()) == ([1, 3], [6, 7])
    assert [i2v.top(row, 5) for row in (0, 1)] == [[0, 1], [1, 0]]
    assert [v2i.top(row, 5) for row in (0, 1)] == [[0, 1], [1, 0]]
    assert v2i.per_query.first_match.tolist() == [2, 2]
    assert [v2i.best_right(row) for row in (0, 1)] == [1, 0]
    found = camera_pairs(v2i, listed.tracklets)
    assert (found.query_cameras, found.gallery_cameras, found.accuracy.tolist()) == (
        [1, 2],
        [4],
        [[0], [0]],
    )
    assert [(one.row, one.wrong, one.right) for one in confusions(v2i, listed.tracklets, 5)] == [
        (0, 0, 1),
        (1, 1, 0),
    ]


def test_of_two_lists_each_has_a_chart_of_its_own(listed, small):
    def titles(ranking):
        charts = distribution_charts([SimpleNamespace(name="A", ranking=ranking)])
        return [re.search('aria-label="([^:]*):', chart.chart)[1] for chart in charts]

    assert titles(listed) == ["A, I2V", "A, V2I"]
    assert titles(small) == ["A"]


def test_queries_are_chosen_by_their_measure_and_of_different_people(star):
    direction, tracklets = star.ranking.directions["I2V"], star.ranking.tracklets
    chosen = choose_queries(direction, tracklets, 4, seed=3)
    ap = direction.per_query.ap
    for rows in chosen.values():
        assert len(rows) == 4
        assert len({tracklets[direction.queries[row]].pid for row in rows}) == 4
    assert ap[chosen["best"][0]] == ap.max()
    assert ap[chosen["worst"][0]] == ap.min()
    assert list(ap[chosen["best"]]) == sorted(ap[chosen["best"]], reverse=True)
    assert chosen == choose_queries(direction, tracklets, 4, seed=3)
    assert any(
        chosen["random"] != choose_queries(direction, tracklets, 4, seed=seed)["random"]
        for seed in range(5)
    )
    everything = choose_queries(direction, tracklets, 999, seed=3)["random"]
    assert sorted(everything) == list(range(len(direction.queries))), (
        "people repeat where there are no others"
    )


def test_of_equally_good_queries_the_clearest_comes_first():
    ranking = made_up(
        [
            (1, 1, IR, 0),
            (2, 1, IR, 90),
            (1, 2, RGB, 5),
            (2, 2, RGB, 60),
            (3, 1, IR, 180),
            (3, 2, RGB, 180),
        ]
    )
    direction = ranking.directions["I2V"]
    assert (direction.per_query.ap == 1).all()
    assert choose_queries(direction, ranking.tracklets, 3, 0)["best"] == [2, 1, 0]
