"""Failures of the machine, each explained in one line: memory, disks, files, loader workers."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from traceback import walk_tb

from fastreid_star.arguments import IMPORTED
from fastreid_star.data.workers import why_lost
from fastreid_star.errors import UserError, causes

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK = _FULL | {errno.EROFS, errno.EIO, errno.ESTALE}
_FILES = {errno.EMFILE, errno.ENFILE}


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """A context that raises an error which :func:`explain` knows as a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise UserError(line) from error


@contextlib.contextmanager
def building(section: str) -> Iterator[None]:
    """A context around fast-reid's builders, whose errors become one line.

    An error in a package of the user is raised as it is, with its traceback.

    Args:
        section: the config keys that the builder reads, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, AssertionError, AttributeError, IndexError, TypeError, ValueError, OSError,
            RuntimeError, NotImplementedError) as error:  # fmt: skip
        if explain(error) is not None:  # the machine's fault, such as too little memory
            raise
        modules = {f.f_globals.get("__name__", "") for f, _ in walk_tb(error.__traceback__)}
        if {name.partition(".")[0] for name in modules} & {n.partition(".")[0] for n in IMPORTED}:
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{section}: a value is not supported ({type(error).__name__}: {reason})"
        ) from error


def explain(error: BaseException) -> str | None:
    """The cause and the cure in one line, or None if the machine is not the cause.

    Args:
        error: the error. The errors that led to it are examined too.
    """
    chain = list(causes(error))
    for explanation in (_worker, _memory, _disk):
        for cause in chain:
            line = explanation(cause)
            if line is not None:
                return line
    return None


def _worker(error: BaseException) -> str | None:
    # a lost connection is not always a worker's; DeviceLoader explains the cases in which it is
    return why_lost(error) if isinstance(error, RuntimeError) else None


def _memory(error: BaseException) -> str | None:
    text = str(error)
    found = re.search(r"out of memory|can't allocate memory|ALLOC_FAILED", text, re.IGNORECASE)
    if not (isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and found)):
        return None
    size = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", text)
    return (
        f"out of memory{f', {size[1]} more were requested' if size else ''}: lower "
        "SOLVER.IMS_PER_BATCH (in a test TEST.IMS_PER_BATCH), INPUT.CLIP.LENGTH or "
        "INPUT.SIZE_TRAIN, use more devices, or set SOLVER.AMP.ENABLED True"
    )


def _disk(error: BaseException) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    if number in _FILES or "items of ancdata" in str(error):
        return (
            "too many open files: raise the limit (ulimit -n 65536) or lower DATALOADER.NUM_WORKERS"
        )
    if not isinstance(error, OSError) or number not in _DISK:
        return None
    cure = "free some space" if number in _FULL else "check the disk or write to another one"
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return (
        f"{where}{os.strerror(number)}: {cure}. Files saved before are complete, and a training "
        "continues from its last checkpoint with --resume"
    )
