"""Extraction with a stub in place of a network: joints, shares, and stores that are there already."""

import os
import random

import numpy as np
import pytest
from PIL import Image

from fastreid_star.coco import LEFT_RIGHT
from fastreid_star.data.io import read_frame
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.pose import extraction as module

from .extracting import BROKEN, CROPS, Stub, content, extract
from .test_sides import walk


def test_joints_of_every_crop_in_its_batch_and_the_manifest(images, tmp_path, whole):
    assert extract(images, tmp_path / "store")
    assert os.listdir(tmp_path) == ["store"]
    store = SkeletonStore.open(tmp_path / "store")
    joints, present = store.read([str(number) for number in range(CROPS)])
    assert sorted(np.flatnonzero(~present)) == sorted(BROKEN)
    for start in range(0, CROPS, 4):
        good = [number for number in range(start, start + 4) if number not in BROKEN]
        frames = {number: read_frame(images / f"{number}.png") for number in good}
        means = {number: frame.mean(axis=(0, 1)) for number, frame in frames.items()}
        for number in good:
            np.testing.assert_allclose(joints[number, :, 0], means[number][0], rtol=1e-6)
            np.testing.assert_allclose(joints[number, :, 1], sum(means.values()).sum(), rtol=1e-6)
            np.testing.assert_allclose(joints[number, :, 2], np.arange(17) / 17, rtol=1e-6)
    meta = store.meta
    assert meta["date"] == "2001-09-09"
    assert meta["counts"] == {"frames": 60, "with_skeleton": 57, "without": 3}
    assert set(meta["missing"]) == {"7", "23", "59"}
    assert all(reason and str(images) not in reason for reason in meta["missing"].values())
    assert meta["plan"]["backend"] == "stub"

    stub = Stub()
    assert extract(images, tmp_path / "store", stub), "a second call does nothing"
    assert stub.batches == 0
    assert content(tmp_path / "store") == whole


@pytest.mark.parametrize(("of", "workers"), [(2, 2), (20, 0)])
def test_shards_and_workers_give_the_same_bytes(images, tmp_path, whole, of, workers):
    numbers = list(range(of))
    random.Random(of).shuffle(numbers)
    ended = [
        extract(images, tmp_path / "store", share=(number, of), workers=workers)
        for number in numbers
    ]
    last = max(place for place, number in enumerate(numbers) if number < -(-CROPS // 8))
    assert ended == [False] * last + [True] * (of - last)
    assert content(tmp_path / "store") == whole


def test_sides_are_settled_in_each_folder(tmp_path):
    """Crops of two folders: their colors tell a stub the frame of a walker; some frames are swapped."""
    sound = {name: walk(np.random.default_rng(seed)) for seed, name in enumerate("ab")}
    crops = tmp_path / "crops"
    for number, name in enumerate(sound):
        (crops / name).mkdir(parents=True)
        for frame in range(24):
            color = (number, frame, 0)
            Image.new("RGB", (4, 4), color).save(crops / name / f"{frame}.png")

    class Walkers(Stub):
        def estimate(self, prepared):
            joints = np.stack([sound["ab"[int(x[0])]][int(x[1])] for x in prepared])
            swapped = np.array([x[1] in (5, 9, 10) for x in prepared])
            joints[swapped] = joints[swapped][:, list(LEFT_RIGHT)]
            return joints

    for keep_sides in (False, True):
        output = tmp_path / f"store{keep_sides}"
        extract(crops, output, Walkers(), keep_sides=keep_sides)
        store = SkeletonStore.open(output)
        for name, joints in sound.items():
            found, _ = store.read([f"{name}/{frame}" for frame in range(24)])
            same = (found == joints).all(axis=(1, 2))
            assert np.flatnonzero(~same).tolist() == ([5, 9, 10] if keep_sides else [])
        assert store.meta["confused_sides"] == (0 if keep_sides else 6)
    with pytest.raises(UserError, match=r"other skeletons .*sides"):
        extract(crops, output, Walkers())


def test_other_skeletons_are_neither_continued_nor_replaced(images, tmp_path, whole):
    output = tmp_path / "store"
    extract(images, output, share=(0, 2))
    with pytest.raises(UserError, match=r"another extraction .*batch_size"):
        extract(images, output, batch_size=8)
    extract(images, output)
    with pytest.raises(UserError, match="--overwrite"):
        extract(images, output, batch_size=8)
    assert content(output) == whole
    extract(images, output, share=(0, 2), batch_size=2, overwrite=True)
    assert extract(images, output), "the old store is used while the new one is made"
    assert content(output) == whole
    assert extract(images, output, batch_size=2, overwrite=True)
    assert content(output) != whole
    stub = Stub()
    assert extract(images, output, stub, overwrite=True)
    assert stub.estimated == CROPS - len(BROKEN), "a store of the same plan is made again"
    assert content(output) == whole
    (output / "notes.txt").touch()
    with pytest.raises(UserError, match="not only a skeleton store"):
        extract(images, output, overwrite=True)


def test_an_output_that_is_a_link_stays_one(images, tmp_path, whole):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/store")
    assert extract(images, f"{tmp_path}/link/")
    assert content(tmp_path / "disk" / "store") == whole
    assert os.readlink(tmp_path / "link") == "disk/store"
    assert os.listdir(tmp_path / "disk") == ["store"]


def test_joints_that_are_not_finite(images, tmp_path, monkeypatch):
    class Diverged(Stub):
        wrong = slice(None)

        def estimate(self, prepared):
            joints = super().estimate(prepared)
            joints[self.wrong, 3, 1] = np.nan
            return joints

    monkeypatch.setattr(module, "SUSPICIOUS", 8)
    with pytest.raises(UserError, match=r"no finite joints .*checkpoint"):
        extract(images, tmp_path / "store", Diverged())
    Diverged.wrong = 0  # the first of each batch
    extract(images, tmp_path / "store", Diverged())
    store = SkeletonStore.open(tmp_path / "store")
    assert "not finite" in store.meta["missing"]["0"]
    assert store.read(["0", "1"])[1].tolist() == [False, True]
