"""Signals that end a run: after the step it is in, with a checkpoint, in all its processes alike."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from fastreid.utils import comm

# asked to end, Ctrl-C, the terminal is gone, and Slurm's usual warning before it takes a job's machine away
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# Seconds in which further signals count as the first one: a cluster, a terminal and a launcher each send their own.
ONE_AND_THE_SAME = 2.0


class Interrupted(SystemExit):
    """A signal has ended the run, whose state is on disk. The exit status is 128 and the signal's number, as ever.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = int(number)


class SignalCatcher:
    """A context in which signals are only noted; a second one ends the process at once.

    Signals that were ignored before, as ``nohup`` has it for SIGHUP, stay so. Python handles signals in the main
    thread only: in any other this does nothing.

    Attributes:
        number: of the first signal; 0: there was none.
    """

    def __init__(self):
        self.number = 0
        self._first = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (
                    signal.SIG_IGN,
                    None,
                ):  # None: somebody else's, not Python's
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if (
            os.getpid() != self._process
        ):  # a loading process, forked from this one, which ends with it
            return
        if not self.number:
            self.number, self._first = number, time.monotonic()
            self.on_first(number)
        elif time.monotonic() - self._first > ONE_AND_THE_SAME:
            self.on_second(number)

    def on_first(self, number: int) -> None:
        """Called in the middle of whatever the main thread does, so: nothing that takes a lock."""

    def on_second(self, number: int) -> None:
        """Called so too, for every signal that is not the first once more."""
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class Interruption(SignalCatcher):
    """The signals of one training process; all processes agree on the step after which they end.

    Each step starts a maximum of one number over gloo, which the next step reads: nobody waits for it, and all read
    the same. A process alone ends after the very step it is in.
    """

    active = False  # whether this process is in such a context

    def __init__(self):
        super().__init__()
        self._told: tuple[dist.Work, torch.Tensor] | None = None

    def __enter__(self):
        Interruption.active = True
        return super().__enter__()

    def __exit__(self, *exception):
        Interruption.active = False
        super().__exit__(*exception)

    def on_first(self, number: int) -> None:
        if comm.is_main_process():
            line = f"{signal.Signals(number).name}: the run ends after this step, with a checkpoint; again: at once\n"
            os.write(2, line.encode())

    def after_step(self) -> int:
        """The signal after which all processes end now; 0: go on. For every process to call after every step."""
        if comm.get_world_size() == 1:
            return self.number
        number = self._read()
        if number:
            return number
        told = torch.tensor(self.number)
        work = dist.all_reduce(
            told, dist.ReduceOp.MAX, group=comm._get_global_gloo_group(), async_op=True
        )
        self._told = work, told
        return 0

    def at_end(self) -> int:
        """The signal that came too late to stop a run which is over; 0: there was none."""
        self._read()  # what is under way ends here, and says no more than what follows
        return max(comm.all_gather(self.number))

    def _read(self) -> int:
        """What the step before has begun to ask."""
        if self._told is None:
            return 0
        (work, told), self._told = self._told, None
        work.wait()
        return int(told)


def _leave_group() -> None:
    """Out of reach of signals to the whole process group, from a terminal or a cluster, which are for the trainer.

    A loading process that they end would take the training with it before its checkpoint. It ends with the trainer.
    """
    if Interruption.active:
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=_leave_group)
