"""What loading processes need so that they neither hang nor get in each other's way."""

from __future__ import annotations

import re
import sys
import time

import torch

from fastreid_star.errors import causes


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


def why_lost(error: BaseException) -> str | None:
    """What became of a loading worker and what to do, in one line; None for an error that tells of none.

    torch tells of a worker that is gone wherever the process stands at that moment, in the midst of a step too.
    """
    if isinstance(
        error, (ConnectionError, EOFError)
    ):  # it was gone before it had handed over a batch
        try:
            time.sleep(
                2
            )  # for the signal that a child has ended, in whose handler torch raises the reason
        except RuntimeError as told:
            error = told
        else:
            return _KILLED.format("")
    if not isinstance(error, RuntimeError):
        return None
    text = " ".join(str(cause) for cause in causes(error))  # the first of several knows the signal
    if re.search(r"[Bb]us error|shared memory\(shm\)|unable to write to file </torch_", text):
        return (
            "the loading workers found no room in shared memory (/dev/shm): lower DATALOADER.NUM_WORKERS, or give the "
            "machine more (docker run --shm-size 16g)"
        )
    if re.search(
        r"DataLoader worker \(pid.*(killed|exited)|unable to open shared memory object", text
    ):
        signal = re.search(r"killed by signal: (\w+)", text)
        return _KILLED.format(f" ({signal[1]})" if signal else "")
    return None


_KILLED = (
    "a loading worker was killed{}, as the system does where memory runs out: lower DATALOADER.NUM_WORKERS, or give "
    "the job more memory; training goes on from its last checkpoint with --resume"
)
