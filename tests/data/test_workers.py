import os
import sys

import cv2
import numpy as np
import pytest
import torch

from fastreid_star.data.workers import one_thread, ready_to_fork


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
    assert threads() == opencv_threads, "nor does the next picture start them again"


def test_without_opencv_nothing_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "cv2")
    ready_to_fork()
    assert "cv2" not in sys.modules


def test_a_worker_has_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    one_thread(0)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
