"""Plausibility of skeletons: position and size in the frame, order of the joints, mean score.

n skeletons, V = 17 joints. A size is (height, width) of a frame in pixels, whose centers have whole
coordinates: the frame extends from -0.5 to width - 0.5 and from -0.5 to height - 0.5.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from fastreid_star.coco import JOINT_NAMES, NUM_JOINTS

# Pose estimators also search around the crop, so a few joints slightly outside are normal.
FAR = 0.2  # of the frame's side
MANY = 4  # joints
COLLAPSED = 0.02  # of the frame's height: all joints at one point
# In the joint orders of H36M and OpenPose these are other joints, in another vertical order.
_DOWNWARD = [
    [JOINT_NAMES.index(f"{side}_{joint}") for side in ("left", "right")]
    for joint in ("shoulder", "hip", "ankle")
]


@dataclass(slots=True)
class SkeletonStats:
    """Sums over the skeletons of some frames; two of them are added with ``+``.

    Args:
        frames: frames that were examined.
        found: frames with a valid skeleton; the other sums are over these.
        measured: frames of known size; the next two sums are over these.
        outside: joints outside their frame.
        heights: heights of the skeletons as shares of the frames' heights.
        score_sum: scores of all joints.
        disordered: skeletons without shoulders above hips above ankles.
    """

    frames: int = 0
    found: int = 0
    measured: int = 0
    outside: int = 0
    heights: float = 0.0
    score_sum: float = 0.0
    disordered: int = 0

    def __add__(self, other: SkeletonStats) -> SkeletonStats:
        return SkeletonStats(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def coverage(self) -> float:
        """Share of frames with a skeleton; this and the following means are nan without frames."""
        return _share(self.found, self.frames)

    @property
    def outside_share(self) -> float:
        """Share of joints outside their frame."""
        return _share(self.outside, self.measured * NUM_JOINTS)

    @property
    def mean_height(self) -> float:
        """Mean height of a skeleton as a share of its frame's height."""
        return _share(self.heights, self.measured)

    @property
    def mean_score(self) -> float:
        """Mean score of a joint."""
        return _share(self.score_sum, self.found * NUM_JOINTS)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def measure(frames: int, joints: np.ndarray, sizes: np.ndarray) -> SkeletonStats:
    """The sums over some skeletons.

    Args:
        frames: number of frames, with and without a skeleton.
        joints: float [n,V,3], valid skeletons.
        sizes: [n,2], heights and widths of their frames, zeros if unknown.
    """
    joints = joints.astype(np.float64)
    levels = [joints[:, pair, 1].mean(axis=1) for pair in _DOWNWARD]
    known = sizes.all(axis=1)
    points, sizes = joints[known, :, :2], sizes[known]
    return SkeletonStats(
        frames=frames,
        found=len(joints),
        measured=len(points),
        outside=int((beyond(points, sizes) > 0).sum()),
        heights=float((np.ptp(points[..., 1], axis=1) / sizes[:, 0]).sum()),
        score_sum=float(joints[..., 2].sum()),
        disordered=int((np.diff(levels, axis=0) <= 0).any(axis=0).sum()),
    )


def beyond(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Distance of joints to their frame as a share of its side, 0 inside.

    Args:
        points: x and y, [...,V,2].
        sizes: height and width, [...,2].

    Returns:
        [...,V], the larger of the shares in x and y.
    """
    sides = np.asarray(sizes)[..., None, ::-1]
    over = np.maximum(-0.5 - points, points - (sides - 0.5))
    return np.maximum(over / sides, 0).max(axis=-1)


def what_is_wrong(points: np.ndarray, size: np.ndarray) -> str:
    """Why a skeleton does not fit its frame, with the likely cause; empty if it fits.

    It does not fit if at least four joints are outside by more than a fifth of the frame's side, or
    if all joints are at one point.

    Args:
        points: x and y, [V,2], finite.
        size: height and width of the frame.
    """
    height, width = (int(side) for side in size)
    extent = np.ptp(points, axis=0).max()
    if extent < COLLAPSED * height:
        return f"all joints within {extent:.1f} pixels: are x, y shares of the frame?"
    if not _is_far(points, size):
        return ""
    outside = int((beyond(points, size) > FAR).sum())
    found = f"{outside} of {NUM_JOINTS} joints far outside the frame of {height} x {width} pixels"
    if not _is_far(points[:, ::-1], size):
        return f"{found}: are x and y swapped?"
    times = (points.max(axis=0) / (width, height)).max()
    return f"{found}: made for another crop, or a frame about {times:.1f} times as large?"


def _is_far(points: np.ndarray, size: np.ndarray) -> bool:
    return int((beyond(points, size) > FAR).sum()) >= MANY
