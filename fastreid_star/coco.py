"""The skeleton of COCO: V = 17 joints, E = 19 bones, P = 4 body parts, and the mirrored joints."""

from __future__ import annotations

JOINT_NAMES: tuple[str, ...] = (
    "nose",
    *("left_eye", "right_eye", "left_ear", "right_ear"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)
NUM_JOINTS = len(JOINT_NAMES)

# (i, j): the bone from joint i to joint j. Order and direction are those of the authors' program,
# so that the columns of its first layer can be copied.
BONES: tuple[tuple[int, int], ...] = (
    *((15, 13), (13, 11), (16, 14), (14, 12)),  # legs
    *((11, 12), (5, 11), (6, 12), (5, 6)),  # trunk
    *((5, 7), (6, 8), (7, 9), (8, 10)),  # arms
    *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),  # head and neck
)
NUM_BONES = len(BONES)

# LEFT_RIGHT[v] is the mirrored joint of v: left and right swap, the nose stays.
LEFT_RIGHT: tuple[int, ...] = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)

# B(n) of equation (12): every joint is in exactly one part.
PARTS: dict[str, tuple[int, ...]] = {
    "head": (0, 1, 2, 3, 4),
    "torso": (5, 6, 11, 12),
    "arms": (7, 8, 9, 10),
    "legs": (13, 14, 15, 16),
}
NUM_PARTS = len(PARTS)
