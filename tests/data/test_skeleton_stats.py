import numpy as np
import pytest

from fastreid_star.data.skeleton_stats import SkeletonStats, beyond, measure, what_is_wrong

SIZE = (100, 50)  # height, width


def standing(height=90.0, x=25.0, top=5.0):
    """The joints of a standing person, float [17,3]: `height` tall and a fifth as wide."""
    y = np.linspace(top, top + height, 17)
    side = height / 10 * np.where(np.arange(17) % 2, 1, -1)
    return np.stack([x + side, y, np.full(17, 0.75)], axis=1)


def test_a_sound_skeleton():
    stats, wrong = measure(3, standing()[None], np.array([SIZE]))
    assert wrong == [""]
    assert (stats.frames, stats.found, stats.measured) == (3, 1, 1)
    assert (stats.outside, stats.misplaced, stats.lying) == (0, 0, 0)
    assert stats.coverage == pytest.approx(1 / 3)
    assert stats.mean_height == pytest.approx(0.9)
    assert stats.mean_score == pytest.approx(0.75)
    assert stats.scores.tolist() == [0] * 8 + [17] + [0] * 3


def test_scores_by_bin():
    joints = standing()[None]
    joints[0, :, 2] = [-0.1, 0, 0.0999, 0.1, 0.5, 0.55, 0.9, 1, 1, 1.001, 40, *[0.25] * 6]
    scores = measure(1, joints, None)[0].scores
    assert scores.tolist() == [1, 2, 1, 6, 0, 0, 2, 0, 0, 0, 3, 2]
    assert scores.sum() == 17


def test_the_edges_of_a_frame():
    points = np.array([[-0.5, 0], [49.5, 99.5], [-0.6, 50], [25, 99.6], [-5.5, 119.5], [59.5, 0]])
    np.testing.assert_allclose(
        beyond(points, np.array(SIZE)), [0, 0, 0.002, 0.001, 0.2, 0.2], atol=1e-12
    )


def test_joints_outside_are_counted_for_each_frame_by_its_own_size():
    joints = np.stack([standing(), standing(), standing()])
    joints[0, 0, 0] = -3
    sizes = np.array([SIZE, (90, 50), (0, 0)])
    stats, wrong = measure(3, joints, sizes)
    assert (stats.found, stats.measured) == (3, 2)
    assert stats.outside == 1 + 1  # the ankle at 95 is below a frame 90 high
    assert stats.outside_share == pytest.approx(2 / 34)
    assert wrong == ["", "", ""]


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
        (standing() * (3, 3, 1), "made for a frame about 2.9 times as large?"),
        (standing() + np.array([400, 0, 0]), "camera's picture instead of the crop?"),
        (standing() + np.array([400, 800, 0]), "camera's picture instead of the crop?"),
        (standing() * (30, 3, 1) - (600, 0, 0), "made for other frames?"),
        (
            standing() / (50, 100, 1),
            "all joints within 0.9 pixels: are x, y shares",
        ),
        (standing() * 0, r"all joints at (0, 0): no person found?"),
        (standing() * 0 + 30, r"all joints at (30, 30): no person found?"),
    ],
)
def test_what_is_wrong_names_the_likely_cause(joints, cause):
    assert cause in what_is_wrong(joints[:, :2], SIZE)
    stats, wrong = measure(1, joints[None], np.array([SIZE]))
    assert cause in wrong[0]
    assert stats.misplaced == 1


def test_lying():
    joints = np.stack([standing(height=40), standing(height=40, top=2)[:, [1, 0, 2]]])
    stats, _ = measure(2, joints, np.array([SIZE, SIZE]))
    assert stats.lying == 1
    assert stats.lying_share == 0.5


# positions of COCO's joints in the lists of other datasets, if these have the joint
H36M = {
    0: 11,
    1: 12,
    2: 14,
    3: 16,
    4: 11,
    5: 13,
    6: 15,
    7: 5,
    8: 5,
    9: 0,
    10: 0,
    11: 5,
    12: 7,
    13: 9,
    14: 6,
    15: 8,
    16: 10,
}
OPENPOSE = {
    0: 0,
    1: 5,
    2: 6,
    3: 8,
    4: 10,
    5: 5,
    6: 7,
    7: 9,
    8: 12,
    9: 14,
    10: 16,
    11: 11,
    12: 13,
    13: 15,
    14: 2,
    15: 1,
    16: 4,
}


@pytest.mark.parametrize("other", [H36M, OPENPOSE])
def test_joints_in_another_order(other):
    y = np.array([10, 8, 8, 9, 9, 20, 20, 35, 35, 48, 48, 50, 50, 70, 70, 90, 90])
    coco = np.stack([np.full(17, 25), y, np.ones(17)], axis=1)
    order = [other[joint] for joint in range(17)]
    for joints, disordered in ((coco, 0), (coco[order], 1), (coco[::-1], 1)):
        assert measure(1, joints[None], None)[0].disordered == disordered
    assert measure(4, np.stack([coco, coco[order]]), None)[0].disordered_share == 0.5


def test_nothing_measured():
    stats, wrong = measure(4, np.empty((0, 17, 3)), np.empty((0, 2)))
    assert wrong == []
    assert stats.coverage == 0
    assert all(
        np.isnan(
            [stats.mean_score, stats.mean_height, stats.outside_share, SkeletonStats().coverage]
        )
    )
    stats, wrong = measure(1, standing()[None] * 10, None)
    assert (stats.found, stats.measured, wrong) == (1, 0, [""])
