"""Pictures of clips: what is encoded comes out again, joints stay on their pixels."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fastreid_star.report.pictures import DENSITY, GAP, Album, encode, side_by_side


def decoded(picture):
    head, data = picture.uri.split(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_frames_stand_in_a_row_with_a_gap():
    frames = [np.full((4, 3, 3), value, np.uint8) for value in (10, 20)]
    row = side_by_side(frames)
    assert row.shape == (4, 6 + GAP, 3)
    assert (row[:, :3] == 10).all()
    assert (row[:, 3 : 3 + GAP] == 255).all()
    assert (row[:, 3 + GAP :] == 20).all()


def test_a_picture_is_the_image_at_the_height_it_is_shown():
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, 45:] = (200, 100, 50)
    picture = encode(image, height=40, alt="two halves")
    assert (picture.width, picture.height, picture.alt) == (60, 40, "two halves")
    np.testing.assert_allclose(decoded(picture)[30, 80], (200, 100, 50), atol=6)


def test_a_strip_has_all_frames_and_is_drawn_once(star):
    strip = star.album.strip(0)
    clip = star.album.clip(0)
    height = round(DENSITY * star.album.height)
    assert decoded(strip).shape == (height, 3 * (height // 2) + 2 * GAP, 3)
    assert star.album.strip(0) is strip
    assert "with skeletons" in strip.alt
    assert clip.what == f"infrared clip of identity {clip.pid}, camera {clip.camid}"
    plain = star.album.strip(0, skeletons=False)
    assert "skeletons" not in plain.alt
    assert not np.array_equal(decoded(plain), decoded(strip))


def test_the_baseline_has_no_skeletons_to_draw(sad):
    assert not sad.album.has_skeletons
    clip = sad.album.clip(0)
    frames = [frame for frame, _ in sad.album.drawn(clip, 64)]
    plain = [frame for frame, _ in sad.album.drawn(clip, 64, skeletons=False)]
    assert np.array_equal(frames, plain), "and nothing is written on its frames"
    assert sad.album.strip(0).alt.endswith(clip.what)


@pytest.mark.parametrize("height", [32, 80])
def test_joints_stay_on_their_pixels(star, height):
    clip = star.album.clip(0)
    (frame, moved), *_ = star.album.drawn(clip, height)
    factor = frame.shape[0] / clip.frames.shape[1]
    center = clip.joints[0, :, 1] + 0.5  # from the frame's upper edge
    np.testing.assert_allclose(moved[:, 1] + 0.5, center * factor, rtol=1e-5)
    np.testing.assert_array_equal(moved[:, 2], clip.joints[0, :, 2])


def test_a_frame_that_lacks_its_skeleton_says_so(star):
    album = Album(star.ranking.dataset, min_score=0.3)
    clip = album.clip(1)
    (whole, _), *_ = album.drawn(clip, 80)
    clip.present[0] = False
    (lacking, _), *_ = album.drawn(clip, 80)
    (plain, _), *_ = album.drawn(clip, 80, skeletons=False)
    assert not np.array_equal(lacking, whole)
    assert not np.array_equal(lacking, plain)
