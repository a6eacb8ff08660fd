"""Tracklets in memory, in files and in videos: the frames of a test clip, with their joints."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.data.clips import segment_indices
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.data.tracklets import (
    TrackletInput,
    as_modality,
    check_input,
    read_test_clip,
)
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality

N = 10
# Frame k is filled with k + 1, its joints with k.
ARRAYS = [np.full((16, 8, 3), k + 1, np.uint8) for k in range(N)]
JOINTS = np.arange(N, dtype=np.float32)[:, None, None] * np.ones((1, 17, 3), np.float32)


@pytest.fixture
def files(tmp_path):
    for k, array in enumerate(ARRAYS):
        Image.fromarray(array).save(tmp_path / f"{k}.png")
    return [tmp_path / f"{k}.png" for k in range(N)]


def shown(tracklet, length=4):
    """Which frames a clip shows, and which joints it gives them (None: none)."""
    check_input(tracklet)
    clip, replaced = read_test_clip(tracklet, length)
    assert all(frame.shape == (16, 8, 3) and frame.dtype == np.uint8 for frame in clip.frames)
    joints = [
        int(j[0, 0]) if there else None for j, there in zip(clip.joints, clip.present, strict=True)
    ]
    assert not clip.joints[~clip.present].any()
    return [int(frame[0, 0, 0]) - 1 for frame in clip.frames], joints, replaced


def kinds(files):
    return {
        "arrays": ARRAYS,
        "one array": np.stack(ARRAYS),
        "gray arrays": [array[..., 0] for array in ARRAYS],
        "PIL": [Image.fromarray(array) for array in ARRAYS],
        "gray PIL": [Image.fromarray(array[..., 0]) for array in ARRAYS],
        "opened files": [Image.open(file) for file in files],
        "paths": files,
        "strings": [str(file) for file in files],
    }


def test_the_frames_are_those_of_a_test(files):
    for length in (4, 12):
        expected = segment_indices(N, length).tolist()
        for images in kinds(files).values():
            tracklet = TrackletInput(images, "visible", JOINTS)
            assert shown(tracklet, length) == (expected, expected, 0)
    assert shown(TrackletInput(files, "visible"))[1] == [None] * 4


def test_joints_of_a_store_and_missing_ones(tmp_path, files):
    keys = [f"p/{k}" for k in range(N)]
    write_skeleton_store(tmp_path / "store", keys[:6] + keys[7:], np.delete(JOINTS, 6, axis=0))
    store = SkeletonStore.open(tmp_path / "store")
    assert shown(TrackletInput(files, "infrared", store, keys)) == (
        [0, 3, 6, 9],
        [0, 3, None, 9],
        0,
    )
    missing = JOINTS.copy()
    missing[6, 4, 1] = np.nan
    assert shown(TrackletInput(files, "infrared", missing)) == ([0, 3, 6, 9], [0, 3, None, 9], 0)


def test_a_broken_frame_is_replaced_by_its_nearest_good_neighbor(files):
    files[3].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes()[:40])
    assert shown(TrackletInput(files, "visible", JOINTS)) == ([0, 4, 6, 9], [0, 4, 6, 9], 1)
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 10 frames"):
        read_test_clip(TrackletInput(files, "visible"), 4)


def test_a_video(tmp_path):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 64))
    for k in range(N):
        writer.write(np.full((64, 32, 3), (0, 0, 25 * k), np.uint8))  # red
    writer.release()
    clip, replaced = read_test_clip(TrackletInput(path, "infrared", JOINTS), 4)
    assert [round(float(frame[..., 0].mean()) / 25) for frame in clip.frames] == [0, 3, 6, 9]
    assert clip.joints[:, 0, 0].tolist() == [0, 3, 6, 9]
    assert replaced == 0
    with pytest.raises(UserError, match=r"it has 10 frames and 9 skeletons"):
        read_test_clip(TrackletInput(path, "infrared", JOINTS[:9]), 4)


def test_modalities():
    for value in ("visible", "Visible", "rgb", Modality.VISIBLE, 2):
        assert as_modality(value) is Modality.VISIBLE
    for value in ("infrared", Modality.INFRARED, 1):
        assert as_modality(value) is Modality.INFRARED
    for value in ("radar", "", 3, 0, None):
        with pytest.raises(UserError, match="give visible or infrared"):
            as_modality(value)


REFUSED = [
    ({"frames": []}, "no frames"),
    ({"modality": "radar"}, "modality 'radar'"),
    ({"frames": [ARRAYS[0], "a.jpg"]}, "frame 1 is a str"),
    ({"frames": [ARRAYS[0], ARRAYS[1] / 255]}, r"frame 1 is float64 of the shape \(16, 8, 3\)"),
    ({"frames": [np.zeros((16, 8, 4), np.uint8)]}, r"uint8 of the shape \(16, 8, 4\)"),
    ({"frames": [np.zeros((0, 8, 3), np.uint8)]}, r"the shape \(0, 8, 3\)"),
    ({"frames": [np.zeros(8, np.uint8)]}, r"uint8 of the shape \(8,\)"),
    ({"frames": [ARRAYS[0], None]}, "frame 1 is a NoneType"),
    ({"skeletons": JOINTS[:9]}, "10 frames and 9 skeletons"),
    ({"skeletons": JOINTS[:, :16]}, r"numbers of the shape .*\(10, 16, 3\)"),
    ({"skeletons": [JOINTS[0]] * 9 + [None]}, "skeletons must be numbers"),
    ({"skeletons": torch.zeros(10, 17, 3, requires_grad=True)}, "skeletons must be .*detach"),
    ({"keys": ["a"] * N}, "keys need a store"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_is_refused_before_a_frame_is_read(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        check_input(TrackletInput(**{"frames": ARRAYS, "modality": "visible", **arguments}))
    assert "\n" not in str(caught.value)


def test_a_pil_image_that_cannot_be_read(files):
    files[0].write_bytes(files[0].read_bytes()[:45])
    for image in (Image.open(files[0]), Image.new("F", (8, 16))):
        with pytest.raises(UserError, match="frame 0 cannot be read: "):
            read_test_clip(TrackletInput([image], "visible"), 4)


@pytest.mark.parametrize("dtype", ["f8", ">f4", "u1"])
def test_skeletons_of_any_real_type_and_order(files, dtype):
    joints = JOINTS.astype(dtype)
    for given in (joints, np.asfortranarray(joints), joints.tolist(), torch.from_numpy(JOINTS)):
        clip, _ = read_test_clip(TrackletInput(files, "visible", given), 4)
        assert clip.joints.dtype == np.float32
        assert clip.joints[:, 0, 0].tolist() == [0, 3, 6, 9]


def test_a_store_needs_a_key_for_each_frame(tmp_path, files):
    write_skeleton_store(tmp_path / "store", ["a"], JOINTS[:1])
    store = SkeletonStore.open(tmp_path / "store")
    with pytest.raises(UserError, match="need keys"):
        check_input(TrackletInput(files, "visible", store))
    with pytest.raises(UserError, match="it has 10 frames and 3 skeleton keys"):
        check_input(TrackletInput(files, "visible", store, ["a"] * 3))


def test_frames_of_16_bits_stay_counts_until_they_are_scaled_together(tmp_path):
    counts = np.arange(7250, 7250 + 8 * 4, dtype=np.uint16).reshape(8, 4)
    Image.fromarray(counts).save(tmp_path / "a.png")
    for frames in ([counts], [Image.fromarray(counts)], [tmp_path / "a.png"]):
        tracklet = TrackletInput(frames, "infrared")
        check_input(tracklet)
        clip, _ = read_test_clip(tracklet, 2)
        for frame in clip.frames:
            np.testing.assert_array_equal(frame, counts)
    with pytest.raises(UserError, match="uint16 of the shape"):
        check_input(TrackletInput([counts[..., None].repeat(3, 2)], "infrared"))
