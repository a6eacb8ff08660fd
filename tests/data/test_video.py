"""Frames of videos: which, how many, in RGB, and what damaged files say."""

import logging
import re
import struct

import cv2
import numpy as np
import pytest

from fastreid_star.data import video
from fastreid_star.data.video import read_video, spread
from fastreid_star.errors import UserError


def write_video(path, frames=10, fourcc="MJPG", size=(48, 32)):
    """Frame k has the RGB color (20 k, 120, 250 - 20 k)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 10, size)
    assert writer.isOpened()
    for k in range(frames):
        writer.write(
            np.full((size[1], size[0], 3), (250 - 20 * k, 120, 20 * k), np.uint8)
        )  # OpenCV wants BGR
    writer.release()
    return path


def numbers(frames):
    """Which frames these are, by their color; red and blue must agree."""
    red = [round(float(frame[..., 0].mean()) / 20) for frame in frames]
    blue = [round((250 - float(frame[..., 2].mean())) / 20) for frame in frames]
    assert red == blue
    return red


@pytest.mark.parametrize(("name", "fourcc"), [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
def test_all_frames_in_rgb(tmp_path, name, fourcc):
    frames, used, n = read_video(write_video(tmp_path / name, fourcc=fourcc))
    assert (used, n) == (list(range(10)), 10)
    assert numbers(frames) == list(range(10))
    assert all(
        frame.shape == (32, 48, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
        for frame in frames
    )


def test_a_video_filmed_sideways_is_turned_upright(tmp_path):
    """The container says: a quarter turn clockwise. So the left of the frames as they are coded is the top."""
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (48, 32))
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:, :24] = 255
    writer.write(frame)
    writer.release()
    data = bytearray(path.read_bytes())
    matrix = (
        data.index(b"tkhd") + 4 + 40
    )  # of the track: after its version, times, number, duration, layer and volume
    assert data[matrix : matrix + 36] == struct.pack(
        ">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30
    )
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    ((upright,), _, _) = read_video(path)
    assert upright.shape == (48, 32, 3)
    assert upright[:20].mean() > 240
    assert upright[28:].mean() < 15


def test_a_video_without_frames(tmp_path):
    write_video(tmp_path / "a.avi", frames=0)
    assert (tmp_path / "a.avi").stat().st_size > 0
    with pytest.raises(UserError, match=r"a\.avi holds no frame"):
        read_video(tmp_path / "a.avi")


def test_chosen_frames_come_as_chosen_and_the_file_is_decoded_once(tmp_path, monkeypatch):
    calls, decode = [], video._decode
    monkeypatch.setattr(video, "_decode", lambda *args: calls.append(args) or decode(*args))
    frames, used, n = read_video(write_video(tmp_path / "a.avi"), lambda n: [n - 1, 2, 2])
    assert (numbers(frames), used, n, len(calls)) == ([9, 2, 2], [9, 2, 2], 10, 1)


@pytest.fixture
def damaged(tmp_path):
    """Of the frames 4, 5 and 6 of 10 nothing is left but zeros."""
    path = write_video(tmp_path / "a.avi")
    data = bytearray(path.read_bytes())
    starts = [found.start() for found in re.finditer(b"\xff\xd8\xff", data)]
    for frame in (4, 5, 6):
        end = starts[frame + 1] - 8  # where the next one's header begins
        data[starts[frame] : end] = bytes(end - starts[frame])
    path.write_bytes(data)
    return path


def test_the_nearest_good_neighbor_stands_in_for_a_broken_frame(damaged, caplog):
    with caplog.at_level(logging.WARNING):
        frames, used, n = read_video(damaged, lambda n: [0, 4, 5, 6, n - 1])
    expected = [0, 3, 3, 7, 9]  # of two as near the earlier one
    assert (numbers(frames), used, n) == (expected, expected, 10)
    assert "7 of its 10 frames can be decoded" in caplog.text


def test_a_video_cut_off_ends_where_it_is_cut(tmp_path, caplog):
    path = write_video(tmp_path / "a.avi")
    path.write_bytes(path.read_bytes()[:-1500])
    with caplog.at_level(logging.WARNING):
        frames, used, n = read_video(path, lambda n: [0, n - 1])
    assert 2 < n < 9
    assert (numbers(frames), used) == ([0, n - 1], [0, n - 1])
    assert f"{n} of its 10 frames can be decoded" in caplog.text


def test_a_container_that_says_no_length_or_too_much(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.avi")
    for said in (0, 7, 10**9):
        monkeypatch.setattr(video, "_length_said", lambda path, said=said: said)
        frames, used, n = read_video(path, lambda n: [n - 1])
        assert (numbers(frames), used, n) == ([9], [9], 10)


def test_no_video(tmp_path):
    with pytest.raises(UserError, match=r"none\.mp4 does not exist"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_bytes(b"no video at all")
    with pytest.raises(UserError, match=r"text\.mp4 holds no frame that can be decoded"):
        read_video(tmp_path / "text.mp4")


@pytest.mark.parametrize(
    ("n", "count", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 4, [0, 2, 5, 7]),
        (3, 5, [0, 1, 2]),
        (3, 3, [0, 1, 2]),
        (7, 1, [0]),
    ],
)
def test_evenly_spread(n, count, expected):
    assert spread(n, count).tolist() == expected
