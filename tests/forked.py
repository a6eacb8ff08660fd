"""Run a function in a forked process: as isolated as a new one, without the seconds of its imports."""

import os
import sys
import tempfile
import traceback
from typing import NamedTuple

import torch


class Ended(NamedTuple):
    """How a process ended: its status, and what it wrote to stdout and stderr together."""

    status: int
    text: str


def run_forked(function, *args) -> Ended:
    """``function(*args)`` in a forked process."""
    with tempfile.TemporaryFile() as file:
        pid = start_forked(function, *args, output=file.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        file.seek(0)
        return Ended(status, file.read().decode(errors="replace"))


def start_forked(function, *args, output: int | None = None) -> int:
    """Start ``function(*args)`` in a forked process; return its process id.

    Args:
        output: a descriptor that gets stdout and stderr; None: they are dropped.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(os.devnull, os.O_WRONLY) if output is None else output
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        torch.set_num_threads(1)  # the threads of the parent are not in this process
        function(*args)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(*words) -> Ended:
    """``fastreid-star WORDS`` in a forked process."""
    from fastreid_star.cli.main import main

    def run():
        sys.argv = ["fastreid-star", *map(str, words)]
        main()

    return run_forked(run)
