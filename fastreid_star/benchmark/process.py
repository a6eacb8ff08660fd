"""Memory of a process, and work in a process of its own, whose memory is its own too."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastreid_star.errors import UserError

MB = 1e6


@dataclass(frozen=True)
class Outcome:
    """What became of work in a process of its own.

    Args:
        result: what it returned.
        seconds: how long it took, without the start of the process.
        growth: how many bytes the process' memory grew by at most, above what it held before the work.
    """

    result: Any
    seconds: float
    growth: int


def in_own_process(function: Callable, *args) -> Outcome:
    """Call ``function(*args)`` in a fresh process.

    Args:
        function: importable by its name; `args` and the result can be pickled.

    Raises:
        UserError: this system does not tell a process' memory; whatever `function` raises.
    """
    resident_memory()  # so that a system without it is known at once
    return apart(_measured, function, args, multiprocessing.get_start_method())


def apart(function: Callable, *args) -> Any:
    """What ``function(*args)`` returns in a fresh process, or raises. It ends with this one, even where this is killed.

    Args:
        function: importable by its name; `args` and the result can be pickled.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def _measured(function: Callable, args: tuple, start_method: str) -> Outcome:
    # loading workers are started as this process' parent would, not spawned because it was
    multiprocessing.set_start_method(start_method, force=True)
    before, start = resident_memory(), time.perf_counter()
    result = function(*args)
    seconds = time.perf_counter() - start
    return Outcome(result, seconds, peak_resident_memory() - before)


def resident_memory() -> int:
    """Bytes of main memory that this process holds.

    Raises:
        UserError: the system has no /proc.
    """
    return _status("self", "VmRSS")


def own_memory(pid: int) -> int:
    """Bytes of main memory that a process holds beside files and what it shares with others, such as batches.

    Raises:
        UserError: there is no such process, or the system has no /proc.
    """
    return _status(pid, "RssAnon")


def peak_resident_memory() -> int:
    """The most bytes of main memory that this process has held at one time."""
    # not getrusage's ru_maxrss: a process inherits that from the one that started it
    return _status("self", "VmHWM")


def _status(pid: int | str, key: str) -> int:
    path = Path(f"/proc/{pid}/status")
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(
            f"memory is read from {path}, which Linux alone has: leave this part out here"
        ) from error
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))
