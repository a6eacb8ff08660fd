"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(file)`` on a temporary file beside `path`, then rename: `path` is never half written.

    Args:
        path: its folder must exist. What was there before stays until the new content is complete and on disk.
        write: fills the file, opened for bytes; whatever it raises is handed on, and nothing is left behind.
    """
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
