"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)
_TEMPORARY = re.compile(r".+\.\d+\.[0-9a-f]{8}\.tmp")


def write_whole(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], *, earlier: int | None = None
) -> None:
    """Call ``write(file)`` on a temporary file beside `path`, then rename: `path` is never half written.

    Args:
        path: its folder must exist. What was there before stays until the new content is complete and on disk.
        write: fills the file, opened for bytes, to be written and read; whatever it raises is handed on, and nothing
            is left behind.
        earlier: keep so many earlier contents beside it, see :func:`earlier_path`, and no others; None: `path` is
            replaced, and nothing else is looked at.
    """
    path = os.fspath(path)
    temporary, file = _open_temporary(path)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            _shift(path, earlier or 0)
            os.replace(temporary, path)  # before the lock goes with the file
        _sync_folder(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    if earlier is not None:
        for old in _earlier_paths(path):
            if int(old.stem.rpartition("-")[2]) > earlier:
                old.unlink(missing_ok=True)


def earlier_path(path: str | os.PathLike[str], number: int) -> str:
    """Where the content is that `path` had `number` writes ago: ``model_last-1.pth`` beside ``model_last.pth``."""
    stem, ending = os.path.splitext(os.fspath(path))
    return f"{stem}-{number}{ending}" if number else os.fspath(path)


def remove_abandoned(folder: str | os.PathLike[str]) -> list[str]:
    """Remove the temporary files of processes that were killed while they wrote; those of living ones stay.

    A writer holds a lock on its file. Where the file system knows no locks nothing is removed.

    Returns:
        the names of those that were removed.
    """
    removed = []
    for name in sorted(os.listdir(folder)):
        if not _TEMPORARY.fullmatch(name):
            continue
        path = os.path.join(folder, name)
        try:
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.remove(path)  # while it is locked: one who has just made it sees that it is gone
        except OSError as error:
            logger.debug("%s stays: %s", path, error.strerror)
        else:
            removed.append(name)
    return removed


def drop_cut_line(path: str | os.PathLike[str]) -> None:
    """Shorten a file of lines by its last one where that has no end, as a killed process leaves it."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _open_temporary(path: str) -> tuple[str, BinaryIO]:
    """A new file beside `path`, locked. Processes of several containers may have one id, hence the token."""
    while True:
        temporary = f"{path}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        file = open(temporary, "x+b")  # noqa: SIM115 - the caller's
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # remove_abandoned was quicker
            file.close()
            continue
        except OSError as error:
            logger.debug("%s cannot be locked: %s", temporary, error.strerror)
        if os.path.exists(temporary):
            return temporary, file
        file.close()


def _shift(path: str, earlier: int) -> None:
    """Move what is there one place back. The new content is on disk by now: at every moment something whole is."""
    for number in range(earlier, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(earlier_path(path, number - 1), earlier_path(path, number))


def _earlier_paths(path: str) -> list[Path]:
    own = Path(path)
    pattern = re.compile(re.escape(own.stem) + r"-\d+" + re.escape(own.suffix))
    return [other for other in own.parent.iterdir() if pattern.fullmatch(other.name)]


def _sync_folder(path: str) -> None:
    """Have the rename itself on disk, which a power cut could take back; some file systems cannot do that."""
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
