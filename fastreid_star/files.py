"""Files that are written whole or not at all, and locks on folders."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from typing import BinaryIO

from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)
_TEMPORARY = re.compile(r".+\.\d+\.[0-9a-f]{8}\.tmp")


def write_whole(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], *, earlier: int = 0
) -> None:
    """Call ``write(file)`` on a temporary file beside `path`, then rename it.

    `path` is never half written: its old content stays until the new one is complete and on disk.

    Args:
        path: its folder must exist.
        write: fills the file, which is opened for reading and writing bytes. If it raises, the
            temporary file is removed.
        earlier: how many earlier versions to keep beside it, see :func:`earlier_path`.
    """
    path = os.fspath(path)
    temporary, file = _open_temporary(path)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            for number in range(earlier, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(earlier_path(path, number - 1), earlier_path(path, number))
            os.replace(temporary, path)  # before the file's lock is released
        _sync_folder(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def prepare_output(path: str | os.PathLike[str], ending: str = "") -> None:
    """Create the folder of a file that a user has named. Call it before the work for the file.

    Raises:
        UserError: the path has another ending or is a folder, or its folder cannot be created.
    """
    if not os.fspath(path).endswith(ending):
        raise UserError(f"{path} does not end in {ending}")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name a file to write")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def write_output(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """:func:`write_whole` for a file that a user has named; its folder is created.

    Raises:
        UserError: the file cannot be written.
    """
    prepare_output(path)
    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def earlier_path(path: str | os.PathLike[str], number: int) -> str:
    """The version `number` writes ago: ``model_last-1.pth`` beside ``model_last.pth``."""
    stem, ending = os.path.splitext(os.fspath(path))
    return f"{stem}-{number}{ending}" if number else os.fspath(path)


def remove_abandoned(folder: str | os.PathLike[str]) -> list[str]:
    """Remove the temporary files of killed processes, and return their names.

    A process that writes holds a lock on its temporary file. Nothing is removed on a file system
    without locks.
    """
    removed = []
    for name in sorted(os.listdir(folder)):
        if not _TEMPORARY.fullmatch(name):
            continue
        path = os.path.join(folder, name)
        try:
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.remove(path)  # while it is locked, so that a writer notices
        except OSError as error:
            logger.debug("%s is kept: %s", path, error.strerror)
        else:
            removed.append(name)
    return removed


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """A context in which no other process can lock this folder.

    The lock belongs to the process: it ends with the process, however that ends. On a file system
    without locks the context does nothing.

    Raises:
        UserError: another process holds the lock.
    """
    with open(os.path.join(folder, ".lock"), "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"another run is writing to {folder}: wait until it ends, or choose another "
                    "OUTPUT_DIR"
                ) from error
            logger.debug("%s cannot be locked: %s", folder, error.strerror)
        yield


def drop_cut_line(path: str | os.PathLike[str]) -> None:
    """Remove the last line of a text file if it has no end, as a killed process leaves it."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _open_temporary(path: str) -> tuple[str, BinaryIO]:
    """A new, locked file beside `path`. Two containers may use one process id, hence the token."""
    while True:
        temporary = f"{path}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        file = open(temporary, "x+b")  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # remove_abandoned was faster
            file.close()
            continue
        except OSError as error:
            logger.debug("%s cannot be locked: %s", temporary, error.strerror)
        if os.path.exists(temporary):
            return temporary, file
        file.close()


def _sync_folder(path: str) -> None:
    """Write the rename to the disk too; some file systems do not support it."""
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
