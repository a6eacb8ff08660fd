"""Reading frames, and what happens when one cannot be read."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastreid_star.data.contents import read_bytes, reason
from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet

logger = logging.getLogger(__name__)

# Told by what is in the file, not by its name. Pillow knows more kinds, some of which start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# A frame is a crop of a person. A few bytes can say that they are an image of gigabytes.
MOST_PIXELS = 1 << 26
MOST_BYTES = 1 << 29
# A network disk may be away for a moment: seconds to wait before it is asked again.
PAUSES = (1.0, 5.0, 20.0)

_NO_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENXIO,
    errno.EFBIG,
}
_ORIENTATION = 0x0112  # the EXIF tag
_AT_ITS_LIMIT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}

_warned: set[str] = set()  # files this process has warned about


class BrokenImage(OSError):
    """A file that is missing, empty, truncated or no image."""


class LostImage(BrokenImage):
    """A file that the disk did not give (EIO, ESTALE), or that may not be read: the image in it may be fine."""


def read_frame(path: str | os.PathLike) -> np.ndarray:
    """One image as uint8 [H,W,3], RGB, read-only.

    Args:
        path: JPEG, PNG, WebP, BMP, TIFF, GIF or PPM, whatever its name; at most 2^26 pixels. See :func:`as_rgb`.

    Raises:
        BrokenImage: the file cannot be read as an image; :class:`LostImage`: that may be no fault of the image's.
    """
    path = os.fspath(path)
    try:
        content = read_bytes(path, MOST_BYTES)
    except OSError as error:
        if error.errno in _AT_ITS_LIMIT:
            raise  # the machine is: the image may be fine
        kind = BrokenImage if error.errno in _NO_FILE else LostImage
        raise kind(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in its name
        raise BrokenImage(f"{path}: {error}") from error
    if not content:
        raise BrokenImage(f"{path}: the file is empty")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,} are not read"
                )
            return as_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(
            f"{path}: it is no image of a known kind ({', '.join(FORMATS)})"
        ) from error
    except Exception as error:  # Pillow's decoders raise about any kind on a damaged file
        raise BrokenImage(f"{path}: {reason(error)}") from error


def as_rgb(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 [H,W,3], RGB, read-only.

    The EXIF rotation is applied, here and so in training, extraction and the predictor alike; gray, palette, CMYK and
    16-bit images become RGB, of an animation the first frame counts, transparency is dropped.

    Raises:
        ValueError: its pixels are floats, whose black and white nobody knows; and whatever Pillow raises on a damaged
            file that is decoded now.
    """
    image.load()
    if image.getexif().get(_ORIENTATION, 1) != 1:  # without the question it would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats: save 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; convert() would cut off everything above 255
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_clip(
    tracklet: Tracklet, indices: Sequence[int]
) -> tuple[list[np.ndarray], list[int], int]:
    """Some frames of a tracklet, each broken one replaced by its nearest good neighbor.

    Nearest in frames, the earlier one first where two are as near. A file is tried once a clip, and warned about
    once a process. Where no frame can be read and the disk says so, it is given half a minute to come back.

    Args:
        tracklet: where the frames are from.
        indices: T frame positions; repeated ones are read once.

    Returns:
        T images, uint8 [H,W,3] of sizes that may differ; the T positions they really come from; how many of the T
        were replaced.

    Raises:
        UserError: no frame of the tracklet can be read.
    """
    pauses = iter(PAUSES)
    while True:
        read: dict[int, Any] = {}  # a frame, or why there is none
        used = [_nearest_good(tracklet, int(index), read) for index in indices]
        good = [index for index in used if index is not None]
        if len(good) == len(used):
            replaced = sum(int(index) != other for index, other in zip(indices, good, strict=True))
            return [read[index] for index in good], good, replaced
        lost = next((error for error in read.values() if isinstance(error, LostImage)), None)
        pause = None if lost is None else next(pauses, None)
        if pause is None:
            raise UserError(_nothing_good(tracklet, lost or read[0]))
        logger.warning("%s, like all frames of its tracklet: tried again in %g s", lost, pause)
        time.sleep(pause)


def _nothing_good(tracklet: Tracklet, error: BrokenImage) -> str:
    what = (
        "check the disk and the files' rights"
        if isinstance(error, LostImage)
        else "restore the images"
    )
    return (
        f"none of the {len(tracklet)} frames of the tracklet from {tracklet.path(0)} to "
        f"{os.path.basename(tracklet.frames[-1])} can be read ({error}): {what}, or take the tracklet out of the lists"
    )


def _nearest_good(
    tracklet: Tracklet, index: int, read: dict[int, np.ndarray | BrokenImage]
) -> int | None:
    for candidate in _outward(index, len(tracklet)):
        if candidate not in read:
            read[candidate] = _read_or_warn(tracklet.path(candidate))
        if not isinstance(read[candidate], BrokenImage):
            return candidate
    return None


def _outward(start: int, size: int) -> Iterator[int]:
    """start, start - 1, start + 1, start - 2, ... as far as they lie in range(size)."""
    yield start
    for distance in range(1, size):
        if start - distance >= 0:
            yield start - distance
        if start + distance < size:
            yield start + distance


def _read_or_warn(path: str) -> np.ndarray | BrokenImage:
    try:
        return read_frame(path)
    except BrokenImage as error:
        if path not in _warned:
            _warned.add(path)
            logger.warning("Broken image, its nearest good neighbor stands in: %s", error)
        return error
