import errno
import os
import random
import resource
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_star.data import skeletons
from fastreid_star.data.images import read_frame
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.pose import extraction as module
from fastreid_star.pose.extraction import Extraction, Share, parts_folder
from fastreid_star.pose.frames import frames_of_folder

CROPS, BROKEN = 60, {7: "cut", 23: "empty", 59: "text"}
OPTIONS = {"batch_size": 4, "batches_a_part": 2}


class Stub:
    """A pose estimator without a network: what it gives depends on its crop's pixels and on the crops beside it.

    Joint v of a crop: (mean of channel 0, sum of the batch's means, v / 17).

    Args:
        seconds: how long a batch takes.
        on_batch: called with the number of each batch before it is estimated.
    """

    def __init__(self, seconds=0.0, on_batch=lambda number: None):
        self.seconds, self.on_batch, self.batches, self.estimated = seconds, on_batch, 0, 0

    @staticmethod
    def prepare(image):
        return image.mean(axis=(0, 1))

    def estimate(self, prepared):
        self.on_batch(self.batches)
        self.batches += 1
        self.estimated += len(prepared)
        time.sleep(self.seconds)
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


def extract(images, output, stub=None, *, share=module.WHOLE, workers=0, **options):
    stub = stub or Stub()
    work = Extraction(frames_of_folder(images), output, stub.describe(), **{**OPTIONS, **options})
    work.run(stub, share=share, workers=workers, progress=False)
    return work.finish()


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The store of an extraction that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        output = tmp_path_factory.mktemp("whole") / "store"
        assert extract(images, output)
    return content(output)


def test_joints_of_every_crop_in_its_batch(images, tmp_path):
    assert extract(images, tmp_path / "store")
    assert os.listdir(tmp_path) == ["store"]
    store = SkeletonStore.open(tmp_path / "store")
    joints, present = store.read([str(number) for number in range(CROPS)])
    assert sorted(np.flatnonzero(~present)) == sorted(BROKEN)
    for start in range(0, CROPS, 4):
        good = [number for number in range(start, start + 4) if number not in BROKEN]
        means = {number: read_frame(images / f"{number}.png").mean(axis=(0, 1)) for number in good}
        for number in good:
            np.testing.assert_allclose(joints[number, :, 0], means[number][0], rtol=1e-6)
            np.testing.assert_allclose(joints[number, :, 1], sum(means.values()).sum(), rtol=1e-6)
            np.testing.assert_allclose(joints[number, :, 2], np.arange(17) / 17, rtol=1e-6)


def test_manifest(images, tmp_path):
    extract(images, tmp_path / "store")
    meta = SkeletonStore.open(tmp_path / "store").meta
    assert meta["date"] == "2001-09-09"
    assert meta["counts"] == {"frames": 60, "with_skeleton": 57, "without": 3}
    assert set(meta["missing"]) == {"7", "23", "59"}
    assert all(reason and str(images) not in reason for reason in meta["missing"].values())
    assert meta["plan"]["backend"] == "stub"
    assert meta["plan"]["input_size"] == [1, 1]
    assert len(meta["plan"]["keys_sha256"]) == 64
    sizes = [read_frame(images / f"{n}.png").shape[1::-1] for n in range(CROPS) if n not in BROKEN]
    assert meta["image_sizes"]["distinct"] == len(set(sizes))
    assert meta["image_sizes"]["smallest"] == np.min(sizes, axis=0).tolist()
    assert meta["image_sizes"]["largest"] == np.max(sizes, axis=0).tolist()
    width, height, count = meta["image_sizes"]["commonest"][0]
    assert sizes.count((width, height)) == count == max(map(sizes.count, sizes))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_bytes(images, tmp_path, whole, workers):
    assert extract(images, tmp_path / "store", workers=workers)
    assert content(tmp_path / "store") == whole


@pytest.mark.parametrize("of", [2, 3, 20])
def test_shards_in_any_order_give_the_same_bytes(images, tmp_path, whole, of):
    numbers = list(range(of))
    random.Random(of).shuffle(numbers)
    ended = [extract(images, tmp_path / "store", share=Share(number, of)) for number in numbers]
    # with 20 shares of 8 parts some have nothing to do, and the store is there before they come
    parts = -(-CROPS // 8)
    last = max(place for place, number in enumerate(numbers) if number < parts)
    assert ended == [False] * last + [True] * (of - last)
    assert content(tmp_path / "store") == whole


def test_a_second_call_does_nothing(images, tmp_path, whole):
    extract(images, tmp_path / "store")
    stub = Stub()
    assert extract(images, tmp_path / "store", stub)
    assert stub.batches == 0
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
    """The exit status of a child, minus the signal where one ended it. It may leave children of its own behind."""
    for _ in range(6000):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    raise AssertionError("it hangs")


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments_and_restarted(images, tmp_path, whole, workers):
    moments = random.Random(workers)
    output, kills, progress = tmp_path / "store", 0, []
    for _ in range(5):
        child = in_a_child(lambda: extract(images, output, Stub(seconds=0.06), workers=workers))
        time.sleep(moments.uniform(0.05, 0.17))
        os.kill(child, signal.SIGKILL)
        kills += end(child) == -signal.SIGKILL
        folder = Path(parts_folder(output))
        progress.append(len(list(folder.glob("*.npz"))) if folder.exists() else 0)
        assert not output.exists(), "a store before the end"
    assert kills == 5
    assert progress == sorted(progress), "what was done is kept"
    stub = Stub()
    assert extract(images, output, stub)
    assert stub.estimated <= CROPS - 8 * progress[-1] + 4, "nothing is done twice"
    assert content(output) == whole
    assert os.listdir(tmp_path) == ["store"]


def die_at(calls, function_names):
    """Have the process killed at the n-th call of all these functions of os and shutil together, before it happens."""
    count = iter(range(10**6))
    for owner, name in function_names:
        real = getattr(owner, name)

        def call(*args, real=real, **kwargs):
            if next(count) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, call)


