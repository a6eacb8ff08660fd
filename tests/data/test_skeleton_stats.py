import numpy as np
import pytest

from fastreid_star.data.skeleton_stats import SkeletonStats, beyond, measure, what_is_wrong

SIZE = (100, 50)  # height, width
UNKNOWN = np.zeros((1, 2))


def standing(height=90.0, x=25.0, top=5.0):
    """The joints of a standing person, float [17,3]: `height` tall and a fifth as wide."""
    y = np.linspace(top, top + height, 17)
    side = height / 10 * np.where(np.arange(17) % 2, 1, -1)
    return np.stack([x + side, y, np.full(17, 0.75)], axis=1)


def test_sums_and_means_by_hand():
    """Four frames: one without a skeleton, one of unknown size; the ankle at 95 is below 90."""
    joints = np.stack([standing(), standing(), standing()])
    joints[0, 0, 0] = -3
    stats = measure(4, joints, np.array([SIZE, (90, 50), (0, 0)]))
    assert (stats.frames, stats.found, stats.measured, stats.outside) == (4, 3, 2, 2)
    assert stats.coverage == 0.75
    assert stats.outside_share == pytest.approx(2 / 34)
    assert stats.mean_height == pytest.approx((0.9 + 1) / 2)
    assert stats.mean_score == pytest.approx(0.75)
    assert (stats + stats).outside == 4


def test_the_edges_of_a_frame():
    points = np.array([[-0.5, 0], [49.5, 99.5], [-0.6, 50], [25, 99.6], [-5.5, 119.5], [59.5, 0]])
    np.testing.assert_allclose(
        beyond(points, np.array(SIZE)), [0, 0, 0.002, 0.001, 0.2, 0.2], atol=1e-12
    )


def test_a_joint_or_two_far_outside_is_no_fault():
    joints = standing()
    joints[:3, 0] = 70
    assert what_is_wrong(joints[:, :2], SIZE) == ""
    joints[3, 0] = 70
    assert "4 of 17 joints far outside the frame of 100 x 50" in what_is_wrong(joints[:, :2], SIZE)


@pytest.mark.parametrize(
    ("joints", "cause"),
    [
        (standing()[:, [1, 0, 2]], "are x and y swapped?"),
        (standing() * (3, 3, 1), "a frame about 2.9 times as large?"),
        (standing() + np.array([400, 0, 0]), "made for another crop"),
        (standing() / (50, 100, 1), "all joints within 0.9 pixels: are x, y shares"),
        (standing() * 0, "all joints within 0.0 pixels"),
    ],
)
def test_what_is_wrong_names_the_likely_cause(joints, cause):
    assert cause in what_is_wrong(joints[:, :2], SIZE)


# positions of COCO's joints in the lists of other datasets, if these have the joint
H36M = [11, 12, 14, 16, 11, 13, 15, 5, 5, 0, 0, 5, 7, 9, 6, 8, 10]
OPENPOSE = [0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4]


@pytest.mark.parametrize("order", [H36M, OPENPOSE, range(16, -1, -1)])
def test_joints_in_another_order(order):
    y = np.array([10, 8, 8, 9, 9, 20, 20, 35, 35, 48, 48, 50, 50, 70, 70, 90, 90])
    coco = np.stack([np.full(17, 25), y, np.ones(17)], axis=1)
    assert measure(1, coco[None], UNKNOWN).disordered == 0
    assert measure(1, coco[list(order)][None], UNKNOWN).disordered == 1


def test_nothing_measured():
    stats = measure(4, np.empty((0, 17, 3)), np.empty((0, 2)))
    assert stats.coverage == 0
    means = (stats.mean_score, stats.mean_height, stats.outside_share, SkeletonStats().coverage)
    assert np.isnan(means).all()
