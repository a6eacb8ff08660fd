"""People in a frame: detectors behind one interface."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Protocol

import cv2
import numpy as np


class Detector(Protocol):
    """Finds the people in a frame."""

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """The people in a frame, in the order of the video.

        Args:
            frame: uint8 ``[H, W, 3]``, BGR.

        Returns:
            float64 ``[n, 5]``: left, top, right and bottom in pixels from the edge of the frame,
            and the score.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What the boxes depend on, as JSON values."""
        ...


class MotionDetector:
    """Moving regions of the shape of a standing person, for a fixed camera.

    OpenCV's background subtraction (MOG2) finds what moves. It needs no weights, and it is weak: it
    does not see people who stand still, and it takes people beside each other for one or loses
    them. Shadows, cars, animals and moving branches are found too. The score of a box is the share
    of its pixels that move.

    Args:
        frames: the video, from whose first LEARNED frames the background is learned.
    """

    SHAPE = (1.3, 5.0)  # height / width of a region
    SMALLEST, LARGEST = 0.06, 0.9  # height of a region, as a share of the frame's
    MARGIN = 0.08  # around a region, as a share of its height
    LEARNED = 150

    def __init__(self, frames: Iterable[np.ndarray]):
        self._background = cv2.createBackgroundSubtractorMOG2(
            history=500, varThreshold=25, detectShadows=True
        )
        for frame in itertools.islice(frames, self.LEARNED):
            self._moving(frame)

    def describe(self) -> dict[str, Any]:
        return {"detector": "motion", "opencv": cv2.__version__}

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        mask = cv2.morphologyEx(self._moving(frame), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        reach = max(3, height // 40)  # joins head, trunk and legs
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((2 * reach, reach), np.uint8))
        _, _, regions, _ = cv2.connectedComponentsWithStats(mask)
        found = []
        for left, top, w, h, area in regions[1:].tolist():
            upright = self.SHAPE[0] <= h / w <= self.SHAPE[1]
            if upright and self.SMALLEST <= h / height <= self.LARGEST:
                margin = self.MARGIN * h
                box = [left - margin, top - margin, left + w + margin, top + h + margin]
                box = np.clip(box, 0, [width, height, width, height]).tolist()
                found.append([*box, area / (w * h)])
        return np.array(found, np.float64).reshape(-1, 5)

    def _moving(self, frame: np.ndarray) -> np.ndarray:
        """uint8 ``[H, W]``: 255 where something moves, else 0."""
        mask = self._background.apply(cv2.GaussianBlur(frame, (5, 5), 0))
        return np.where(mask == 255, 255, 0).astype(np.uint8)  # shadows are 127
