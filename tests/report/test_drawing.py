import io
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastreid_star.coco import BONES, LEFT_RIGHT
from fastreid_star.report.drawing import (
    LEFT,
    MIDDLE,
    RIGHT,
    GridRow,
    bone_color,
    draw_skeleton,
    enlarge,
    frame_grid,
    joint_color,
    to_png,
)

GREY = 90
NOSE, LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_ELBOW = 0, 5, 6, 7


@pytest.fixture
def image():
    return np.full((48, 24, 3), GREY, np.uint8)


def only(**joints):
    """A skeleton of the joints ``j5=(x, y, score)``; the others are not finite."""
    skeleton = np.full((17, 3), np.nan)
    for name, values in joints.items():
        skeleton[int(name[1:])] = values
    return skeleton


def changed(drawn, image, scale):
    return (drawn != enlarge(image, scale)).any(axis=-1)


def distance_to_segment(shape, start, end):
    y, x = np.indices(shape)
    points, along = np.stack([x, y], axis=-1) - start, np.subtract(end, start)
    share = np.clip(points @ along / (along @ along), 0, 1)
    return np.linalg.norm(points - share[..., None] * along, axis=-1)


def closeness(drawn, point, color):
    """How near to a color the image comes within a pixel of (x, y); 0 is the color itself."""
    x, y = (round(value) for value in point)
    around = drawn[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].astype(float)
    return -np.linalg.norm(around - color, axis=-1).min()


@pytest.mark.parametrize("bone", BONES)
def test_a_bone_is_drawn_between_its_joints_and_nowhere_else(image, bone):
    i, j = bone
    skeleton = only(**{f"j{i}": (4, 7, 1), f"j{j}": (19, 37, 1)})
    drawn = draw_skeleton(image, skeleton, scale=8)
    start, end = np.array([35.5, 59.5]), np.array([155.5, 299.5])  # (x + 0.5) * 8 - 0.5
    assert drawn.shape == (384, 192, 3)
    assert closeness(drawn, (start + end) / 2, bone_color(bone)) > -10
    assert closeness(drawn, start, joint_color(i)) == closeness(drawn, end, joint_color(j)) == 0
    distance = distance_to_segment(drawn.shape[:2], start, end)
    touched = changed(drawn, image, 8)
    assert touched[distance < 1].all()
    assert not touched[distance > 7].any()


def test_sides():
    assert joint_color(NOSE) == MIDDLE
    assert [joint_color(joint) for joint in (LEFT_SHOULDER, RIGHT_SHOULDER)] == [LEFT, RIGHT]
    mirrored = {LEFT: RIGHT, RIGHT: LEFT, MIDDLE: MIDDLE}
    assert all(
        joint_color(LEFT_RIGHT[joint]) == mirrored[joint_color(joint)] for joint in range(17)
    )
    assert bone_color((15, 13)) == bone_color((5, 11)) == bone_color((0, 1)) == LEFT
    assert bone_color((16, 14)) == bone_color((6, 12)) == bone_color((0, 2)) == RIGHT
    assert bone_color((11, 12)) == bone_color((5, 6)) == bone_color((1, 2)) == MIDDLE


