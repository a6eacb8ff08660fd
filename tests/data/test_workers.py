import os
import pickle
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastreid_star.data import build, workers
from fastreid_star.data.build import DeviceLoader
from fastreid_star.data.clips import collate_clips
from fastreid_star.data.workers import one_thread, ready_to_fork
from fastreid_star.errors import UserError

from ..forked import start_forked


def threads():
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def opencv_threads():
    """OpenCV with threads of its own at work, as after drawing a large picture."""
    cv2.setNumThreads(1)
    before = threads()
    cv2.setNumThreads(4)
    cv2.resize(np.zeros((3000, 3000, 3), np.uint8), (2000, 2000), interpolation=cv2.INTER_CUBIC)
    if threads() == before:
        pytest.skip("this OpenCV starts no threads")
    yield before
    cv2.setNumThreads(1)


def test_no_thread_of_opencv_is_left_to_be_lost_in_a_fork(opencv_threads):
    ready_to_fork()
    cv2.resize(np.zeros((3000, 3000, 3), np.uint8), (2000, 2000), interpolation=cv2.INTER_CUBIC)
    assert threads() == opencv_threads, "the next picture does not start them again"


def test_a_worker_has_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    one_thread(0)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


class Items(list):
    """A dataset of ``item()``."""

    def __getitem__(self, index):
        return super().__getitem__(index)()


def load(item, num_workers=1, **options):
    loader = DataLoader(Items([item]), num_workers=num_workers, collate_fn=collate_clips, **options)
    return list(DeviceLoader(loader, torch.device("cpu")))


def unreadable():
    raise UserError("none of the 12 frames can be read")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_users_error_in_a_worker_is_one_line(num_workers):
    with pytest.raises(UserError) as caught:
        load(unreadable, num_workers)
    assert str(caught.value) == "none of the 12 frames can be read"


def full(*args, **kwargs):
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    )


def test_full_shared_memory_ends_the_run(monkeypatch):
    """A worker must put its batch into shared memory where an error reaches the main process."""
    monkeypatch.setattr(torch.TypedStorage, "_new_shared", full)
    with pytest.raises(UserError, match=r"shared memory \(/dev/shm\): lower .*--shm-size"):
        load(lambda: {"images": torch.zeros(3)}, timeout=20)


def test_a_worker_that_gives_no_batch(monkeypatch):
    """Of any loader: fast-reid's loaders of images have no time limit of their own."""
    monkeypatch.setattr(build, "TIMEOUT", 1)
    with pytest.raises(UserError, match=r"no batch for .* seconds"):
        load(lambda: time.sleep(30))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_a_killed_process(tmp_path, monkeypatch):
    """The worker is about to send more than a pipe holds, and nobody reads."""
    monkeypatch.setattr(workers, "PARENT_CHECK", 0.05)

    def load():
        loader = DataLoader(
            [bytes(10**6)] * 8, num_workers=1, collate_fn=pickle.dumps, worker_init_fn=one_thread
        )
        batches = iter(loader)
        next(batches)
        (tmp_path / "written").write_text(str(batches._workers[0].pid))
        (tmp_path / "written").rename(tmp_path / "worker")
        time.sleep(60)

    parent, end = start_forked(load), time.monotonic() + 30
    while not (tmp_path / "worker").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    worker = int((tmp_path / "worker").read_text())
    assert is_running(worker)
    time.sleep(0.3)  # it writes into the pipe
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while is_running(worker):
        assert time.monotonic() < end, "the worker is left over"
        time.sleep(0.02)
