"""Tracks: the boxes of one person in the frames of a video, and their text format."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastreid_star.data.io import read_lines
from fastreid_star.errors import UserError

FORMAT = "frame, track, left, top, width, height, score, class"


@dataclass(frozen=True)
class Track:
    """The boxes of one person.

    Args:
        number: of the track.
        frames: numbers of the frames, ascending, counted from 1; some may be missing.
        boxes: float64 ``[n, 4]``: left, top, right, bottom, in pixels from the edge of the frame.
        scores: float64 ``[n]``.
    """

    number: int
    frames: tuple[int, ...]
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


def make_track(number: int, rows: Sequence[tuple[int, Sequence[float], float]]) -> Track:
    """A track of (frame, box, score) in any order."""
    rows = sorted(rows, key=lambda row: row[0])
    frames, boxes, scores = zip(*rows, strict=True)
    return Track(number, frames, np.array(boxes, np.float64), np.array(scores, np.float64))


def read_tracks(path: str | Path, kind: int | None = None) -> list[Track]:
    """Read a file of tracks in MOTChallenge's text format, as trackers write it.

    A line is ``frame, track, left, top, width, height, score, class, ...``. The score and what
    follows may be missing, and blanks may stand in place of commas. Lines may be in any order.
    Frames are counted from 1, or from 0 if there is a frame 0. Pixels are counted from the edge of
    the frame, and lines whose track is negative are detections without a track, which are skipped.

    Args:
        path: the file.
        kind: the class of people; None: the file has one class only.

    Raises:
        UserError: the file cannot be read, a line does not have this format, a track has two boxes
            in a frame, or it is not known which class people have.
    """
    rows: dict[int, dict[int, tuple[Sequence[float], float]]] = {}
    kinds, start = set(), 1
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        frame, track, (left, top, width, height), score, its_kind = _parse(path, number, line)
        start = min(start, frame)
        if track < 0:
            continue
        kinds.add(its_kind)
        if kind is not None and its_kind != kind:
            continue
        boxes = rows.setdefault(track, {})
        if frame in boxes:
            raise UserError(f"{path}, line {number}: track {track} has two boxes in frame {frame}")
        boxes[frame] = ((left, top, left + width, top + height), score)
    if kind is None and len(kinds) > 1:
        raise UserError(
            f"{path} has the classes {', '.join(map(str, sorted(kinds)))}: give that of people "
            "with --class"
        )
    if not rows:
        found = f"; it has the classes {', '.join(map(str, sorted(kinds)))}" if kinds else ""
        raise UserError(f"{path} has no tracks{found} (expected lines {FORMAT})")
    return [
        make_track(track, [(frame + 1 - start, *rest) for frame, rest in boxes.items()])
        for track, boxes in sorted(rows.items())
    ]


def _parse(
    path: str | Path, number: int, line: str
) -> tuple[int, int, tuple[float, float, float, float], float, int]:
    words = [word for word in re.split(r"[,;\s]+", line) if word]
    try:
        values = [float(word) for word in words]
        frame, track, left, top, width, height, *more = values
        score = more[0] if more else 1.0
        kind = more[1] if len(more) > 1 else -1.0
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UserError(f"{path}, line {number}: {line[:60]!r} is not {FORMAT}")
    if frame < 0 or frame != int(frame) or track != int(track) or width <= 0 or height <= 0:
        raise UserError(
            f"{path}, line {number}: {line[:60]!r}: frame and track are whole numbers, and width "
            "and height are above 0"
        )
    return int(frame), int(track), (left, top, width, height), score, int(kind)