# Machado, Oliveira and Fernandes (2009), full strength, for linear RGB
COLOR_VISION = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("matrix", COLOR_VISION.values(), ids=COLOR_VISION)
def test_the_sides_differ_for_every_color_vision(matrix):
    linear = (np.array([LEFT, RIGHT, MIDDLE]) / 255) ** 2.2
    seen = 255 * np.clip(linear @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(seen[one] - seen[other]) > 90


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(3, 20),
    y=st.floats(3, 44),
    scale=st.sampled_from([2, 2.5, 3, 4.4]),
    joint=st.sampled_from(range(17)),
)
def test_a_joint_is_where_its_pixel_went(x, y, scale, joint):
    image = np.full((48, 24, 3), GREY, np.uint8)
    drawn = draw_skeleton(image, only(**{f"j{joint}": (x, y, 1)}), scale=scale)
    factor = np.array(drawn.shape[1::-1]) / (24, 48)  # a whole number of pixels: not quite `scale`
    rows, columns = np.nonzero(changed(drawn, image, scale))
    center = [(columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2]
    np.testing.assert_allclose(center, (np.array([x, y]) + 0.5) * factor - 0.5, atol=1)


def test_the_whole_numbers_are_the_centers_of_pixels():
    """Which shows on the frame itself: the joint is drawn in the middle of its enlarged pixel."""
    image = np.zeros((30, 20, 3), np.uint8)
    image[12, 8] = 255
    drawn = draw_skeleton(image, only(j5=(8, 12, 1)), scale=9)
    assert tuple(drawn[112, 76]) == LEFT  # the pixel covers 72 to 80 and 108 to 116
    rows, columns = np.nonzero(changed(drawn, image, 9))
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (2 * 112, 2 * 76)


def test_the_surer_the_more_opaque(image):
    seen = []
    for score in (0.1, 0.4, 0.7, 1.0):
        drawn = draw_skeleton(image, only(j5=(5, 8, 1), j7=(18, 40, score)), scale=8)
        seen.append(
            [closeness(drawn, point, LEFT) for point in ((147.5, 323.5), (95.5, 195.5))]
        )  # joint, bone
    assert seen == sorted(seen)
    assert len({joint for joint, _ in seen}) == len({bone for _, bone in seen}) == 4
    assert seen[-1][0] == 0
    beyond = draw_skeleton(image, only(j5=(5, 8, 7.5), j7=(18, 40, 3)), scale=4)
    np.testing.assert_array_equal(
        beyond, draw_skeleton(image, only(j5=(5, 8, 1), j7=(18, 40, 1)), scale=4)
    )


def test_a_joint_below_the_least_score_is_a_ring(image):
    skeleton = only(j5=(12, 24, 0.29))
    disc, ring = (
        changed(draw_skeleton(image, skeleton, scale=16, min_score=least), image, 16)
        for least in (0.29, 0.3)
    )
    x, y = 199, 391
    assert disc[y, x]
    assert not ring[y - 1 : y + 2, x - 1 : x + 2].any(), "the frame shows in its middle"
    for part in (ring[y, :x], ring[y, x:], ring[:y, x], ring[y:, x]):
        assert part.any(), "and it goes all the way round"


def test_bones_of_a_joint_below_the_least_score_are_faint(image):
    skeleton = only(j5=(5, 8, 0.9), j7=(18, 40, 0.29))
    middle = (95.5, 195.5)
    sure, unsure = (
        closeness(draw_skeleton(image, skeleton, scale=8, min_score=s), middle, LEFT)
        for s in (0.29, 0.3)
    )
    assert -np.linalg.norm(np.subtract(LEFT, GREY)) < unsure < sure - 20


@pytest.mark.parametrize(
    ("point", "edge"),
    [
        ((-6, 20), np.s_[:, 0]),
        ((30, 20), np.s_[:, -1]),
        ((10, -9), np.s_[0]),
        ((10, 70), np.s_[-1]),
    ],
)
def test_a_joint_outside_is_marked_at_the_edge_nearest_to_it(image, point, edge):
    touched = changed(draw_skeleton(image, only(j5=(*point, 1)), scale=4), image, 4)
    assert touched[edge].any()
    rows, columns = np.nonzero(touched)
    nearest = np.clip((np.array(point) + 0.5) * 4 - 0.5, 0, (95, 191))
    assert np.hypot(columns - nearest[0], rows - nearest[1]).max() < 16
    inside = changed(draw_skeleton(image, only(j5=(12, 20, 1)), scale=4), image, 4)
    assert not inside[edge].any()


def test_the_very_edge_is_inside(image):
    """Of the first pixel the joint may be anywhere: a disc, not a triangle."""
    inside, outside = (
        changed(draw_skeleton(image, only(j5=(x, 20, 1)), scale=4), image, 4).sum()
        for x in (-0.45, -0.55)
    )
    assert inside < outside


def test_coordinates_may_be_anything(image):
    skeleton = np.random.default_rng(0).normal(0, 1e30, (17, 3))
    skeleton[3] = np.inf
    drawn = draw_skeleton(image, skeleton, scale=3)
    assert drawn.shape == (144, 72, 3)


def test_values_that_are_not_finite_are_left_out(image):
    np.testing.assert_array_equal(draw_skeleton(image, only(), scale=3), enlarge(image, 3))
    one = only(j5=(5, 5, 1))
    other = one.copy()
    other[7] = (8, 8, np.nan)
    np.testing.assert_array_equal(draw_skeleton(image, other), draw_skeleton(image, one))


def test_no_skeleton_is_written_below_and_nothing_else_is_drawn(image):
    drawn = draw_skeleton(image, None, scale=5)
    touched = changed(drawn, image, 5)
    assert not touched[:180].any()
    assert touched[225:].all()
    assert (drawn[225:] > 200).any(), "the words are light"
    assert np.median(drawn[225:]) < 40, "on a dark band"


def test_the_frame_is_not_written_into(image):
    image.flags.writeable = False
    for scale in (1, 3):
        draw_skeleton(image, only(j5=(5, 5, 1), j7=(9, 20, 1)), scale=scale)
        draw_skeleton(image, None, scale=scale)
    assert (image == GREY).all()


def test_only_seventeen_joints(image):
    with pytest.raises(ValueError, match=r"\(16, 3\)"):
        draw_skeleton(image, np.zeros((16, 3)))


THREADS = """
import os, numpy as np
from fastreid_star.report.drawing import GridRow, frame_grid
threads = len(os.listdir("/proc/self/task"))
frame_grid([GridRow("", [np.zeros((288, 144, 3), np.uint8)], [np.ones((17, 3))])], height=2000)
assert len(os.listdir("/proc/self/task")) == threads
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="the threads as Linux lists them")
def test_no_threads_are_started():
    """OpenCV's would be lost in a fork, and setNumThreads, which a loader's forked worker calls, may wait for them."""
    subprocess.run([sys.executable, "-c", THREADS], check=True)


# --- grids -------------------------------------------------------------------------------------------------------

RED, GREEN, BLUE = (200, 0, 0), (0, 150, 0), (0, 0, 220)


def solid(color, height, width):
    return np.full((height, width, 3), color, np.uint8)


def box(grid, color):
    """Where a color is: top, left, height, width."""
    rows, columns = np.nonzero((grid == color).all(axis=-1))
    return rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1


def test_frames_of_any_size_get_one_height_and_stand_in_order():
    rows = [
        GridRow("first", [solid(RED, 20, 10), solid(GREEN, 100, 30)]),
        GridRow("second", [solid(BLUE, 60, 30)]),
    ]
    grid = frame_grid(rows, height=80)
    red, green, blue = (box(grid, color) for color in (RED, GREEN, BLUE))
    assert [size[2:] for size in (red, green, blue)] == [(80, 40), (80, 24), (80, 40)]
    assert red[0] == green[0]
    assert red[0] + 80 < blue[0]
    assert red[1] == blue[1]
    assert red[1] + 40 < green[1]


def test_captions_title_and_labels_are_written():
    image = solid(RED, 60, 30)
    plain = frame_grid([GridRow("", [image])], height=80)
    captioned = frame_grid([GridRow("infrared", [image])], height=80)
    top = box(captioned, RED)[0]
    assert (plain[:top] == 255).all()
    assert (captioned[:top] < 100).any()
    assert (
        frame_grid([GridRow("", [image])], height=80, title="HITSZ-VCM").shape[0] > plain.shape[0]
    )
    labeled = frame_grid([GridRow("", [image], labels=["7"])], height=80)
    assert (labeled[top : top + 20] != plain[top : top + 20]).any()
    np.testing.assert_array_equal(labeled[top + 40 :], plain[top + 40 :])


def test_a_long_caption_is_not_cut_off():
    grid = frame_grid([GridRow("m" * 60, [solid(RED, 60, 30)])], height=80)
    ink = np.nonzero((grid < 100).all(axis=-1))[1]
    assert ink.max() < grid.shape[1] - 4
    assert grid.shape[1] > 500


def test_skeletons_and_a_legend_where_they_are_the_matter():
    image = solid((GREY,) * 3, 48, 24)
    skeleton = only(j5=(5, 8, 1), j7=(18, 40, 1))
    without = frame_grid([GridRow("", [image, image])], height=144)
    grid = frame_grid([GridRow("", [image, image], [skeleton, None])], height=144)
    bare = frame_grid([GridRow("", [image, image], [skeleton, None])], height=144, legend=False)
    assert grid.shape[0] > bare.shape[0] == without.shape[0]
    np.testing.assert_array_equal(grid[: bare.shape[0] - 8], bare[:-8])
    for drawn, place in ((draw_skeleton(image, skeleton), 0), (draw_skeleton(image, None), 1)):
        top, left = box(without, (GREY,) * 3)[:2]
        left += place * (72 + 8)
        np.testing.assert_array_equal(bare[top : top + 144, left : left + 72], drawn)
    legend = grid[bare.shape[0] :].reshape(-1, 3).tolist()
    assert all(list(color) in legend for color in (LEFT, RIGHT, MIDDLE))


def test_the_legend_tells_the_least_score():
    rows = [GridRow("", [solid(RED, 48, 24)] * 6, [only()] * 6)]
    assert frame_grid(rows, min_score=0.3).shape[0] >= frame_grid(rows).shape[0]
    assert not np.array_equal(frame_grid(rows, min_score=0.3), frame_grid(rows))


def test_a_frame_that_cannot_be_read_keeps_its_place():
    grid = frame_grid(
        [GridRow("", [None, solid(RED, 60, 30)], [None, only()], ["1", "2"])], height=80
    )
    assert box(grid, RED)[1] > 40


def test_png(image):
    with Image.open(io.BytesIO(to_png(image))) as read:
        np.testing.assert_array_equal(np.asarray(read), image)