def test_killed_at_every_step_of_writing(images, tmp_path, whole):
    steps = [(os, "replace"), (os, "rename"), (os, "fsync"), (os, "makedirs"), (skeletons.shutil, "rmtree")]
    steps += [(np, "save"), (np, "savez")]
    survived = None
    for call in range(200):
        output = tmp_path / str(call) / "store"
        output.parent.mkdir()

        def child(call=call, output=output):
            die_at(call, steps)
            extract(images, output)

        code = end(in_a_child(child))
        if code == 0:
            survived = call
            break
        assert code == -signal.SIGKILL
        assert extract(images, output)
        assert content(output) == whole, f"killed at step {call}"
        assert os.listdir(output.parent) == ["store"], f"killed at step {call}"
    assert survived > 3 * 8, "each part takes several steps"


def test_other_skeletons_are_neither_continued_nor_replaced(images, tmp_path, whole):
    output = tmp_path / "store"
    extract(images, output, share=Share(0, 2))
    with pytest.raises(UserError, match=r"beginning of other skeletons .*batch_size"):
        extract(images, output, batch_size=8, batches_a_part=1)
    extract(images, output)
    with pytest.raises(UserError, match="--overwrite"):
        extract(images, output, batch_size=8)
    assert content(output) == whole
    assert extract(images, output, batch_size=8, overwrite=True)
    assert content(output) != whole
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(UserError, match="no skeleton store"):
        extract(images, tmp_path / "thesis", overwrite=True)
    assert os.listdir(tmp_path / "thesis") == ["chapter.tex"]


def test_a_damaged_part_is_made_again(images, tmp_path, whole):
    output = tmp_path / "store"
    extract(images, output, share=Share(0, 2))
    file = Path(parts_folder(output)) / "000002.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"part 2 .* was damaged"):
        extract(images, output)
    assert extract(images, output)
    assert content(output) == whole


def test_a_full_disk_leaves_the_old_store_and_what_is_done(images, tmp_path, whole):
    output = tmp_path / "store"
    extract(images, output, batch_size=2)
    old = content(output)

    def child(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(UserError, match=r"cannot be written .*what is done is kept"):
            extract(images, output, overwrite=True)

    assert end(in_a_child(lambda: child(1000))) == 0, "the first part does not fit"
    assert content(output) == old
    assert end(in_a_child(lambda: child(8000))) == 0, "the parts fit, the store does not"
    assert content(output) == old
    assert len(list(Path(parts_folder(output)).glob("*.npz"))) == 8
    assert len(SkeletonStore.open(output)) == CROPS
    stub = Stub()
    assert extract(images, output, stub, overwrite=True)
    assert stub.batches == 0
    assert content(output) == whole
    assert os.listdir(tmp_path) == ["store"]


def test_a_folder_that_goes_away(images, tmp_path, whole):
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.symlink_to(images)

    def lose(number):
        if number == 5:
            there.rename(gone)

    with pytest.raises(UserError, match=r"there is gone: bring it back"):
        extract(there, tmp_path / "store", Stub(on_batch=lose))
    gone.rename(there)
    assert extract(there, tmp_path / "store")
    assert content(tmp_path / "store") == whole


def test_a_disk_that_reads_nothing_is_not_taken_for_broken_crops(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SUSPICIOUS", 8)
    folder = tmp_path / "crops"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").touch()
    with pytest.raises(UserError, match=r"none of 8 crops from .*0\.jpg on can be read"):
        extract(folder, tmp_path / "store")
    Image.new("RGB", (4, 4)).save(folder / "3.jpg")
    assert extract(folder, tmp_path / "store")


def test_the_output_folder_goes_away(images, tmp_path):
    def lose(number):
        if number == 5:
            Path(parts_folder(tmp_path / "store")).rename(tmp_path / "elsewhere")

    with pytest.raises(UserError, match=r"store\.parts cannot be written \(No such file or directory\)"):
        extract(images, tmp_path / "store", Stub(on_batch=lose))


def test_joints_that_are_not_finite_are_missing(images, tmp_path):
    class Diverged(Stub):
        def estimate(self, prepared):
            joints = super().estimate(prepared)
            joints[0, 3, 1] = np.nan
            return joints

    extract(images, tmp_path / "store", Diverged())
    store = SkeletonStore.open(tmp_path / "store")
    assert store.meta["missing"]["0"] == "the network gave joints that are not finite"
    _, present = store.read(["0", "1"])
    assert present.tolist() == [False, True]


def test_a_killed_worker_ends_in_a_clear_line(images, tmp_path):
    class Deadly(Stub):
        @staticmethod
        def prepare(image):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"want of memory.*--workers"):
        extract(images, tmp_path / "store", Deadly(), workers=1)


def test_a_machine_at_its_limit_is_not_a_broken_crop(images, tmp_path, monkeypatch):
    def no_more_files(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "read_frame", no_more_files)
    with pytest.raises(OSError, match="Too many open files"):
        extract(images, tmp_path / "store")


def test_the_bar_counts_everybodys_crops(images, tmp_path, capfd):
    stub = Stub()
    frames = frames_of_folder(images)
    first, second = (Extraction(frames, tmp_path / "store", stub.describe(), **OPTIONS) for _ in range(2))
    first.run(stub, share=Share(0, 2), progress=False, workers=0)
    second.run(stub, share=Share(1, 2), workers=0)
    last = capfd.readouterr().err.split("\r")[-1]
    assert "60/60" in last
    assert "crops/s" in last
