"""Reading images, videos and list files, with one clear message if that fails."""

from __future__ import annotations

import codecs
import errno
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)

# Recognized by content, not by name. Pillow knows more formats, some of which start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Seconds to wait before a network disk that fails is read again.
PAUSES = (1.0, 5.0, 20.0)

_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_MACHINE_LIMIT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_ORIENTATION = 0x0112  # the EXIF tag
_MAX_BROKEN = 100  # after this many undecodable frames in a row a video has ended


class BrokenImage(OSError):
    """The file is missing, empty, truncated or not an image."""


class LostImage(BrokenImage):
    """The disk failed (EIO, ESTALE) or access was denied; the image itself may be fine."""


def read_frame(path: str | os.PathLike) -> np.ndarray:
    """Read one image as uint8 [H,W,3], RGB, read-only; see :func:`as_rgb`.

    Args:
        path: JPEG, PNG, WebP, BMP, TIFF, GIF or PPM, whatever the file's name.

    Raises:
        BrokenImage: the file is not a readable image; :class:`LostImage`: the disk failed.
    """
    path = os.fspath(path)
    try:
        content = read_bytes(path)
    except OSError as error:
        if error.errno in _MACHINE_LIMIT:
            raise
        kind = BrokenImage if error.errno in _NO_FILE else LostImage
        raise kind(f"{path}: {error.strerror or error}") from error
    if not content:
        raise BrokenImage(f"{path}: the file is empty")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return as_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(
            f"{path}: not an image of a known format ({', '.join(FORMATS)})"
        ) from error
    except Exception as error:  # Pillow's decoders raise many types on a damaged file
        raise BrokenImage(f"{path}: {reason(error)}") from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file."""
    with open(path, "rb") as file:
        return file.read()


def as_rgb(image: Image.Image) -> np.ndarray:
    """Convert a PIL image to uint8 [H,W,3], RGB, read-only.

    Applies the EXIF rotation. Gray, palette and CMYK images become RGB, an animation gives its first
    frame, and transparency is dropped. Gray values of 16 bits are stretched, see :func:`stretched`.

    Raises:
        ValueError: the pixels are floats, whose range is unknown. A damaged file raises any type.
    """
    orientation = image.getexif().get(_ORIENTATION, 1)  # Pillow < 10.4: TIFF has none after load()
    image.load()
    if orientation != 1:  # exif_transpose alone would copy every image
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats: save 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; convert() would clip everything above 255
        image = Image.fromarray(stretched(np.asarray(image)))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def stretched(counts: np.ndarray) -> np.ndarray:
    """Scale gray values of 16 bits to uint8: the 1st percentile becomes 0, the 99th becomes 255.

    An infrared camera's raw counts fill a small part of the 16 bits, such as 7250 to 7640. Divided
    by 257 they would leave two gray levels.
    """
    low, high = np.percentile(counts, (1, 99))
    shares = (counts - low) / max(high - low, 1.0)
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def read_video(
    path: str | os.PathLike, choose: Callable[[int], Sequence[int]] = range
) -> tuple[list[np.ndarray], list[int], int]:
    """Read chosen frames of a video; a broken frame is replaced by its nearest good neighbor.

    Of two neighbors at the same distance the earlier one is taken. Memory holds only the chosen
    frames.

    Args:
        path: a file that OpenCV's FFmpeg decodes.
        choose: maps the number of frames n to the wanted positions; the default takes all.

    Returns:
        the chosen frames, uint8 [H,W,3], RGB, rotated upright if the container says so; the
        positions that they come from; n.

    Raises:
        UserError: the file does not exist or holds no decodable frame.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"video {path} does not exist")
    length = _container_length(path)
    # Usually the container's length is right and no frame is broken: then one pass is enough.
    frames, n, broken = _decode(path, choose(length) if length else (), length)
    if not n:
        raise UserError(f"video {path} has no decodable frame: it is damaged or not a video")
    if n - len(broken) < max(n, length):
        logger.warning(
            "Damaged video, %d of its %d frames can be decoded: %s",
            *(n - len(broken), max(n, length), path),
        )
    good = np.array([index for index in range(n) if index not in broken])
    # argmin takes the first of two equal distances: the earlier frame
    used = [int(good[np.abs(good - index).argmin()]) for index in choose(n)]
    if not frames.keys() >= set(used):
        frames, _, _ = _decode(path, set(used), length)
    return [frames[index] for index in used], used, n


