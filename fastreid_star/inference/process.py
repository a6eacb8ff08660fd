"""Settings of the user's process that a predictor changes for a while."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from fastreid_star.data.workers import ready_to_fork


def gpu_switches() -> list[tuple[Any, str, Any]]:
    """Owner, name and value of the switches that ``engine.device.configure`` sets for a GPU.

    torch 2.9 and later have each precision under two names, and refuse to read the older one where
    a program has set the newer one.
    """
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    switches = [(cudnn, "benchmark"), (cudnn, "allow_tf32"), (matmul, "allow_tf32")]
    owners = (matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None))
    switches += [(owner, "fp32_precision") for owner in owners]
    found = []
    for owner, name in switches:
        with contextlib.suppress(RuntimeError, AttributeError):
            found.append((owner, name, getattr(owner, name)))
    return found


def set_switches(switches: list[tuple[Any, str, Any]]) -> None:
    """Set what :func:`gpu_switches` has read."""
    for owner, name, value in switches:
        setattr(owner, name, value)


@contextlib.contextmanager
def gpu_switches_kept() -> Iterator[None]:
    """Set the program's switches again afterwards."""
    before = gpu_switches()
    try:
        yield
    finally:
        set_switches(before)


@contextlib.contextmanager
def opencv_ready_to_fork(num_workers: int) -> Iterator[None]:
    """Stop OpenCV's threads while worker processes are forked, and start them again afterwards."""
    if not num_workers or "cv2" not in sys.modules:
        yield
        return
    opencv = sys.modules["cv2"]
    threads = opencv.getNumThreads()
    ready_to_fork()
    try:
        yield
    finally:
        opencv.setNumThreads(threads)
