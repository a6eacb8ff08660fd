"""What a tracker of experiments is: a writer of scalars that never ends a training."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from fastreid.utils.events import EventWriter, get_event_storage

from fastreid_star.data.io import reason

logger = logging.getLogger(__name__)

WINDOW = 20  # scalars are the medians of so many steps, as in metrics.json and TensorBoard
PAUSE = 60.0  # seconds between a failure and the next try


class Tracker(EventWriter):
    """Sends each scalar of the event storage once; fast-reid's interface of a writer.

    Scalars that could not be sent are kept, and sent with later ones.

    Args:
        folder: OUTPUT_DIR.
        run_id: the tracker's own id of a run that continues; None: of a new run.
    """

    package = ""  # that is imported, with the name under which pip installs it
    sends_later: str | None = None  # the command that sends what was recorded without a network

    def __init__(self, folder: str, run_id: str | None):
        self.folder, self.run_id = folder, run_id
        self._written = -1
        self._unsent: dict[int, dict[str, float]] = {}
        self._pause_until = 0.0

    def start(self, config: Mapping[str, Any], *, offline: bool) -> None:
        """Start or continue the run, and set `run_id`; `offline`: record it for later."""
        raise NotImplementedError

    def send(self, scalars: Mapping[str, float], iteration: int) -> None:
        """Send the scalars of one iteration."""
        raise NotImplementedError

    def finish(self, *, failed: bool) -> None:
        """End the run."""
        raise NotImplementedError

    def write(self) -> None:
        """Send the scalars that are new since the last call."""
        latest = get_event_storage().latest_with_smoothing_hint(WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self._written:
                self._unsent.setdefault(iteration, {})[name] = float(value)
        self._written = max([self._written, *self._unsent])
        if time.monotonic() >= self._pause_until:
            self._send_all()

    def close(self) -> None:
        """Send what is left, and end the run; after an error or a signal it counts as failed."""
        failed = sys.exc_info()[0] is not None
        self._send_all()
        if self._unsent:
            logger.warning(
                f"TRACKERS {self.package}: the scalars of {len(self._unsent)} iterations were "
                "not sent; metrics.json has them"
            )
        try:
            self.finish(failed=failed)
        except Exception as error:
            logger.warning(f"TRACKERS {self.package}: {why(error)}")

    def _send_all(self) -> None:
        try:
            for iteration in sorted(self._unsent):
                self.send(self._unsent[iteration], iteration)
                del self._unsent[iteration]
        except Exception as error:
            if not self._pause_until:  # once
                logger.warning(
                    f"TRACKERS {self.package}: {why(error)}; training continues, and the "
                    "scalars are sent later"
                )
            self._pause_until = time.monotonic() + PAUSE


def why(error: Exception) -> str:
    """An exception of a tracker as one short line."""
    return f"{type(error).__name__}: {reason(error)}"[:200].rstrip(": .")
