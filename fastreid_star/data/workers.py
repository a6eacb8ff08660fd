"""What loading processes need so that they neither hang nor get in each other's way."""

from __future__ import annotations

import sys

import torch


def ready_to_fork() -> None:
    """Have OpenCV stop the threads that it may have started in this process: call it before workers are forked.

    A fork does not take threads along, and a worker whose OpenCV believes in its parent's waits for them for ever.
    """
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def one_thread(worker: int) -> None:
    """For ``worker_init_fn``. Workers are the parallelism: one that starts threads of its own only hinders the others.

    OpenCV has been told by :func:`ready_to_fork`; in a forked process it must not be told again.
    """
    torch.set_num_threads(1)
