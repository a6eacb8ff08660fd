"""tools/train_net.py, killed while it writes a file: just before its N-th request to the disk to do so.

A request is that a temporary file be on disk, or a rename.

Called as ``killed.py N ...``, with the tool's own arguments after it.
"""

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path


def killed_before(moment: int) -> None:
    calls = itertools.count(1)

    def counted(function):
        def call(what, *more):
            named = (
                os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
            )
            if (more or named.endswith(".tmp")) and next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(what, *more)

        return call

    for name in ("fsync", "replace"):
        setattr(os, name, counted(getattr(os, name)))


if __name__ == "__main__":
    killed_before(int(sys.argv[1]))
    tool = Path(__file__).parents[3] / "tools" / "train_net.py"
    sys.argv = [str(tool), *sys.argv[2:]]
    runpy.run_path(str(tool), run_name="__main__")
