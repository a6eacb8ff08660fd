"""Reading images, videos and list files, with one clear message if that fails."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
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

MACHINE_LIMIT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_ORIENTATION = 0x0112  # the EXIF tag
_GRAY_16 = int.from_bytes(b"Y1\0\x10", "little")  # FFmpeg's code for gray16le
_MAX_BROKEN = 100  # after this many undecodable frames in a row a video has ended


class BrokenImage(OSError):
    """The file is missing, empty, truncated or not an image."""


class LostImage(BrokenImage):
    """The disk failed (EIO, ESTALE) or access was denied; the image itself may be fine."""


def read_frame(path: str | os.PathLike) -> np.ndarray:
    """:func:`read_image` as uint8 [H,W,3], RGB, with its own gray levels if it has 16 bits."""
    return to_rgb([read_image(path)])[0]


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read one image, see :func:`as_array`.

    Args:
        path: JPEG, PNG, WebP, BMP, TIFF, GIF or PPM, whatever the file's name.

    Raises:
        BrokenImage: the file is not a readable image; :class:`LostImage`: the disk failed.
        OSError: too many open files, or no memory.
    """
    path = os.fspath(path)
    try:
        content = read_bytes(path)
    except OSError as error:
        if error.errno in MACHINE_LIMIT:
            raise
        kind = BrokenImage if error.errno in _NO_FILE else LostImage
        raise kind(f"{path}: {error.strerror or error}") from error
    if not content:
        raise BrokenImage(f"{path}: the file is empty")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return as_array(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(f"{path}: not an image ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise many types on a damaged file
        raise BrokenImage(f"{path}: {reason(error)}") from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file."""
    with open(path, "rb") as file:
        return file.read()


def as_array(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 [H,W,3], RGB, or of gray values of 16 bits these counts, [H,W].

    Applies the EXIF rotation. Gray, palette and CMYK images become RGB, an animation gives its
    first frame, and transparency is dropped. The array of an RGB image is read-only.

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
        return np.asarray(image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def to_rgb(frames: Sequence[np.ndarray], levels: Sequence[float] = ()) -> list[np.ndarray]:
    """The frames of a clip as uint8 [H,W,3]; gray values of 16 bits are scaled together.

    An infrared camera's raw counts fill a small part of the 16 bits, such as 7250 to 7640. Divided
    by 257 they would leave two gray levels.

    Args:
        frames: uint8 [H,W,3], or counts [H,W].
        levels: the counts that become 0 and 255; empty: the 1st and the 99th percentile of all
            counts of these frames.
    """
    counts = [frame.ravel() for frame in frames if frame.ndim == 2]
    if not counts:
        return list(frames)
    low, high = levels or np.percentile(np.concatenate(counts), (1, 99))
    return [_scaled(frame, low, high) if frame.ndim == 2 else frame for frame in frames]


def _scaled(counts: np.ndarray, low: float, high: float) -> np.ndarray:
    shares = (counts - float(low)) / max(high - low, 1.0)
    gray = np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def read_video(
    path: str | os.PathLike, choose: Callable[[int], Sequence[int]] = range
) -> tuple[list[np.ndarray], int]:
    """Read chosen frames of a video. Frames that cannot be decoded do not count.

    The video is decoded twice: once to count its frames, once to take the chosen ones. So memory
    holds only these.

    Args:
        path: a file that OpenCV's FFmpeg decodes.
        choose: maps the number of frames n to the wanted positions; the default takes all.

    Returns:
        the chosen frames, uint8 [H,W,3], RGB, or counts of 16 bits [H,W], rotated upright if the
        container says so; n.

    Raises:
        UserError: the file does not exist or holds no decodable frame.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"video {path} does not exist")
    n = sum(1 for _ in decode_video(path))
    if not n:
        raise UserError(f"video {path} has no decodable frame: it is damaged or not a video")
    stated = int(cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT))
    if n < stated:
        logger.warning("Damaged video, %d of its %d frames can be decoded: %s", n, stated, path)
    wanted = list(choose(n))
    chosen = set(wanted)
    frames = {index: frame for index, frame in enumerate(decode_video(path)) if index in chosen}
    return [swap_colors(frames[index]) for index in wanted], n


def decode_video(path: str) -> Iterator[np.ndarray]:
    """The frames of a video that can be decoded: uint8 [H,W,3] in OpenCV's color order, BGR, or
    counts [H,W] if the video has gray values of 16 bits."""
    capture = cv2.VideoCapture(path)
    if capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT) == _GRAY_16:
        capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)  # the conversion keeps the upper 8 bits only
    failures = 0
    try:
        while failures <= _MAX_BROKEN:
            good, frame = capture.read()
            failures = 0 if good else failures + 1
            if good:
                yield frame
    finally:
        capture.release()


def swap_colors(frame: np.ndarray) -> np.ndarray:
    """BGR as RGB, and RGB as BGR; counts of 16 bits [H,W] stay as they are."""
    return frame if frame.ndim == 2 else np.ascontiguousarray(frame[..., ::-1])


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a UTF-8 text file, without BOM, outer blanks and empty lines at the end.

    Raises:
        UserError: the file cannot be read or is not text.
    """
    text = read_text(path).rstrip()
    return [line.strip() for line in text.split("\n")] if text else []


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file in UTF-8.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_text(path: str | os.PathLike) -> str:
    """The content of a text file in UTF-8, without BOM.

    Raises:
        UserError: the file cannot be read or is not text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8, or copy it again") from error


def reason(error: Exception) -> str:
    """The message of a library's exception as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def explain_missing(path: str) -> str:
    """Why a file of a dataset is not found, with the names that its folder holds instead."""
    folder, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"{folder}/{name} cannot be found: {error.strerror}"
    others = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{folder}/{name} does not exist, {folder} holds {others or 'nothing'}"


def progress_bar(
    title: str, total: int | None, *, shown: bool = True, done: int = 0, unit: str = " frames"
) -> tqdm:
    """A progress bar on stderr; in a log file it prints every 30 seconds.

    Args:
        title: name of the work.
        total: number of units; None: not known.
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
