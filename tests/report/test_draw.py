"""Pictures: what was encoded comes out again, and skeletons lie on their pixels."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from fastreid_star.coco import BONES, LEFT_RIGHT
from fastreid_star.report.draw import DENSITY, GAP, draw_attention, draw_skeleton, filmstrip

NUMBER = r"(-?[\d.]+)"


def decoded(picture):
    head, data = picture.uri.split(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def only(**joints):
    """A skeleton of the joints ``j5=(x, y, score)``; the others are not finite."""
    skeleton = np.full((17, 3), np.nan)
    for name, values in joints.items():
        skeleton[int(name[1:])] = values
    return skeleton


def lines(svg):
    """[(class, x, y, x, y)] of the bones, and [(class, x, y)] of the joints."""
    bones, joints = [], []
    for style, d in re.findall(r'<path class="([^"]*)"[^>]* d="([^"]*)"', svg):
        if style != "outline":
            found = re.findall(f"M{NUMBER} {NUMBER}(?:L{NUMBER} {NUMBER}|h0)", d)
            for values in found:
                numbers = [float(value) for value in values if value]
                (bones if len(numbers) == 4 else joints).append((style, *numbers))
    return bones, joints


@pytest.mark.parametrize("bone", BONES)
def test_a_bone_joins_its_joints(bone):
    i, j = bone
    svg = draw_skeleton(only(**{f"j{i}": (4, 7, 1), f"j{j}": (19.25, 37, 1)}), (48, 24))
    bones, joints = lines(svg)
    assert [place for _, *place in bones] == [[4, 7, 19.2, 37]]
    assert sorted(place for _, *place in joints) == [[4, 7], [19.2, 37]]


def test_left_right_and_middle_have_their_colors():
    def style(*joints):
        skeleton = only(**{f"j{joint}": (9, 9, 1) for joint in joints})
        return {found[0] for found in lines(draw_skeleton(skeleton, (48, 24)))[len(joints) == 1]}

    mirrored = {"l": "r", "r": "l", "m": "m"}
    for joint in range(17):
        (own,), (other,) = style(joint), style(LEFT_RIGHT[joint])
        assert other == mirrored[own]
    assert style(0) == {"m"}
    assert style(5) == {"l"}
    assert style(15, 13) == style(0, 1) == {"l"}
    assert style(11, 12) == style(5, 6) == {"m"}


def test_low_scores_are_faint_and_values_that_are_not_finite_are_left_out():
    bones, joints = lines(draw_skeleton(only(j5=(5, 8, 0.9), j7=(9, 20, 0.2)), (48, 24)))
    assert [style for style, *_ in bones] == ["l faint"]
    assert {(x, style) for style, x, _ in joints} == {(5, "l"), (9, "l faint")}
    one = only(j5=(5, 5, 1))
    other = one.copy()
    other[7] = (8, 8, np.nan)
    assert draw_skeleton(one, (48, 24)) == draw_skeleton(other, (48, 24))


def test_missing_and_misplaced_skeletons_are_noted():
    assert "no skeleton" in draw_skeleton(None, (48, 24))
    outside = {f"j{joint}": (30 + joint, 5, 1) for joint in range(3)}
    assert "outside" not in draw_skeleton(only(**outside), (48, 24)), "an arm may leave the crop"
    assert "4 joints outside" in draw_skeleton(only(**outside, j9=(3, -1, 1)), (48, 24))
    wild = np.random.default_rng(0).normal(0, 1e30, (17, 3))
    assert len(draw_skeleton(wild, (48, 24))) < 5000


def test_attention_is_the_area_of_a_circle_on_one_scale():
    joints = only(j5=(5, 6, 1), j7=(9, 20, 1), j9=(2, 3, 1), j11=(1, 1, 1))
    attention = np.zeros(17)
    attention[[5, 7, 9]] = 0.5, 2.0, 9.0
    svg = draw_attention(joints, attention, (100, 50))
    found = re.findall(f'cx="{NUMBER}" cy="{NUMBER}" r="{NUMBER}"', svg)
    assert [tuple(map(float, values)) for values in found] == [
        (5, 6, 2.75),
        (9, 20, 5.5),
        (2, 3, 5.5),
    ]


def test_frames_of_any_size_stand_in_rows_with_their_skeletons():
    frames = [np.full((48, 24, 3), 10, np.uint8), np.full((96, 48, 3), 90, np.uint8)]
    frames.append(np.full((30, 30, 3), 200, np.uint8))
    drawings = [draw_skeleton(only(j5=(4, 8, 1)), (48, 24)), draw_skeleton(None, (96, 48)), ""]
    picture = filmstrip(frames, drawings, height=60, columns=2, alt="three frames")
    assert (picture.width, picture.height) == (2 * 60 + GAP, 2 * 60 + GAP)
    image = decoded(picture)
    for (x, y), value in (((30, 30), 10), ((92, 30), 90), ((30, 92), 200)):
        np.testing.assert_allclose(image[round(y * DENSITY), round(x * DENSITY)], value, atol=6)
    first, second, third = ET.fromstring(f"<svg>{picture.overlay}</svg>")
    assert (first.get("x"), first.get("y"), first.get("viewBox")) == ("0", "0", "-.5 -.5 24 48")
    assert (second.get("x"), second.get("y")) == (str(60 + GAP), "0")
    assert (third.get("x"), third.get("y")) == ("0", str(60 + GAP))
    assert "no skeleton" in "".join(second.itertext())
    assert filmstrip(frames, height=60, alt="without").overlay == ""


def test_a_thumbnail_is_made_once_and_has_skeletons_where_the_network_reads_them(star, sad):
    thumbnail = star.album.thumbnail(0)
    clip = star.album.clip(0)
    assert star.album.thumbnail(0) is thumbnail
    assert clip.title in thumbnail.alt
    assert thumbnail.overlay.count("<svg") == len(clip.frames) == 3
    x, y = clip.joints[0, 5, :2]
    assert f"M{x:.1f} {y:.1f}h0" in thumbnail.overlay, "in pixels of the frame"
    assert not sad.album.has_skeletons
    assert sad.album.thumbnail(0).overlay == ""
