"""How long it still takes."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(title: str, total: int | None, *, shown: bool = True) -> tqdm:
    """A bar of frames with the time left, on the error stream; twice a minute where that is no terminal but a log.

    Args:
        title: what is being done.
        total: how many frames there are; None: not known, so they are only counted.
        shown: False: nothing is written.
    """
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=title, unit=" frames", mininterval=interval, disable=not shown, dynamic_ncols=True)
