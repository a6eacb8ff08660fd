import os
import time

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastreid_star.data import build
from fastreid_star.data.build import DeviceLoader
from fastreid_star.data.clips import collate_clips
from fastreid_star.data.workers import one_thread, ready_to_fork
from fastreid_star.errors import UserError


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
