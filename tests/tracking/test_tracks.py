"""Files of tracks in MOTChallenge's text format, as trackers write them and as people spoil them."""

import numpy as np
import pytest

from fastreid_star.errors import UserError
from fastreid_star.tracking.tracks import read_tracks


def write(folder, *lines):
    (folder / "tracks.txt").write_text("\n".join(lines) + "\n")
    return folder / "tracks.txt"


def test_lines_in_any_order_with_gaps(tmp_path):
    path = write(
        tmp_path,
        "5,2,10.5,20,30,60,0.9,-1,-1,-1",
        "2,7,1,2,3,4,0.5,-1,-1,-1",
        "",
        "1,2,11,21,30,60,0.8,-1,-1,-1",
        "9,-1,11,21,30,60,0.8,-1,-1,-1",  # a detection of no track
    )
    two, seven = read_tracks(path)
    assert (two.number, two.frames, len(two)) == (2, (1, 5), 2)
    np.testing.assert_array_equal(two.boxes, [[11, 21, 41, 81], [10.5, 20, 40.5, 80]])
    assert two.scores.tolist() == [0.8, 0.9]
    assert (seven.number, seven.frames) == (7, (2,))


@pytest.mark.parametrize("line", ["3 1 10 20 30 60", "3, 1, 10, 20, 30, 60, 1", "3;1;10;20;30;60"])
def test_other_separators_and_short_lines(tmp_path, line):
    (track,) = read_tracks(write(tmp_path, line))
    assert (track.number, track.frames, track.scores.tolist()) == (1, (3,), [1])
    assert track.boxes.tolist() == [[10, 20, 40, 80]]


def test_a_score_without_a_class_is_no_class(tmp_path):
    path = write(tmp_path, "1,1,0,0,9,20,0.5", "2,1,0,0,9,20,0.5,-1", "3,1,0,0,9,20")
    (track,) = read_tracks(path)
    assert track.scores.tolist() == [0.5, 0.5, 1]


def test_frames_that_are_counted_from_0(tmp_path):
    one, two = read_tracks(write(tmp_path, "4,1,0,0,9,20,1", "0,2,0,0,9,20,1"))
    assert (one.frames, two.frames) == ((5,), (1,))
    lines = ["0,9,0,0,9,20,1,2", "3,1,0,0,9,20,1,0"]  # frame 0 has a car only
    (person,) = read_tracks(write(tmp_path, *lines), 0)
    assert person.frames == (4,)


def test_two_classes(tmp_path):
    path = write(tmp_path, "1,1,0,0,9,20,1,0", "1,2,0,0,90,20,1,2", "2,1,0,0,9,20,1,0")
    with pytest.raises(UserError, match=r"the classes 0, 2: .*--class"):
        read_tracks(path)
    (person,) = read_tracks(path, 0)
    assert person.frames == (1, 2)
    with pytest.raises(UserError, match=r"no tracks; it has the classes 0, 2"):
        read_tracks(path, 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,1,0,0,9,20,1", "frame,id,x,y,w,h,s"], r"line 2: 'frame,id"),
        (["1,1,0,0,9"], "line 1: .* is not frame, track, left"),
        (["1,1,0,0,nan,20,1"], "line 1"),
        (["1.5,1,0,0,9,20,1"], "line 1: .*whole numbers"),
        (["-1,1,0,0,9,20,1"], "line 1: .*whole numbers"),
        (["1,1,0,0,0,20,1"], "line 1: .*above 0"),
        (["1,4,0,0,9,20,1", "1,4,1,0,9,20,1"], "line 2: track 4 has two boxes in frame 1"),
        ([""], "has no tracks"),
        (["1,-1,0,0,9,20,1"], "has no tracks"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message) as error:
        read_tracks(write(tmp_path, *lines))
    assert "\n" not in str(error.value)
