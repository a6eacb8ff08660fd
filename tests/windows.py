"""Make this process look like Windows to the package: what Python lacks there is removed.

Call :func:`simulate` in a process of its own, see ``tests/forked.py``. Separators of paths, what the
file system refuses, and the packages that the project needs stay those of this system.
"""

import builtins
import errno
import io
import multiprocessing
import os
import signal
import sys
import types

MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
SIGNALS = (
    *("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2"),
    *("ITIMER_REAL", "getitimer", "pthread_kill", "setitimer", "sigwait"),
)
OS = (
    *("fork", "forkpty", "getloadavg", "getpgid", "getpgrp", "getsid", "getuid", "geteuid"),
    *(
        "killpg",
        "mkfifo",
        "nice",
        "posix_fadvise",
        "pread",
        "register_at_fork",
        "sched_getaffinity",
    ),
    *("setpgid", "setsid", "statvfs", "sync", "sysconf", "uname", "wait", "O_DIRECTORY"),
)
ENCODING = "cp1252"  # of files that are opened without one, in Western Europe


def msvcrt_of(fcntl):
    """``msvcrt.locking`` of this system: as on Windows, it refuses at once with EACCES.

    ``held`` are the locks: Windows may keep one for a while after its file was closed.
    """
    held = []

    def locking(descriptor, mode, count):
        assert count == 1
        if mode == 0:
            held.remove(descriptor)
            return fcntl.flock(descriptor, fcntl.LOCK_UN)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error
        held.append(descriptor)

    return types.SimpleNamespace(locking=locking, held=held, LK_UNLCK=0, LK_NBLCK=2)


def simulate():
    """Remove what Windows lacks, and import the package anew."""
    import fcntl

    sys.modules["msvcrt"] = msvcrt_of(fcntl)
    sys.modules.update(dict.fromkeys(MODULES))  # None: importing them fails
    for module, names in ((signal, SIGNALS), (os, OS)):
        for name in names:
            vars(module).pop(name, None)
    real = io.open

    def open_in_cp1252(file, mode="r", buffering=-1, encoding=None, *rest, **more):
        if "b" not in mode and encoding in (None, "locale"):
            encoding = ENCODING
        return real(file, mode, buffering, encoding, *rest, **more)

    builtins.open = io.open = open_in_cp1252
    multiprocessing.set_start_method("spawn", force=True)
    main = sys.modules["__main__"]  # a spawned process would run the file of pytest
    vars(main).pop("__file__", None)
    main.__spec__ = None
    for name in list(sys.modules):
        if name.partition(".")[0] in ("fastreid", "fastreid_star"):
            del sys.modules[name]
    import fastreid_star  # noqa: F401
