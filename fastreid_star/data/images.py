"""Reading frames, and what happens when one cannot be read."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

from fastreid_star.errors import UserError
from fastreid_star.structures import Tracklet

logger = logging.getLogger(__name__)

_warned: set[str] = set()  # files this process has warned about


class BrokenImage(OSError):
    """A file that is missing, empty, truncated or no image."""


def read_frame(path: str | os.PathLike) -> np.ndarray:
    """One image as uint8 [H,W,3], RGB, read-only.

    The EXIF rotation is applied; grey, palette, CMYK and 16-bit images become RGB, of an animation the first frame
    counts, transparency is dropped.

    Raises:
        BrokenImage: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits; convert() would cut off everything above 255
                image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise about any kind on a damaged file
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # the machine is at its limit: the image may be fine
        raise BrokenImage(f"{os.fspath(path)}: {error}") from error


def read_clip(tracklet: Tracklet, indices: Sequence[int]) -> tuple[list[np.ndarray], list[int], int]:
    """Some frames of a tracklet, each broken one replaced by its nearest good neighbour.

    Nearest in frames, the earlier one first where two are as near. A file is tried once a clip, and warned about
    once a process.

    Args:
        tracklet: where the frames are from.
        indices: T frame positions; repeated ones are read once.

    Returns:
        T images, uint8 [H,W,3] of sizes that may differ; the T positions they really come from; how many of the T
        were replaced.

    Raises:
        UserError: no frame of the tracklet can be read.
    """
    read: dict[int, np.ndarray | None] = {}
    used = [_nearest_good(tracklet, int(index), read) for index in indices]
    replaced = sum(int(index) != good for index, good in zip(indices, used, strict=True))
    return [read[index] for index in used], used, replaced


def _nearest_good(tracklet: Tracklet, index: int, read: dict[int, np.ndarray | None]) -> int:
    for candidate in _outward(index, len(tracklet)):
        if candidate not in read:
            read[candidate] = _read_or_warn(tracklet.path(candidate))
        if read[candidate] is not None:
            return candidate
    raise UserError(
        f"none of the {len(tracklet)} frames of a tracklet in {os.path.dirname(tracklet.path(0))} can be read: "
        "restore the images, or take the tracklet out of the info files"
    )


def _outward(start: int, size: int) -> Iterator[int]:
    """start, start - 1, start + 1, start - 2, ... as far as they lie in range(size)."""
    yield start
    for distance in range(1, size):
        if start - distance >= 0:
            yield start - distance
        if start + distance < size:
            yield start + distance


def _read_or_warn(path: str) -> np.ndarray | None:
    try:
        return read_frame(path)
    except BrokenImage as error:
        if path not in _warned:
            _warned.add(path)
            logger.warning("Broken image, its nearest good neighbour stands in: %s", error)
        return None
