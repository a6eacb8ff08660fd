"""Files that are written whole or not at all, and locks on folders."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fastreid_star.errors import UserError

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows has msvcrt
    fcntl = importlib.import_module("fcntl")

logger = logging.getLogger(__name__)


def write_whole(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], *, earlier: int = 0
) -> None:
    """Call ``write(file)`` on ``PATH.tmp``, then rename it.

    `path` is never half written: its old content stays until the new one is complete and on disk.
    If the process is killed, ``PATH.tmp`` stays until the next write replaces it.

    Args:
        path: its folder must exist. Only one process may write to it at a time.
        write: fills the file, which is opened for reading and writing bytes. If it raises, the
            temporary file is removed.
        earlier: how many earlier versions to keep beside it, see :func:`earlier_path`.
    """
    temporary = f"{os.fspath(path)}.tmp"
    try:
        with open(temporary, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        for number in range(earlier, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(earlier_path(path, number - 1), earlier_path(path, number))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot write a folder to the disk
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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


def insert(page: str | os.PathLike[str], mark: str, text: str) -> str:
    """The content of a page with a new text between its two marks.

    Args:
        page: a Markdown file with the lines ``<!-- MARK: begin -->`` and ``<!-- MARK: end -->``.
        mark: MARK.
        text: replaces what is between them; its lines end as those of the page.

    Raises:
        UserError: the page cannot be read, or does not have each mark once and in order.
    """
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    try:
        old = Path(page).read_bytes().decode("utf-8")  # with its own ends of lines
    except OSError as error:
        raise UserError(f"{page} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{page} is not UTF-8 text: save it as UTF-8") from error
    found = re.fullmatch(f"(.*){begin}.*{end}(.*)", old, re.DOTALL)
    if not found or old.count(begin) > 1 or old.count(end) > 1:
        raise UserError(f"{page} has no place for the table: add the lines {begin} and {end} once")
    end_of_line = "\r\n" if "\r\n" in old else "\n"
    new = f"{begin}\n\n{text}\n\n{end}".replace("\n", end_of_line)
    return f"{found[1]}{new}{found[2]}"


def earlier_path(path: str | os.PathLike[str], number: int) -> str:
    """The version `number` writes ago: ``model_last-1.pth`` beside ``model_last.pth``."""
    stem, ending = os.path.splitext(os.fspath(path))
    return f"{stem}-{number}{ending}" if number else os.fspath(path)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """A context in which no other process can lock this folder.

    The lock belongs to the process: it ends with the process, however that ends. On a file system
    without locks the context does nothing.

    Raises:
        UserError: another process holds the lock.
    """
    with open(os.path.join(folder, ".lock"), "ab") as file, contextlib.ExitStack() as stack:
        try:
            if fcntl is None:
                stack.enter_context(_locked_on_windows(file))
            else:  # forked loading processes do not hold a lock of this kind
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"another run is writing to {folder}: wait until it ends, or choose another "
                    "OUTPUT_DIR"
                ) from error
            logger.debug("%s cannot be locked: %s", folder, error.strerror)
        yield


@contextlib.contextmanager
def waiting_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """A context that begins when no other process or thread is in it for this file.

    On a file system without locks the context does nothing.
    """
    with open(path, "ab") as file, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            if fcntl is None:
                stack.enter_context(_locked_on_windows(file, wait=True))
            else:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _locked_on_windows(file: BinaryIO, *, wait: bool = False) -> Iterator[None]:
    """A context that holds the lock of an open, empty file.

    Raises:
        OSError: it is locked, with errno EACCES, and `wait` is False; or it cannot be locked.
    """
    msvcrt: Any = importlib.import_module("msvcrt")
    while True:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            break
        except OSError as error:
            if not wait or error.errno != errno.EACCES:
                raise
        time.sleep(0.1)
    try:
        yield
    finally:
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)


def drop_cut_line(path: str | os.PathLike[str]) -> None:
    """Remove the last line of a text file if it has no end, as a killed process leaves it."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
