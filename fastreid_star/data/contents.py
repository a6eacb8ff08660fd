"""What is in a file that somebody else has made: read whole, as lines or as JSON, or refused in one line.

Nothing here waits for ever or fills the memory: a pipe is no file, and a file has a size beyond which it is not read.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import reprlib
import stat
from typing import Any

from fastreid_star.errors import UserError

# Lists of frames and tracklets: HITSZ-VCM's largest has 5 MB, a line of it 20 characters.
MOST_TEXT = 64 << 20
LONGEST_LINE = 1000
# BUPTCampus names its 1.7 million frames in one JSON file of some 80 MB.
MOST_JSON = 512 << 20

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PASSES = bytes({*range(256)} - {*range(32), 127} | {*b"\t\r\n"})
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NUMBER = re.compile(r"[0-9]{1,9}")

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = LONGEST_SHOWN = 80


def read_bytes(path: str | os.PathLike, most: int) -> bytes:
    """All of a file.

    Args:
        path: of a regular file, or of a link to one.
        most: so many bytes are read at the most.

    Raises:
        OSError: as for ``open``; ENXIO for what is no file (a pipe would wait for ever), EFBIG for a larger one.
        ValueError: the path holds a NUL byte.
    """
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ENXIO, "it is a pipe or a device, not a file", os.fspath(path))
        if found.st_size > most:
            raise OSError(
                errno.EFBIG,
                f"it has {found.st_size:,} bytes, more than {most:,} are not read",
                os.fspath(path),
            )
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_lines(path: str | os.PathLike, *, longest: int = LONGEST_LINE) -> list[str]:
    """A text file's lines without BOM, line ends (LF, CRLF, CR), blanks at their ends and empty lines at the end.

    Args:
        path: UTF-8, of which ASCII is a part; at most 64 MB.
        longest: characters a line may have.

    Raises:
        UserError: it cannot be read, is no text, or has a longer line; the message names the line.
    """
    data = _all_of(path, MOST_TEXT)
    if data.translate(None, _PASSES):
        place = next(_CONTROL.finditer(data)).start()
        raise UserError(
            f"{path} line {_line_of(data, place)} holds the byte 0x{data[place]:02x}, which no text has: the file is "
            "damaged, copy it again"
        )
    text = _decoded(path, data).replace("\r\n", "\n").replace("\r", "\n")
    lines = [line.strip(" \t") for line in text.rstrip(" \t\n").split("\n")]
    if max(map(len, lines)) > longest:
        number = next(number for number, line in enumerate(lines, start=1) if len(line) > longest)
        raise UserError(
            f"{path} line {number} has {len(lines[number - 1]):,} characters, more than {longest:,}: it is no list of "
            "the dataset's, or damaged"
        )
    return lines if lines != [""] else []


def read_json(path: str | os.PathLike, *, most: int = MOST_JSON) -> Any:
    """What a JSON file says.

    Args:
        path: UTF-8, with a BOM or without.
        most: bytes it may have.

    Raises:
        UserError: it cannot be read, is no JSON, or has an object with the same name twice, of which JSON keeps one.
    """
    text = _decoded(path, _all_of(path, most))
    try:
        return json.loads(text, object_pairs_hook=_each_name_once)
    except RecursionError:
        raise UserError(f"{path} cannot be read: it is nested too deep") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


def whole_number(text: str) -> int | None:
    """The number that one to nine ASCII digits say; None: a sign, other digits, more than any such number has."""
    return int(text) if _NUMBER.fullmatch(text) else None


def shown(value: Any) -> str:
    """A value as a message shows it: its ``repr``, cut to a line's length however large it is."""
    text = _shortened.repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def reason(error: Exception) -> str:
    """What a library says of a file, in one line that is not as long as the file makes it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 3 * LONGEST_SHOWN else f"{text[: 3 * LONGEST_SHOWN]}..."


def _all_of(path: str | os.PathLike, most: int) -> bytes:
    try:
        data = read_bytes(path, most)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if data.startswith(_UTF_16):
        raise UserError(f"{path} cannot be read: it is UTF-16 or UTF-32 text, save it as UTF-8")
    return data


def _decoded(path: str | os.PathLike, data: bytes) -> str:
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        place = error.start + len(data) - len(error.object)
        raise UserError(
            f"{path} cannot be read: line {_line_of(data, place)} holds the byte 0x{data[place]:02x}, which is no "
            "UTF-8 text"
        ) from None


def _line_of(data: bytes, place: int) -> int:
    before = data[:place].replace(b"\r\n", b"\n")
    return 1 + before.count(b"\n") + before.count(b"\r")


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} is there twice")
    return names
