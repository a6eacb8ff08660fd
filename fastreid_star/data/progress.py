"""How long it still takes."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(
    title: str, total: int | None, *, shown: bool = True, done: int = 0, unit: str = " frames"
) -> tqdm:
    """A bar of frames with the time left, on the error stream; twice a minute where that is no terminal but a log.

    Args:
        title: what is being done.
        total: how many frames there are; None: not known, so they are only counted.
        shown: False: nothing is written.
        done: so many were done in an earlier run: they are shown, and do not count in the speed.
        unit: what is counted.
    """
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        initial=done,
        mininterval=interval,
        maxinterval=max(
            10, interval
        ),  # a thread of tqdm's writes as often, whatever the other interval is
        smoothing=0.05,
        disable=not shown,
        dynamic_ncols=True,
    )