def _container_length(path: str) -> int:
    """The number of frames that the container states, which may be wrong; 0 if it states none."""
    capture = cv2.VideoCapture(path)
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def _decode(
    path: str, wanted: Collection[int], length: int
) -> tuple[dict[int, np.ndarray], int, set[int]]:
    """The wanted frames that can be decoded, the number of frames, and the broken positions."""
    frames: dict[int, np.ndarray] = {}
    broken: set[int] = set()
    count, failures = 0, 0
    capture = cv2.VideoCapture(path)
    try:
        while failures <= _MAX_BROKEN:
            good, frame = capture.read()
            if not good:
                failures += 1
                if count + failures >= length:  # the end of the file, not a broken frame
                    break
                continue
            broken.update(range(count, count + failures))
            count, failures = count + failures, 0
            if count in wanted:
                frames[count] = np.ascontiguousarray(frame[..., ::-1])  # OpenCV's order is BGR
            count += 1
    finally:
        capture.release()
    return frames, count, broken


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """Positions of `count` frames out of n: the first of each equal share; all if n is smaller."""
    return np.arange(n) if n <= count else np.arange(count) * n // count


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a UTF-8 text file, without BOM, outer blanks and empty lines at the end.

    Raises:
        UserError: the file cannot be read or is not text.
    """
    text = _read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        number = 1 + text[: text.index("\0")].count("\n")
        raise UserError(f"{path} line {number} is not text: the file is damaged, copy it again")
    lines = [line.strip(" \t") for line in text.rstrip(" \t\n").split("\n")]
    return lines if lines != [""] else []


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file in UTF-8.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(_read_text(path))
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


def _read_text(path: str | os.PathLike) -> str:
    try:
        data = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16 text: save it as UTF-8")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        number = 1 + error.object[: error.start].count(b"\n")
        raise UserError(f"{path} line {number} is not UTF-8 text: save it as UTF-8") from None


def whole_number(text: str) -> int | None:
    """The number in a text of one to nine ASCII digits; None for any other text."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def shorten(value: Any) -> str:
    """The ``repr`` of a value, cut to 80 characters, for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason(error: Exception) -> str:
    """The message of a library's exception as one line of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:240]}..."


def explain_missing(path: str) -> str:
    """Why a file of a dataset is not found, with the names that its folder holds instead."""
    folder, name = os.path.split(path)
    while folder and not os.path.isdir(folder):
        above, name = os.path.split(folder)
        if above == folder:
            break
        folder = above
    missing = os.path.join(folder, name)
    try:
        names = sorted(os.listdir(folder or "."))
    except OSError as error:
        return f"{missing} cannot be found: {error.strerror}"
    if not names:
        return f"{missing} does not exist, {folder} is empty"
    others = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{missing} does not exist, {folder or '.'} holds {others}"


def progress_bar(
    title: str, total: int | None, *, shown: bool = True, done: int = 0, unit: str = " frames"
) -> tqdm:
    """A progress bar on stderr; in a log file it prints every 30 seconds.

    Args:
        title: name of the work.
        total: number of units; None: unknown.
        shown: False: print nothing.
        done: units finished in an earlier run; they do not count in the speed.
        unit: name of what is counted.
    """
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        initial=done,
        mininterval=interval,
        maxinterval=max(10, interval),
        smoothing=0.05,
        disable=not shown,
        dynamic_ncols=True,
    )
