"""Extraction that is killed, and disks that fail: afterwards the same bytes."""

import errno
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_star.data import io as data_io
from fastreid_star.data import skeletons
from fastreid_star.errors import UserError
from fastreid_star.pose import extraction as module
from fastreid_star.pose import frames as frames_module

from ..forked import run_forked
from .extracting import Stub, content, extract


def parts_of(output):
    return len(list(Path(f"{output}.parts").glob("*.npz")))


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

        ended = run_forked(child)
        if ended.status == 0:
            break
        assert ended.status == -signal.SIGKILL, ended.text
        if output.exists():
            allowed = [whole, content(tmp_path / "old")] if overwrite else [whole]
            assert content(output) in allowed, "complete or not there"
        assert extract(images, output, **options)
        assert content(output) == whole, f"killed at step {call}"
        assert not Path(f"{output}.parts").exists(), f"killed at step {call}"
    assert call > 4 * 3, "each part takes several steps"


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


def test_a_killed_worker_ends_in_one_line(images, tmp_path):
    class Deadly(Stub):
        @staticmethod
        def prepare(image):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"killed.*--workers"):
        extract(images, tmp_path / "store", Deadly(), workers=1)
