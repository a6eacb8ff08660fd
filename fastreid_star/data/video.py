"""Frames of a video file, as RGB, decoded by OpenCV."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence

import cv2
import numpy as np

from fastreid_star.errors import UserError

logger = logging.getLogger(__name__)

# So many frames in a row that cannot be decoded are the end, whatever the container says of its length.
_MOST_BROKEN = 100


def read_video(
    path: str | os.PathLike, choose: Callable[[int], Sequence[int]] = range
) -> tuple[list[np.ndarray], list[int], int]:
    """Some frames of a video, or all, each broken one replaced by its nearest good neighbor.

    Nearest in frames, the earlier one first where two are as near. Only the chosen frames are kept, so a long video
    takes no more memory than a short one. Frames that OpenCV passes over in silence do not count; where the container
    says how many there should be, a warning tells.

    Args:
        path: any file that OpenCV's FFmpeg decodes.
        choose: n, the number of frames, to the positions wanted, each below n; the default: all of them.

    Returns:
        the chosen frames, uint8 [H,W,3], RGB, turned upright where the container says so; the positions they really
        come from; n.

    Raises:
        UserError: there is no such file, or it holds no frame that can be decoded.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"video {path} does not exist")
    said = _length_said(path)
    # The container's length is often right and the frames good: then the file is decoded once.
    frames, n, broken = _decode(path, choose(said) if said else (), said)
    if not n:
        raise UserError(
            f"video {path} holds no frame that can be decoded: it is damaged or no video"
        )
    good = n - len(broken)
    if good < max(n, said):
        logger.warning(
            "Damaged video, %d of its %d frames can be decoded: %s", good, max(n, said), path
        )
    used = [_nearest_good(int(index), n, broken) for index in choose(n)]
    if not frames.keys() >= set(used):
        frames, *_ = _decode(path, set(used), said)
        if not frames.keys() >= set(used):
            raise UserError(
                f"video {path} changed while it was read: try again when it is complete"
            )
    return [frames[index] for index in used], used, n


def spread(n: int, count: int) -> np.ndarray:
    """Positions of `count` frames, evenly spread over n: the first of each equal share; all n where there are fewer."""
    if n <= count:
        return np.arange(n)
    return np.arange(count) * n // count


def _length_said(path: str) -> int:
    """How many frames the container says there are; 0 where it does not."""
    capture = cv2.VideoCapture(path)
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def _decode(
    path: str, wanted: Collection[int], said: int
) -> tuple[dict[int, np.ndarray], int, set[int]]:
    """The good frames of those wanted, how many frames there are, and which of them are broken."""
    frames: dict[int, np.ndarray] = {}
    broken: set[int] = set()
    count, failures = 0, 0
    capture = cv2.VideoCapture(path)
    try:
        while failures <= _MOST_BROKEN:
            good, frame = capture.read()
            if not good:
                failures += 1
                if count + failures >= said:  # what follows no more is the end, and no frame
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


def _nearest_good(index: int, n: int, broken: Collection[int]) -> int:
    if index not in broken:
        return index
    return min(
        (other for other in range(n) if other not in broken),
        key=lambda other: (abs(other - index), other),
    )
