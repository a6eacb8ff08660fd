import errno
import os
import random
import resource
import shutil
import signal
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_star.data import io as data_images
from fastreid_star.data import skeletons
from fastreid_star.data.io import PAUSES, progress_bar, read_frame
from fastreid_star.data.skeletons import SkeletonStore
from fastreid_star.errors import UserError
from fastreid_star.pose import extraction as module
from fastreid_star.pose import parts as parts_module
from fastreid_star.pose.extraction import Extraction, Share, parts_folder, which_store
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


def test_the_same_command_twice_at_the_same_time(images, tmp_path, whole):
    output = tmp_path / "store"
    overtaken = Stub(on_batch=lambda number: number == 5 and extract(images, output))
    assert extract(images, output, overtaken)
    assert overtaken.batches < CROPS / 4, "no longer than until it is noticed"
    assert content(output) == whole
    assert os.listdir(tmp_path) == ["store"]


def test_two_that_end_at_the_same_moment(images, tmp_path, whole, monkeypatch):
    """One looks whether all is there; the other writes the last part, and comes to look, before the first goes."""
    output, stub = tmp_path / "store", Stub()
    first, last = (
        Extraction(frames_of_folder(images), output, stub.describe(), **OPTIONS) for _ in range(2)
    )
    first.run(stub, share=Share(0, 2), workers=0, progress=False)
    ended, looks = [], first.parts.done

    def look():
        seen = looks()
        last.run(stub, share=Share(1, 2), workers=0, progress=False)
        thread.start()
        thread.join(0.3)
        return seen

    thread = threading.Thread(target=lambda: ended.append(last.finish()))
    monkeypatch.setattr(first.parts, "done", look)
    assert not first.finish()
    thread.join()
    assert ended == [True]
    assert content(output) == whole
    assert os.listdir(tmp_path) == ["store"]


