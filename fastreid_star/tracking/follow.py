"""Join the detections of a video to tracks, by the overlap of boxes.

In each frame, the boxes that are expected of the known people are assigned to the boxes that were
found, so that the sum of their overlaps is the largest (the Hungarian method, as in Bewley et al.,
"Simple online and realtime tracking", ICIP 2016). A person is expected to go on as in the frames
before. Trackers that also look at the people are left to packages that write files of tracks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from fastreid_star.tracking.detectors import Detector
from fastreid_star.tracking.tracks import Track, make_track

OVERLAP = 0.2  # least intersection over union of a person's expected box and the found one
MEMORY = 15  # frames after which a lost person is forgotten
CONFIRMATION = 3  # frames in which a person must be seen
INERTIA = 0.7  # share of the earlier motion in the expected one


@dataclass
class Person:
    """Somebody who is followed.

    Args:
        rows: frame number, box (left, top, right, bottom) and score.
        motion: of the box in pixels a frame.
    """

    rows: list[tuple[int, np.ndarray, float]]
    motion: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def expected(self, number: int) -> np.ndarray:
        """The box in a later frame."""
        last, box, _ = self.rows[-1]
        return box + (number - last) * self.motion

    def found(self, number: int, box: np.ndarray, score: float) -> None:
        """Go on with a box of a later frame."""
        last, before, _ = self.rows[-1]
        step = (box - before) / (number - last)
        known = INERTIA if len(self.rows) > 1 else 0.0
        self.motion = known * self.motion + (1 - known) * step
        self.rows.append((number, box, score))


def follow(frames: Iterable[np.ndarray], detect: Detector) -> list[Track]:
    """The tracks of all people in a video.

    Args:
        frames: BGR images.
        detect: finds the people in each.
    """
    everybody: list[Person] = []
    known: list[Person] = []
    for number, frame in enumerate(frames, start=1):
        found = np.asarray(detect(frame), np.float64).reshape(-1, 5)
        known = [person for person in known if number - person.rows[-1][0] <= MEMORY]
        overlaps = intersection_over_union(
            np.array([person.expected(number) for person in known]).reshape(-1, 4), found[:, :4]
        )
        new = set(range(len(found)))
        for row, column in zip(*linear_sum_assignment(-overlaps), strict=True):
            if overlaps[row, column] >= OVERLAP:
                known[row].found(number, found[column, :4], float(found[column, 4]))
                new.remove(column)
        arrived = [Person([(number, found[i, :4], float(found[i, 4]))]) for i in sorted(new)]
        known += arrived
        everybody += arrived
    people = [person for person in everybody if len(person.rows) >= CONFIRMATION]
    return [
        make_track(number, [(frame, box.tolist(), score) for frame, box, score in person.rows])
        for number, person in enumerate(people, start=1)
    ]


def intersection_over_union(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Boxes ``[n, 4]`` and ``[m, 4]`` (left, top, right, bottom) to ``[n, m]``."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, other)]
    return common / np.maximum(areas[0][:, None] + areas[1] - common, 1e-9)
