"""Distributions against scikit-learn, camera pairs and confusions by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fastreid_star.report.similarity import camera_pairs, confusions, distribution

from .test_ranking import IR, RGB, made_up


def test_the_overlap_is_one_minus_the_area_under_the_roc_curve(star):
    direction = star.ranking.directions["I2V"]
    kept = ~direction.left_out
    found = distribution(direction)
    assert found.overlap == pytest.approx(
        1 - roc_auc_score(direction.right[kept], direction.similarity[kept]), abs=1e-9
    )
    assert found.pairs == (direction.right.sum(), kept.sum() - direction.right.sum())
    assert found.same.sum() == pytest.approx(1)
    assert found.different.sum() == pytest.approx(1)
    assert found.same_median == pytest.approx(np.median(direction.similarity[direction.right]))
    assert found.edges[0] == pytest.approx(direction.similarity[kept].min())
    assert found.edges[-1] == pytest.approx(direction.similarity[kept].max())


def test_equal_similarities_overlap_by_half():
    ranking = made_up([(1, 1, IR, 0), (1, 2, RGB, 30), (2, 2, RGB, 30), (2, 1, IR, 0)])
    assert distribution(ranking.directions["I2V"]).overlap == 0.5


def test_no_pair_of_two_people_is_no_distribution():
    ranking = made_up([(1, 1, IR, 0), (1, 2, RGB, 30)])
    assert distribution(ranking.directions["I2V"]) is None


def test_camera_pairs_by_hand():
    ranking = made_up(
        [
            *[(1, 1, IR, 0), (2, 1, IR, 40), (1, 2, IR, 3)],
            *[(1, 2, RGB, 5), (2, 2, RGB, 30), (1, 3, RGB, 39), (2, 3, RGB, 60), (1, 1, RGB, 1)],
        ]
    )
    found = camera_pairs(ranking.directions["I2V"], ranking.tracklets)
    assert found.query_cameras == [1, 2]
    assert found.gallery_cameras == [1, 2, 3]
    # camera 1's queries: of person 1 right in 2 and 3, of person 2 (at 40) right in 2, wrong in 3; camera 2's: of
    # person 1 in 1 and 3, its own camera is left out
    assert found.queries.tolist() == [[0, 2, 2], [1, 0, 1]]
    np.testing.assert_array_equal(found.accuracy, [[np.nan, 1, 0.5], [1, np.nan, 1]])


def test_confusions_by_hand():
    ranking = made_up(
        [
            *[(1, 1, IR, 0), (1, 4, IR, 2), (2, 1, IR, 40), (3, 1, IR, 90)],
            *[(1, 2, RGB, 30), (2, 2, RGB, 4), (3, 2, RGB, 95)],
        ]
    )
    direction = ranking.directions["I2V"]
    found = confusions(direction, ranking.tracklets, 5)
    # person 1 is taken for 2 twice, of which the clearer is shown, and 2 for 1; 3 is right
    assert [(one.row, one.wrong, one.right, one.right_rank) for one in found] == [
        (2, 0, 1, 2),
        (0, 1, 0, 2),
    ]
    assert found[0].lead == pytest.approx(np.cos(np.deg2rad(10)) - np.cos(np.deg2rad(36)), abs=1e-6)
    assert found[0].lead > found[1].lead > 0
    assert confusions(direction, ranking.tracklets, 1) == found[:1]
