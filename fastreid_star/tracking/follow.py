"""Join the detections of a video to tracks, with norfair.

norfair (BSD license) is kept up to date, works with any detector, and needs no OpenCV of its own.
ByteTrack is no longer a part of supervision, and the package that has it needs opencv-python, which
conflicts with the headless one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from fastreid_star.errors import UserError
from fastreid_star.tracking.detectors import Detector
from fastreid_star.tracking.tracks import Track, make_track

OVERLAP = 0.2  # least intersection over union of a track's expected box and its next one
MEMORY = 15  # frames after which a lost person is forgotten
CONFIRMATION = 3  # frames in which a person must be seen before a track begins


def follow(frames: Iterable[np.ndarray], detect: Detector) -> list[Track]:
    """The tracks of all people in a video.

    Args:
        frames: BGR images.
        detect: finds the people in each.

    Raises:
        UserError: norfair is not installed.
    """
    try:
        from norfair import Detection, Tracker
    except ImportError as error:
        raise UserError(
            f"tracking needs norfair ({error}): pip install norfair, or give a file of tracks by "
            "--tracks"
        ) from error
    tracker = Tracker(
        distance_function="iou",
        distance_threshold=1 - OVERLAP,
        initialization_delay=CONFIRMATION,
        hit_counter_max=MEMORY,
    )
    rows: dict[int, list] = defaultdict(list)
    for number, frame in enumerate(frames, start=1):
        detections = [
            Detection(
                points=box[:4].reshape(2, 2),
                scores=np.full(2, box[4]),
                data=(number, box[:4].tolist(), float(box[4])),
            )
            for box in detect(frame)
        ]
        for person in tracker.update(detections):
            if person.last_detection.data[0] == number:  # else its place is only expected
                rows[person.id].append(person.last_detection.data)
    return [make_track(number, own) for number, own in sorted(rows.items())]
