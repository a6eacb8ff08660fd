"""metrics.json and TensorBoard, which a run can do without: a disk that fails them does not end it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable

from fastreid.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

logger = logging.getLogger(__name__)


class Dispensable(EventWriter):
    """A writer that is left, with one warning, where it cannot write.

    Args:
        name: of what it writes, for the warning.
        make: opens it.
    """

    def __init__(self, name: str, make: Callable[[], EventWriter]):
        self._name = name
        self._writer: EventWriter | None = None
        with self._or_leave():
            self._writer = make()

    def write(self) -> None:
        """Write, unless it is left."""
        with self._or_leave():
            if self._writer is not None:
                self._writer.write()

    def close(self) -> None:
        """Write what is pending and close."""
        with self._or_leave():
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _or_leave(self):
        try:
            yield
        except OSError as error:
            logger.warning(
                f"{self._name} cannot be written any more ({error.strerror or error}): the run goes on without it; "
                "make room or look after the disk, and the next start writes it again"
            )
            failed, self._writer = self._writer, None
            with contextlib.suppress(OSError):
                if failed is not None:
                    failed.close()


def open_writers(folder: str, max_iter: int) -> list[EventWriter]:
    """Log lines, metrics.json and TensorBoard, the latter two as long as `folder` takes them."""
    if not isinstance(threading.excepthook, _WithoutTensorboard):
        threading.excepthook = _WithoutTensorboard(threading.excepthook)
    return [
        CommonMetricPrinter(max_iter),
        Dispensable("metrics.json", lambda: JSONWriter(os.path.join(folder, "metrics.json"))),
        Dispensable("TensorBoard's events", lambda: TensorboardXWriter(folder)),
    ]


class _WithoutTensorboard:
    """A hook for the errors of threads: not TensorBoard's, which are raised again at the next write and told there."""

    def __init__(self, otherwise: Callable[[threading.ExceptHookArgs], object]):
        self._otherwise = otherwise

    def __call__(self, args: threading.ExceptHookArgs, /) -> None:
        if not (
            type(args.thread).__module__.startswith("tensorboard.")
            and isinstance(args.exc_value, OSError)
        ):
            self._otherwise(args)
