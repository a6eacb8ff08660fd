"""Signals that end a run after its step, with a checkpoint, in all its processes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from fastreid.utils import comm

from fastreid_star.data.workers import waited

logger = logging.getLogger(__name__)

# SIGUSR1 is what Slurm is usually asked to send before it ends a job. Windows has neither it nor
# SIGHUP, and SIGBREAK, which is Ctrl-Break.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# Seconds in which more signals count as the first: terminal, cluster and launcher each send one.
ONE_AND_THE_SAME = 2.0
# Seconds that a step may have waited for its batch when a signal ends the run in that wait. A
# single process saves its state without the step; several processes end without a checkpoint.
PATIENCE, PATIENCE_OF_MANY = 3.0, 60.0


class Interrupted(SystemExit):
    """A signal has ended the run, whose state is saved. The status is 128 + its number."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = int(number)


class NoBatch(BaseException):
    """A signal has come, and the loader gives no batch for a step that could be the last one."""


class SignalCatcher:
    """A context that records the first signal; a second one ends the process at once.

    Signals that were ignored before, such as SIGHUP under ``nohup``, stay ignored. Python handles
    signals in the main thread only: in another thread this context does nothing.

    Attributes:
        number: the number of the first signal; 0: no signal came.
    """

    def __init__(self):
        self.number = 0
        self._first = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # None: a handler that was not installed by Python
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader worker, which was forked from this process
            return
        if not self.number:
            self.number, self._first = number, time.monotonic()
            self.on_first(number)
        elif time.monotonic() - self._first > ONE_AND_THE_SAME:
            self.on_second(number)

    def on_first(self, number: int) -> None:
        """Called for the first signal, in the middle of any code: it must not take a lock."""

    def on_second(self, number: int) -> None:
        """Called for every later signal, as :meth:`on_first`."""
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class Interruption(SignalCatcher):
    """The signals of one training process. All processes agree on the step after which they end.

    Each step starts a maximum of one number over gloo, and the next step reads it. No process waits
    for another, and all read the same number. A single process ends after the step in which the
    signal came. If the loader then gives no batch for this step, :class:`NoBatch` is raised there.

    Attributes:
        in_step: set by the trainer in a step. An evaluation is not ended.
    """

    active = False  # whether this process is in such a context

    def __init__(self):
        super().__init__()
        self.in_step = False
        self._sent: tuple[dist.Work, torch.Tensor] | None = None

    def __enter__(self):
        Interruption.active = True
        return super().__enter__()

    def __exit__(self, *exception):
        Interruption.active = False
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        super().__exit__(*exception)
        if exception and isinstance(exception[1], NoBatch):
            logger.warning("The loader gave no batch: the run ended without a new checkpoint")
            raise Interrupted(self.number) from None

    def on_first(self, number: int) -> None:
        if comm.is_main_process():
            name = signal.Signals(number).name
            line = f"{name}: the run ends after this step, with a checkpoint; again: at once"
            with contextlib.suppress(OSError):  # Ctrl-C has ended a `tee` that reads it, too
                os.write(2, f"{line}\n".encode())
        if hasattr(signal, "SIGALRM"):  # on Windows the loader's own limit ends the wait
            before = signal.signal(signal.SIGALRM, self._end_wait)
            self._before.setdefault(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, 1, 1)  # look every second

    def _end_wait(self, number: int, frame: FrameType | None) -> None:
        """Raise :class:`NoBatch` where a loader has given nothing for a while, in any call."""
        patience = PATIENCE if comm.get_world_size() == 1 else PATIENCE_OF_MANY
        if self.in_step and waited() > patience:
            raise NoBatch

    def after_step(self) -> int:
        """The signal that ends all processes now, or 0. Every process calls it after each step."""
        if comm.get_world_size() == 1:
            return self.number
        number = self._receive()
        if number:
            return number
        largest = torch.tensor(self.number)
        work = dist.all_reduce(
            largest, dist.ReduceOp.MAX, group=comm._get_global_gloo_group(), async_op=True
        )
        self._sent = work, largest
        return 0

    def at_end(self) -> int:
        """The signal that came after the last step, or 0."""
        self._receive()
        return max(comm.all_gather(self.number))

    def _receive(self) -> int:
        """The number that the step before has started to share."""
        if self._sent is None:
            return 0
        (work, largest), self._sent = self._sent, None
        work.wait()
        return int(largest)


def _leave_process_group() -> None:
    """Protect loader workers from signals to the whole process group, from a terminal or a cluster.

    A worker that such a signal ends would end the training before its checkpoint. Workers end with
    the trainer.
    """
    if Interruption.active:
        os.setpgid(0, 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_process_group)