def test_a_disk_without_locks(images, tmp_path, whole, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(parts_module.fcntl, "flock", refuse)
    assert extract(images, tmp_path / "store")
    assert content(tmp_path / "store") == whole
    assert "cannot be locked (No locks available)" in caplog.text


def test_what_is_locked_can_be_written(images, tmp_path, monkeypatch):
    """NFS gives an exclusive lock on nothing else."""
    modes = []
    monkeypatch.setattr(parts_module.fcntl, "flock", lambda file, _: modes.append(file.writable()))
    extract(images, tmp_path / "store")
    assert modes
    assert all(modes)


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


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_every_step_of_writing(images, tmp_path, overwrite):
    options = {"batch_size": 20, "batches_a_part": 1, "overwrite": overwrite}
    extract(images, tmp_path / "whole", **options)
    whole = content(tmp_path / "whole")
    steps = [
        (os, "replace"),
        (os, "rename"),
        (os, "fsync"),
        (os, "makedirs"),
        (skeletons.shutil, "rmtree"),
    ]
    steps += [(os, "mkdir"), (os, "unlink"), (os, "rmdir"), (np, "savez")]
    survived = None
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
            survived = call
            break
        assert code == -signal.SIGKILL
        stub, made = Stub(), output.exists() and content(output) == whole
        if output.exists():
            assert content(output) in (whole, content(tmp_path / "old") if overwrite else None), (
                "whole or not there"
            )
        assert extract(images, output, stub, **options)
        assert stub.batches == 0 or not made, f"made twice: killed at step {call}"
        assert content(output) == whole, f"killed at step {call}"
        assert os.listdir(output.parent) == ["store"], f"killed at step {call}"
    assert survived > 4 * 3, "each part takes several steps"


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
    (output / "notes.txt").touch()
    with pytest.raises(UserError, match="no skeleton store alone"):
        extract(images, output, overwrite=True)  # not only when all is done
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(UserError, match="no skeleton store"):
        extract(images, tmp_path / "thesis", overwrite=True)
    assert os.listdir(tmp_path / "thesis") == ["chapter.tex"]


def test_other_skeletons_on_their_way_are_left_alone(images, tmp_path):
    """The first store is asked for again while one that is to replace it is being made."""
    output = tmp_path / "store"
    extract(images, output)
    extract(images, output, share=Share(0, 2), batch_size=2, overwrite=True)
    begun = content(parts_folder(output))
    assert len(begun) > 1
    assert extract(images, output)
    assert content(parts_folder(output)) == begun


def test_one_of_several_that_replace_comes_late(images, tmp_path, whole):
    """The others have replaced the store already: it must not begin anew."""
    output, stub = tmp_path / "store", Stub()
    extract(images, output, batch_size=2)
    replaces = which_store(output)
    assert extract(images, output, overwrite=True, replaces=replaces)
    assert extract(images, output, stub, overwrite=True, replaces=replaces)
    assert stub.batches == 0
    assert content(output) == whole
    assert os.listdir(tmp_path) == ["store"]
    assert extract(images, output, stub, overwrite=True)
    assert stub.batches > 0, "a new command"


def test_neighbors_stay_and_what_was_left_behind_goes(images, tmp_path, whole):
    for name in ("store.tmp_mine", "store.old", "storex.tmp12", "store.tmp77", "store.old78"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").touch()
    extract(images, tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == ["store", "store.old", "store.tmp_mine", "storex.tmp12"]


@pytest.mark.parametrize("there", [False, True])
def test_an_output_that_is_a_link_stays_one(images, tmp_path, whole, there):
    (tmp_path / "disk" / "store.tmp5").mkdir(parents=True)  # of a process that was killed
    (tmp_path / "link").symlink_to("disk/store")
    if there:
        extract(images, tmp_path / "link", batch_size=2)
    assert extract(images, f"{tmp_path}/link/", overwrite=there)
    assert content(tmp_path / "disk" / "store") == whole
    assert os.readlink(tmp_path / "link") == "disk/store"
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    assert os.listdir(tmp_path / "disk") == ["store"]


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


def test_an_empty_mount_point_is_no_folder_of_missing_crops(images, tmp_path, whole):
    """The folder is still there when its disk has gone, in the middle of a part."""
    crops, elsewhere = tmp_path / "crops", tmp_path / "elsewhere"
    shutil.copytree(images, crops)
    elsewhere.mkdir()

    def lose(number):
        if number == 4:
            for file in crops.iterdir():
                file.rename(elsewhere / file.name)

    with pytest.raises(UserError, match=r"crops/\d+\.png is gone: bring it back"):
        extract(crops, tmp_path / "store", Stub(on_batch=lose))
    for file in elsewhere.iterdir():
        file.rename(crops / file.name)
    assert extract(crops, tmp_path / "store")
    assert content(tmp_path / "store") == whole


@pytest.mark.parametrize("batch_size", [1, 6, 16, 64])
def test_parts_are_large_enough_to_tell_a_disk_from_crops(images, tmp_path, batch_size):
    work = Extraction(frames_of_folder(images), tmp_path / "store", {}, batch_size=batch_size)
    assert work.parts.size >= module.SUSPICIOUS
    assert work.parts.size % batch_size == 0


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

    with pytest.raises(
        UserError, match=r"store\.parts cannot be written \(No such file or directory\)"
    ):
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


def test_a_network_that_gives_nothing_finite_is_not_a_network(images, tmp_path, monkeypatch):
    class Overflown(Stub):
        def estimate(self, prepared):
            return super().estimate(prepared) * np.nan

    monkeypatch.setattr(module, "SUSPICIOUS", 8)
    with pytest.raises(
        UserError,
        match=r"no finite joints for any of 8 crops from .*0\.png on: check its checkpoint",
    ):
        extract(images, tmp_path / "store", Overflown())


def test_crops_as_training_sees_them(tmp_path):
    """Turned as their EXIF says, gray and CMYK as RGB, whatever the case of their suffix."""
    folder = tmp_path / "crops"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 10, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.PNG", exif=turned)
    Image.fromarray(pixels).convert("L").save(folder / "gray.png")
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.JPG")
    Image.new("RGB", (1, 1), (7, 8, 9)).save(folder / "ein Punkt, größer nicht.bmp")

    class Corners(Stub):
        @staticmethod
        def prepare(image):
            return np.array([image.shape[1], image.shape[0], image[0, 0].sum() / 765])

        def estimate(self, prepared):
            return np.stack(prepared)[:, None].repeat(17, axis=1).astype(np.float32)

    extract(folder, tmp_path / "store", Corners())
    for file in folder.iterdir():
        image = read_frame(file)
        joints, present = SkeletonStore.open(tmp_path / "store").read([file.stem])
        assert present.all()
        expected = [image.shape[1], image.shape[0], image[0, 0].sum() / 765]
        np.testing.assert_allclose(joints[0], np.tile(expected, (17, 1)), rtol=1e-6)
    joints, _ = SkeletonStore.open(tmp_path / "store").read(["turned", "gray"])
    assert joints[:, 0, :2].tolist() == [[6, 10], [10, 6]]


def test_names_that_are_no_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/crops"
    os.mkdir(folder)
    Image.new("RGB", (4, 4)).save(folder + b"/a\xff.png")
    Path(os.fsdecode(folder + b"/b\xfe.png")).touch()
    for _ in range(2):
        assert extract(os.fsdecode(folder), tmp_path / "store")
    store = SkeletonStore.open(tmp_path / "store")
    assert store.read(["a\udcff", "b\udcfe"])[1].tolist() == [True, False]
    assert str(tmp_path) not in store.meta["missing"]["b\udcfe"]


def test_large_batches_take_no_open_files(images, tmp_path):
    class Tensors(Stub):
        @staticmethod
        def prepare(image):
            return torch.from_numpy(image.mean(axis=(0, 1)))

        def estimate(self, prepared):
            assert all(isinstance(crop, torch.Tensor) for crop in prepared)
            return super().estimate([crop.numpy() for crop in prepared])

    def child():
        few = len(os.listdir("/proc/self/fd")) + 40
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
        assert extract(
            images, tmp_path / "store", Tensors(), workers=1, batch_size=50, batches_a_part=1
        )

    assert end(in_a_child(child)) == 0


def test_a_fault_in_a_worker_is_not_taken_for_its_end():
    text = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback: it was killed by a fault"
    with pytest.raises(RuntimeError, match="a fault"), module._worker_deaths_explained():
        raise RuntimeError(text)


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


class Disk:
    """Does not give some crops, so many times or always; what it does in a worker stays there."""

    def __init__(self, monkeypatch, number, faults):
        self.number, self.faults, self.pauses = number, dict(faults), []
        monkeypatch.setattr(data_images, "read_bytes", self.read)
        monkeypatch.setattr(module.time, "sleep", self.pauses.append)

    def read(self, path):
        name = os.path.basename(path)
        if self.faults.get(name, 0) > 0:
            self.faults[name] -= 1
            raise OSError(self.number, os.strerror(self.number), path)
        with open(path, "rb") as file:
            return file.read()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fails_for_a_moment_loses_no_crop(
    images, tmp_path, whole, monkeypatch, workers
):
    disk = Disk(monkeypatch, errno.ESTALE, {"5.png": 2 if workers else 3, "6.png": 1, "40.png": 2})
    assert extract(images, tmp_path / "store", workers=workers)
    assert content(tmp_path / "store") == whole
    if workers == 0:  # the first failure of each costs nothing
        assert [pause for pause in disk.pauses if pause] == [*PAUSES[:3], PAUSES[0], *PAUSES[:2]]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_stays_away_ends_it_and_it_goes_on_later(
    images, tmp_path, whole, monkeypatch, number, workers
):
    """One crop that the disk does not give must not be recorded as one without a skeleton."""
    with monkeypatch.context() as patch:
        disk = Disk(patch, number, {"21.png": 99})
        message = rf"21\.png cannot be read \({os.strerror(number)}\), and was tried for 26 s: mend the disk or the file's"
        with pytest.raises(UserError, match=message) as error:
            extract(images, tmp_path / "store", workers=workers)
        assert [pause for pause in disk.pauses if pause] == list(PAUSES)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "store").exists()
    assert sorted(file.name for file in (tmp_path / "store.parts").glob("*.npz")) == [
        "000000.npz",
        "000001.npz",
    ]
    stub = Stub()
    assert extract(images, tmp_path / "store", stub)
    assert stub.estimated == CROPS - len(BROKEN) - 15, (
        "two parts were kept, with 16 crops of which one is broken"
    )
    assert content(tmp_path / "store") == whole


def test_a_pipe_among_the_crops_is_no_crop_and_nobody_waits(tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "0.png")
    os.mkfifo(folder / "1.png")
    (folder / "2.png").symlink_to("2.png")
    assert extract(folder, tmp_path / "store")
    assert SkeletonStore.open(tmp_path / "store").meta["missing"] == {
        "1": "1.png: it is a pipe or a device, not a file",
        "2": "2.png: Too many levels of symbolic links",
    }


def test_the_bar_counts_everybodys_crops(images, tmp_path, capfd):
    stub = Stub()
    frames = frames_of_folder(images)
    first, second = (
        Extraction(frames, tmp_path / "store", stub.describe(), **OPTIONS) for _ in range(2)
    )
    first.run(stub, share=Share(0, 2), progress=False, workers=0)
    second.run(stub, share=Share(1, 2), workers=0)
    last = capfd.readouterr().err.split("\r")[-1]
    assert "60/60" in last
    assert "crops/s" in last


def test_the_bars_speed_is_of_this_run_alone(images, tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(
        module,
        "progress_bar",
        lambda *args, **options: bars.append(progress_bar(*args, **options)) or bars[-1],
    )
    extract(images, tmp_path / "store", share=Share(0, 2))
    work = Extraction(frames_of_folder(images), tmp_path / "store", Stub().describe(), **OPTIONS)
    work.run(Stub(seconds=0.02), workers=0)
    bar = bars[-1].format_dict
    assert (bar["initial"], bar["n"], bar["total"]) == (32, 60, 60)
    assert bars[-1].unit == " crops"
    assert (bar["n"] - bar["initial"]) / bar["elapsed"] < 4 / 0.02
