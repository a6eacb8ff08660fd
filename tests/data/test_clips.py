import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastreid_star.data import clips, io
from fastreid_star.data.clips import (
    ClipDataset,
    ClipRequest,
    collate_clips,
    half_of,
    read_clip,
    segment_indices,
)
from fastreid_star.data.datasets import HITSZVCM
from fastreid_star.data.io import PAUSES, read_bytes
from fastreid_star.data.skeletons import SkeletonStore, write_skeleton_store
from fastreid_star.data.transforms import Compose, HorizontalFlip, PadCrop, RandomErasing, Resize
from fastreid_star.errors import UserError
from fastreid_star.structures import Modality, Tracklet

AUGMENT = Compose([Resize((24, 12)), PadCrop(3), HorizontalFlip(), RandomErasing()])


@pytest.mark.parametrize(
    ("n", "length", "expected"),
    [
        (24, 12, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
        (12, 4, [0, 3, 6, 9]),
        # segments of 2; the last five are padding
        (13, 12, [0, 2, 4, 6, 8, 10, 12, 12, 12, 12, 12, 12]),
        (10, 4, [0, 3, 6, 9]),  # the last segment is 9, 9, 9
        (7, 3, [0, 3, 6]),
        (5, 8, [0, 1, 2, 3, 4, 4, 4, 4]),
        (1, 3, [0, 0, 0]),
        (48, 1, [0]),
    ],
)
def test_segments_by_hand(n, length, expected):
    assert segment_indices(n, length).tolist() == expected


@settings(max_examples=40)
@given(n=st.integers(1, 60), length=st.integers(1, 20), seed=st.integers(0, 1000))
def test_segments(n, length, seed):
    size = -(-n // length)
    for rng in (None, np.random.default_rng(seed)):
        indices = segment_indices(n, length, rng)
        assert len(indices) == length
        assert (np.diff(indices) >= 0).all()
        for segment, index in enumerate(indices):
            frames = range(segment * size, (segment + 1) * size)
            assert index in [min(frame, n - 1) for frame in frames]


@pytest.mark.parametrize(("n", "first", "second"), [(9, (0, 4), (4, 9)), (1, (0, 1), (0, 1))])
def test_halves_by_hand(n, first, second):
    assert [half_of(n, part) for part in range(3)] == [(0, n), first, second]


def test_the_halves_of_all_tracklets_follow_them(data, store):
    """The joints of frame f are f, so that they say which frames a clip has."""
    plain, halves = (
        ClipDataset(data.train, length=3, transform=Resize((8, 4)), store=store, halves=halves)
        for halves in (False, True)
    )
    n = len(data.train)
    assert (len(plain), len(halves)) == (n, 3 * n)
    for index, tracklet in enumerate(data.train):
        assert torch.equal(halves[index]["images"], plain[index]["images"])
        for part, frames in (
            (1, range(len(tracklet) // 2)),
            (2, range(len(tracklet))[len(tracklet) // 2 :]),
        ):
            item = halves[index + part * n]
            assert (item["index"], item["targets"]) == (index + part * n, tracklet.pid)
            wanted = [frames[place] + 1 for place in segment_indices(len(frames), 3)]
            shown = [round(100 * float(score)) for score in item["skeletons"][:, 0, 2]]
            assert [s for s, there in zip(shown, item["has_skeleton"], strict=True) if there] == [
                f for f in wanted if (index, f) != (0, 4)
            ]


def test_training_reaches_every_frame():
    drawn = np.stack([segment_indices(10, 4, np.random.default_rng(seed)) for seed in range(200)])
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9],
    ]
    assert len(set(map(tuple, drawn[:, :3].tolist()))) == 27  # the segments are drawn independently


@pytest.fixture
def data(vcm_root):
    return HITSZVCM(vcm_root)


@pytest.fixture
def store(data, tmp_path):
    """Joints of frame f are (f, 2 f, f/100); the first tracklet has no skeleton in frame 4."""
    frames = [
        (t.key(i), i + 1) for t in data.train for i in range(len(t)) if (t, i) != (data.train[0], 3)
    ]
    joints = np.stack(
        [np.tile(np.array([f, 2 * f, f / 100], np.float32), (17, 1)) for _, f in frames]
    )
    write_skeleton_store(tmp_path / "store", [key for key, _ in frames], joints)
    return SkeletonStore.open(tmp_path / "store")


def test_item_in_testing(data, store):
    dataset = ClipDataset(data.train, length=4, transform=Resize((32, 8)), store=store)
    item = dataset[0]
    assert set(item) == {
        *("images", "skeletons", "has_skeleton", "crop_sizes", "targets"),
        *("camids", "modality", "index", "replaced"),
    }
    assert (item["images"].shape, item["images"].dtype) == ((4, 3, 32, 8), torch.uint8)
    assert (item["skeletons"].shape, item["skeletons"].dtype) == ((4, 17, 3), torch.float32)
    # the frames 1, 4, 7, 10 of the tracklet, by their color: red is 10 x frame
    assert item["images"][:, 0].float().mean((1, 2)).div(10).round().tolist() == [1, 4, 7, 10]
    assert item["has_skeleton"].tolist() == [True, False, True, True]
    # frames of 16 x 8 became 32 x 8
    assert item["crop_sizes"].tolist() == 4 * [[16, 8]]
    assert item["skeletons"][:, 3, 0].tolist() == [1, 0, 7, 10]
    assert item["skeletons"][:, 3, 1].tolist() == [4.5, 0, 28.5, 40.5]
    torch.testing.assert_close(item["skeletons"][:, 3, 2], torch.tensor([0.01, 0, 0.07, 0.1]))
    numbers = [item[key] for key in ("targets", "camids", "modality", "index", "replaced")]
    assert numbers == [1, 1, 2, 0, 0]


def test_a_store_for_each_root(data, store):
    with_store = ClipDataset(
        data.train, length=3, transform=Resize((16, 8)), store={data.train[0].root: store}
    )
    assert with_store[1]["has_skeleton"].all()
    other = ClipDataset(data.train, length=3, transform=Resize((16, 8)), store={"elsewhere": store})
    assert not other[1]["has_skeleton"].any()


def test_item_in_training_is_a_function_of_its_seed(data, store):
    dataset = ClipDataset(data.train, length=4, transform=AUGMENT, store=store)
    first, again = dataset[ClipRequest(0, (0, 1, 2))], dataset[ClipRequest(0, (0, 1, 2))]
    other = dataset[ClipRequest(0, (0, 1, 3))]
    assert all(
        torch.equal(first[key], again[key]) for key in ("images", "skeletons", "has_skeleton")
    )
    assert not torch.equal(first["images"], other["images"])


def test_a_stand_in_frame_brings_its_own_skeleton(make_vcm, store):
    data = HITSZVCM(make_vcm())
    for index in (0, 3):
        with open(data.train[1].path(index), "wb"):
            pass
    dataset = ClipDataset(data.train, length=4, transform=Resize((16, 8)), store=store)
    item = dataset[1]  # frames 1, 5, 9, 13
    assert item["replaced"] == 1
    assert item["images"][0, 0].float().mean().div(10).round() == 2
    assert item["skeletons"][0, 0, 0] == 2
    assert item["has_skeleton"].all()


def test_collate(data):
    dataset = ClipDataset(
        data.train, length=3, transform=Resize((16, 8)), pid_to_label={1: 2, 2: 1, 3: 0}
    )
    assert dataset.num_classes == 3
    batch = collate_clips([dataset[0], dataset[2]])
    assert batch["images"].shape == (2, 3, 3, 16, 8)
    assert (batch["has_skeleton"].shape, batch["has_skeleton"].dtype) == ((2, 3), torch.bool)
    for key, values in (("targets", [2, 2]), ("modality", [2, 1]), ("index", [0, 2])):
        assert batch[key].dtype == torch.int64
        assert batch[key].tolist() == values


# --- broken frames ---


@pytest.fixture
def tracklet(tmp_path):
    """Ten frames; frame k has the gray value 20 k and a size of its own."""
    folder = tmp_path / "0001" / "ir" / "D4"
    folder.mkdir(parents=True)
    for k in range(10):
        Image.new("RGB", (40 + k, 80), (20 * k,) * 3).save(folder / f"{k}.jpg")
    frames = tuple(f"0001/ir/D4/{k}.jpg" for k in range(10))
    return Tracklet(1, 4, Modality.INFRARED, str(tmp_path), frames)


def damage(tracklet, *indices):
    for index in indices:
        Path(tracklet.path(index)).write_bytes(b"")


def gray(frames):
    return [round(float(frame.mean()) / 20) for frame in frames]


def test_nearest_good_neighbor(tracklet, caplog):
    frames, used, replaced = read_clip(tracklet, np.array([0, 4, 9, 9]))
    assert (gray(frames), used, replaced) == ([0, 4, 9, 9], [0, 4, 9, 9], 0)
    damage(tracklet, 4)
    assert read_clip(tracklet, [4])[1:] == ([3], 1), "the earlier of two"
    damage(tracklet, 0, 1, 5, 9)
    for _ in range(3):
        frames, used, replaced = read_clip(tracklet, [0, 1, 2, 4, 5, 9, 9])
        assert gray(frames) == used == [2, 2, 2, 3, 6, 8, 8]
        assert replaced == 6
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 5, "one per file, not one per clip"
    damage(tracklet, 2, 3, 6, 7)
    assert read_clip(tracklet, [0, 5, 9])[1:] == ([8] * 3, 3)


class Disk:
    """Reading a file fails `times` times; pauses are recorded instead of waited for."""

    def __init__(self, monkeypatch):
        self.times, self.pauses = {}, []
        monkeypatch.setattr(io, "read_bytes", self.read)
        monkeypatch.setattr(clips.time, "sleep", self.pauses.append)

    def read(self, path):
        name = os.path.basename(path)
        self.times[name] = self.times.get(name, 0) - 1
        if self.times[name] >= 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return read_bytes(path)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_a_disk_that_fails_for_one_frame(tracklet, disk):
    disk.times = {"4.jpg": 9}
    assert read_clip(tracklet, [3, 4])[1:] == ([3, 3], 1)
    assert disk.pauses == []


def test_a_disk_that_fails_for_a_moment(tracklet, disk):
    disk.times = {f"{k}.jpg": 2 for k in range(10)}
    assert read_clip(tracklet, [0, 4, 9])[1:] == ([0, 4, 9], 0)
    assert disk.pauses == list(PAUSES[:2])


def test_a_disk_that_fails_for_ever(tracklet, disk):
    disk.times = {f"{k}.jpg": 99 for k in range(10)}
    with pytest.raises(UserError, match=r"none of the 10 frames .*: check the disk"):
        read_clip(tracklet, [0, 4, 9])
    assert disk.pauses == list(PAUSES)


def test_unreadable_tracklets_are_named(tracklet, disk):
    damage(tracklet, *range(10))
    with pytest.raises(UserError, match=rf"from {tracklet.path(0)} to 9.jpg .*file is empty"):
        read_clip(tracklet, [5])
    for k in range(10):
        os.rename(tracklet.path(k), tracklet.path(k)[:-3] + "JPG")
    with pytest.raises(UserError, match=r"holds 0.JPG, 1.JPG"):
        read_clip(tracklet, [5])
    assert disk.pauses == []
