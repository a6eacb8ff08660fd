"""Extraction with a stub in place of a network: the same bytes after every kind of interruption."""

import errno
import os
import random
import shutil
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_star.coco import LEFT_RIGHT
from fastreid_star.data import io as data_io
from fastreid_star.data import skeletons
from fastreid_star.data.io import read_frame
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.pose import extraction as module
from fastreid_star.pose import frames as frames_module
from fastreid_star.pose.extraction import extract_share, finish
from fastreid_star.pose.frames import frames_of_folder

from .test_sides import walk

CROPS, BROKEN = 60, {7: "cut", 23: "empty", 59: "text"}


class Stub:
    """Joints that depend on the pixels of a crop and on the other crops of its batch.

    Joint v of a crop: (mean of channel 0, sum of the batch's means, v / 17).

    Args:
        on_batch: called with the number of each batch before it is estimated.
    """

    def __init__(self, on_batch=lambda number: None):
        self.on_batch, self.batches, self.estimated = on_batch, 0, 0

    @staticmethod
    def prepare(image):
        return image.mean(axis=(0, 1))

    def estimate(self, prepared):
        self.on_batch(self.batches)
        self.batches += 1
        self.estimated += len(prepared)
        means = np.stack(prepared)
        joints = np.empty((len(means), 17, 3), np.float32)
        joints[..., 0] = means[:, :1]
        joints[..., 1] = means.sum()
        joints[..., 2] = np.arange(17) / 17
        return joints

    def describe(self):
        return {"backend": "stub", "score": "none", "input_size": (1, 1)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    for number in range(CROPS):
        size = (int(rng.integers(20, 40)), int(rng.integers(8, 20)), 3)
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / f"{number}.png")
    for number, kind in BROKEN.items():
        file = folder / f"{number}.png"
        content = {"cut": file.read_bytes()[:80], "empty": b"", "text": b"this is no picture"}[kind]
        file.write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def _same_date(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")


def extract(images, output, stub=None, **options):
    frames = frames_of_folder(images)
    options = {"batch_size": 4, "part": 8, "workers": 0, "progress": False, **options}
    extract_share(frames, output, stub or Stub(), **options)
    return finish(frames, output, overwrite=options.get("overwrite", False))


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def parts_of(output):
    return len(list(Path(f"{output}.parts").glob("*.npz")))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The store of an undisturbed extraction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        output = tmp_path_factory.mktemp("whole") / "store"
        assert extract(images, output)
    return content(output)


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


def in_a_child(function):
    """Start `function` in a fork, which has everything imported already; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def end(pid):
    """The exit status of a child; negative if a signal has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(calls, function_names):
    """Kill this process at the n-th call of all these functions together, before it happens."""
    count = iter(range(10**6))
    for owner, name in function_names:
        real = getattr(owner, name)

        def call(*args, real=real, **kwargs):
            if next(count) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, call)


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_every_step_of_writing(images, tmp_path, overwrite):
    options = {"batch_size": 20, "part": 20, "overwrite": overwrite}
    extract(images, tmp_path / "whole", **options)
    whole = content(tmp_path / "whole")
    names = ("replace", "rename", "fsync", "makedirs", "mkdir", "unlink", "rmdir")
    steps = [*((os, name) for name in names), (skeletons.shutil, "rmtree"), (np, "savez")]
    if overwrite:
        extract(images, tmp_path / "old", batch_size=2)
    for call in range(200):
        output = tmp_path / str(call) / "store"
        output.parent.mkdir()
        if overwrite:
            shutil.copytree(tmp_path / "old", output)

        def child(call=call, output=output):
            die_at(call, steps)
            extract(images, output, **options)

        code = end(in_a_child(child))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if output.exists():
            allowed = [whole, content(tmp_path / "old")] if overwrite else [whole]
            assert content(output) in allowed, "complete or not there"
        assert extract(images, output, **options)
        assert content(output) == whole, f"killed at step {call}"
        assert not Path(f"{output}.parts").exists(), f"killed at step {call}"
    assert call > 4 * 3, "each part takes several steps"


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


def test_a_full_disk_keeps_the_old_store_and_finished_parts(images, tmp_path, whole, monkeypatch):
    output = tmp_path / "store"
    extract(images, output, batch_size=2)
    old, fsync, left = content(output), os.fsync, [2 * 3]  # three parts fit

    def full(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            extract(images, output, overwrite=True)
    assert content(output) == old
    assert parts_of(output) == 3
    stub = Stub()
    assert extract(images, output, stub, overwrite=True)
    assert stub.batches == 15 - 3 * 2
    assert content(output) == whole


def test_a_disk_that_disappears_in_the_middle_of_a_part(images, tmp_path, whole):
    """The folder is its mount point and still exists."""
    crops, elsewhere = tmp_path / "crops", tmp_path / "elsewhere"
    shutil.copytree(images, crops)
    elsewhere.mkdir()

    def lose(number):
        if number == 4:
            for file in crops.iterdir():
                file.rename(elsewhere / file.name)

    with pytest.raises(UserError, match=r"crops/\d+\.png has disappeared"):
        extract(crops, tmp_path / "store", Stub(on_batch=lose))
    for file in elsewhere.iterdir():
        file.rename(crops / file.name)
    assert extract(crops, tmp_path / "store")
    assert content(tmp_path / "store") == whole


def test_a_disk_that_reads_nothing_is_not_taken_for_broken_crops(tmp_path, monkeypatch):
    assert module.PART >= module.SUSPICIOUS, "a part is large enough to tell"
    monkeypatch.setattr(module, "SUSPICIOUS", 8)
    folder = tmp_path / "crops"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").touch()
    with pytest.raises(UserError, match=r"none of 8 crops"):
        extract(folder, tmp_path / "store")
    Image.new("RGB", (4, 4)).save(folder / "3.jpg")
    assert extract(folder, tmp_path / "store")


@pytest.mark.parametrize(("workers", "failures"), [(0, 2), (0, 99), (2, 99)])
def test_a_disk_that_fails(images, tmp_path, whole, monkeypatch, workers, failures):
    """A crop that the disk fails to read for a while gets its skeleton, or ends the extraction."""
    left, read = [failures], data_io.read_bytes

    def fail(path, *args):
        if os.path.basename(path) == "21.png" and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return read(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(data_io, "read_bytes", fail)
        patch.setattr(frames_module, "PAUSES", (0.01, 0.01, 0.01))
        if failures == 2:
            assert extract(images, tmp_path / "store", workers=workers)
        else:
            with pytest.raises(UserError, match=r"21\.png.*check the disk") as error:
                extract(images, tmp_path / "store", workers=workers)
            assert len(str(error.value).splitlines()) == 1
            assert not (tmp_path / "store").exists()
            assert parts_of(tmp_path / "store") == 2
    assert extract(images, tmp_path / "store")
    assert content(tmp_path / "store") == whole


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


def test_a_killed_worker_ends_in_one_line(images, tmp_path):
    class Deadly(Stub):
        @staticmethod
        def prepare(image):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"killed.*--workers"):
        extract(images, tmp_path / "store", Deadly(), workers=1)
