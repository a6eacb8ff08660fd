"""Faults of the machine that runs a job, each said in one line: memory, disks and loading workers that give out."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from fastreid.utils import comm

from fastreid_star.data.workers import why_lost
from fastreid_star.engine import device as devices
from fastreid_star.errors import UserError, causes

FULL = {errno.ENOSPC, errno.EDQUOT}
DISK = FULL | {errno.EROFS, errno.EIO, errno.ESTALE}
GO_ON = "what was saved before is whole, and training goes on from there with --resume"


@contextlib.contextmanager
def in_one_line(device: str = "") -> Iterator[None]:
    """Within, a fault that :func:`explain` knows is raised as a :class:`UserError`.

    Args:
        device: as for :func:`explain`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = explain(error, device)
        if line is None:
            raise
        raise UserError(line) from error


def explain(error: BaseException, device: str = "") -> str | None:
    """What happened and what to do, in one line; None for an error that is no fault of the machine.

    Args:
        error: as it was caught; the errors that led to it are looked at too.
        device: MODEL.DEVICE, whose memory is told of where it gave out.
    """
    chain = list(causes(error))
    for explanation in (_worker, _memory, _disk, _files):
        for cause in chain:
            line = explanation(cause)
            if line is not None:
                return line + (_taken(device) if explanation is _memory else "")
    return None


def _worker(error: BaseException) -> str | None:
    """Lost connections are not only of workers: those that are, :class:`DeviceLoader` has told of."""
    return why_lost(error) if isinstance(error, RuntimeError) else None


def _memory(error: BaseException) -> str | None:
    """Of a device or of the machine; whose error it is, only its text tells."""
    text = str(error)
    words = re.search(r"out of memory|can't allocate memory|ALLOC_FAILED", text, re.IGNORECASE)
    if not (isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and words)):
        return None
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", text)
    return (
        f"out of memory{f', {wanted[1]} more were wanted' if wanted else ''}: lower SOLVER.IMS_PER_BATCH (testing: "
        "TEST.IMS_PER_BATCH), INPUT.CLIP.LENGTH or INPUT.SIZE_TRAIN, use more devices, or SOLVER.AMP.ENABLED True"
    )


def _disk(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or error.errno not in DISK:
        return None
    cure = "make room" if error.errno in FULL else "look after the disk, or write to another"
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{os.strerror(error.errno)}: {cure}; {GO_ON}"


def _files(error: BaseException) -> str | None:
    too_many = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    if not too_many and not (isinstance(error, RuntimeError) and "items of ancdata" in str(error)):
        return None
    return "too many files are open: raise the limit (ulimit -n 65536), or lower DATALOADER.NUM_WORKERS"


def _taken(device: str) -> str:
    """How much of a device's memory was in use at most."""
    with contextlib.suppress(UserError):
        chosen = devices.choose_device(device, comm.get_local_rank()) if device else None
        peak = devices.peak_memory(chosen) if chosen is not None else None
        if peak is not None:
            return f"; at most {peak / 2**20:,.0f} MiB were in use on {chosen}"
    return ""
