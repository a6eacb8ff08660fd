"""Settings and error messages of the processes that load data."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator

import torch
from torch.utils.data import get_worker_info

from fastreid_star.errors import UserError, causes

PARENT_CHECK = 5  # seconds between two looks whether a worker's parent is alive
TIMEOUT = 600  # seconds that a loader with workers waits for a batch

_waiting_since: list[float] = []  # one entry while this process waits for a batch


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """A context in which this process waits for a batch."""
    _waiting_since.append(time.monotonic())
    try:
        yield
    finally:
        _waiting_since.pop()


def waited() -> float:
    """For how many seconds this process has waited for the batch that it waits for now, if any."""
    return time.monotonic() - _waiting_since[-1] if _waiting_since else 0.0


_CURES = {
    r"[Bb]us error|shared memory\(shm\)|unable to write to file </torch_": (
        "the loading workers found no room in shared memory (/dev/shm): lower "
        "DATALOADER.NUM_WORKERS, or give the container more (docker run --shm-size 16g)"
    ),
    r"DataLoader timed out": (
        f"the loading workers gave no batch for {TIMEOUT} seconds: check the disk and the free "
        "shared memory (/dev/shm), or lower DATALOADER.NUM_WORKERS"
    ),
    r"DataLoader worker \(pid.*(killed|exited)|unable to open shared memory object": (
        "a loading worker was killed, as the system does when memory runs out: lower "
        "DATALOADER.NUM_WORKERS, or give the run more memory; a training continues with --resume"
    ),
}


def ready_to_fork() -> None:
    """Stop OpenCV's threads in this process; call it before workers are forked.

    A forked worker does not have these threads and would wait for them for ever.
    """
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def one_thread(worker: int) -> None:
    """A ``worker_init_fn``: one thread per worker, as the workers are the parallelism.

    The worker ends with its parent. If that is killed while the worker sends it a large batch, the
    worker would wait for ever: it holds the other end of the pipe itself.
    """
    torch.set_num_threads(1)
    if get_worker_info() is not None:
        if multiprocessing.get_start_method() != "fork":
            # Ctrl-C reaches the whole process group: the trainer first writes its checkpoint
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK)
    os._exit(1)


def why_lost(error: BaseException) -> str | None:
    """Why a loading worker failed, with a cure, as one line; None for any other error."""
    if isinstance(error, ConnectionError | EOFError):  # the worker ended before it sent a batch
        try:
            time.sleep(2)  # torch's handler of the child's signal raises the reason
        except RuntimeError as raised:
            error = raised
        else:
            return list(_CURES.values())[-1]
    if isinstance(error, RuntimeError):
        text = " ".join(str(cause) for cause in causes(error))
        return next((line for found, line in _CURES.items() if re.search(found, text)), None)
    return None


def one_line(error: BaseException) -> UserError | None:
    """The :class:`UserError` for an exception of a loader; None if it is a bug.

    torch puts the worker's traceback in front of a UserError from a worker.
    """
    if isinstance(error, UserError):
        return UserError(str(error).strip().splitlines()[-1].rpartition("UserError: ")[2])
    line = why_lost(error)
    return None if line is None else UserError(line)
