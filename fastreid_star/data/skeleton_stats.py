"""What can be told of skeletons without knowing the truth: are they there, in the frame, upright, and how sure.

n skeletons, V = 17 joints. A size is (height, width) of the frame in pixels. A joint (x, y) is inside the frame from
-0.5 to width - 0.5 and from -0.5 to height - 0.5: whole numbers are the centers of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from fastreid_star.coco import JOINT_NAMES, NUM_JOINTS

SCORE_EDGES = np.linspace(0, 1, 11)

# An estimator looks a little beyond the crop, so a joint or two outside, and near it, are no fault.
FAR = 0.2  # of the frame's side
MANY = 4  # joints
# In the lists of other datasets these places are of other joints, and come in another order: H36M's and OpenPose's too.
_DOWNWARD = [
    [JOINT_NAMES.index(f"{side}_{joint}") for side in ("left", "right")]
    for joint in ("shoulder", "hip", "ankle")
]
COLLAPSED = 0.02  # of the frame's height: all joints in one spot


@dataclass(slots=True)
class SkeletonStats:
    """Sums over the skeletons of some frames; sums of two sets are added by ``+``.

    Args:
        frames: frames looked at.
        found: those with a skeleton whose values are all finite; the rest of the numbers is of these.
        measured: those whose frame's size is known; the next four numbers are of these.
        outside: joints outside their frame.
        misplaced: skeletons that cannot be of their frame, see :func:`what_is_wrong`.
        lying: skeletons that are wider than tall.
        heights: sum of the skeletons' heights, each as a share of its frame's.
        scores: joints by score, int64 [12]: below 0, ten bins of 0.1, above 1.
        score_sum: of all joints.
        disordered: skeletons whose shoulders, hips and ankles do not come in this order from top to bottom.
    """

    frames: int = 0
    found: int = 0
    measured: int = 0
    outside: int = 0
    misplaced: int = 0
    lying: int = 0
    heights: float = 0.0
    scores: np.ndarray = field(default_factory=lambda: np.zeros(len(SCORE_EDGES) + 1, np.int64))
    score_sum: float = 0.0
    disordered: int = 0

    def __add__(self, other: SkeletonStats) -> SkeletonStats:
        return SkeletonStats(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        )

    @property
    def coverage(self) -> float:
        """The share of frames with a skeleton; nan without frames."""
        return _share(self.found, self.frames)

    @property
    def outside_share(self) -> float:
        """The share of joints outside their frame."""
        return _share(self.outside, self.measured * NUM_JOINTS)

    @property
    def lying_share(self) -> float:
        """The share of skeletons that are wider than tall."""
        return _share(self.lying, self.measured)

    @property
    def disordered_share(self) -> float:
        """The share of skeletons whose joints seem to be in another order."""
        return _share(self.disordered, self.found)

    @property
    def mean_height(self) -> float:
        """The mean height of a skeleton as a share of its frame's."""
        return _share(self.heights, self.measured)

    @property
    def mean_score(self) -> float:
        """The mean score of a joint."""
        return _share(self.score_sum, self.found * NUM_JOINTS)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def measure(
    frames: int, joints: np.ndarray, sizes: np.ndarray | None
) -> tuple[SkeletonStats, list[str]]:
    """The sums over some skeletons, and what is wrong with each.

    Args:
        frames: how many frames were looked at, with a skeleton or without.
        joints: float [n,V,3], all finite: the skeletons that were found.
        sizes: [n,2], height and width of their frames; rows of zeros where a frame could not be read. None: no frame
            was read.

    Returns:
        the sums; n texts, empty where nothing is wrong or the size is not known.
    """
    joints = np.asarray(joints, np.float64)
    score = joints[..., 2]
    bins, _ = np.histogram(score, SCORE_EDGES)
    stats = SkeletonStats(
        frames=frames,
        found=len(joints),
        disordered=int(
            (np.diff([joints[:, pair, 1].mean(axis=1) for pair in _DOWNWARD], axis=0) <= 0)
            .any(axis=0)
            .sum()
        ),
        scores=np.array(
            [(score < SCORE_EDGES[0]).sum(), *bins, (score > SCORE_EDGES[-1]).sum()], np.int64
        ),
        score_sum=float(score.sum()),
    )
    wrong = [""] * len(joints)
    known = np.arange(0)
    if sizes is not None and len(joints):
        known = np.flatnonzero((np.asarray(sizes) > 0).all(axis=1))
    if len(known):
        points, sizes = joints[known, :, :2], np.asarray(sizes)[known]
        extent = np.ptp(points, axis=1)
        for position, one, size in zip(known, points, sizes, strict=True):
            wrong[position] = what_is_wrong(one, size)
        stats.measured = len(known)
        stats.outside = int((beyond(points, sizes) > 0).sum())
        stats.misplaced = sum(map(bool, wrong))
        stats.lying = int((extent[:, 0] > extent[:, 1]).sum())
        stats.heights = float((extent[:, 1] / sizes[:, 0]).sum())
    return stats, wrong


def beyond(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """How far joints lie outside their frame, as a share of its side, the larger of both directions; inside: 0.

    Args:
        points: x and y, [...,V,2].
        sizes: height and width, [...,2].

    Returns:
        [...,V].
    """
    sides = np.asarray(sizes)[..., None, ::-1]
    over = np.maximum(-0.5 - points, points - (sides - 0.5))
    return np.maximum(over / sides, 0).max(axis=-1)


def what_is_wrong(points: np.ndarray, size: np.ndarray) -> str:
    """Why a skeleton cannot be of its frame, with the likely cause; empty where it can.

    It cannot where four joints or more lie outside by more than a fifth of the frame's side, or all lie in one spot.

    Args:
        points: x and y, [V,2], finite.
        size: height and width of the frame.
    """
    height, width = (int(side) for side in size)
    extent = np.ptp(points, axis=0)
    if not extent.any():
        return f"all joints at ({points[0, 0]:g}, {points[0, 1]:g}): nobody found? then leave the frame out of the store"
    if extent.max() < COLLAPSED * height:
        return f"all joints within {extent.max():.1f} pixels: are the coordinates shares of the frame, not pixels?"
    if not _is_far(points, size):
        return ""
    outside = int((beyond(points, size) > FAR).sum())
    found = f"{outside} of {NUM_JOINTS} joints far outside the {height} x {width} frame (height x width)"
    if not _is_far(points[:, ::-1], size):
        return f"{found}: are x and y swapped?"
    largest = points.max(axis=0) / (width, height)
    fills = (
        extent[1] > 0.5 * points[:, 1].max()
    )  # as a person does the crop; one that is shifted does not
    if fills and points.min() > -0.5 and 0.5 < largest[0] / largest[1] < 2:
        return f"{found}: made for a frame about {largest.max():.1f} times as large?"
    if (extent <= (width, height)).all():
        return f"{found}: coordinates in the camera's whole picture, not in the crop?"
    return f"{found}: made for other frames?"


def _is_far(points: np.ndarray, size: np.ndarray) -> bool:
    return int((beyond(points, size) > FAR).sum()) >= MANY
