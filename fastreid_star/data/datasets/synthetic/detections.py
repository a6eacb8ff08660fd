"""Boxes around a synthetic person as a detector and a tracker give them, and the crops in them.

The height / width of real boxes is 1.4, 2.1 and 2.7 at 5, 50 and 95 % of the detections, and
changes within a tracklet. The person's size in pixels changes by a factor of about 3 over a
dataset.

Shapes: T frames, P points, h and w the height and width of a frame in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

CUT = 0.18  # share of the tracklets whose boxes cut off a part of the body
ASPECT, ASPECT_SPREAD = 2.2, 0.17  # median, and standard deviation of the logarithm
SMALLEST = 12  # pixels of the shorter side of a crop


def draw_boxes(
    points: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes around the person, and the sizes of their crops.

    Args:
        points: of the body in pixels of the picture, [T, P, 2].
        size: height and width of a crop of medium size.

    Returns:
        left, top, width and height of each box in pixels of the picture, [T, 4], and height and
        width of each crop, int [T, 2]: the crop of a box is the box seen from nearer or farther.
    """
    frames = len(points)
    low, high = points.min(1), points.max(1)
    low[:, 1] -= 0.07 * (high - low)[:, 1]  # the crown is above the highest point, in the head
    center, tall = (low + high) / 2, (high - low)[:, 1]
    height = tall * (1.08 + 0.15 * rng.random() + 0.03 * rng.standard_normal(frames))
    # half of the spread is of the tracklet, half changes over its frames, as legs open and close
    knots = np.arange(0, frames + 4, 4)
    wander = np.interp(np.arange(frames), knots, rng.standard_normal(len(knots)))
    aspect = ASPECT * np.exp(ASPECT_SPREAD * (0.75 * rng.standard_normal() + 0.66 * wander))
    width = np.maximum(height / aspect, (high - low)[:, 0])
    center = center + 0.02 * tall[:, None] * rng.standard_normal((frames, 2))
    top, bottom = center[:, 1] - height / 2, center[:, 1] + height / 2
    if rng.random() < CUT:  # behind a counter, or below the edge of the camera's picture
        lost = rng.uniform(0.15, 0.4) * tall
        if rng.random() < 0.75:
            bottom = bottom - lost
        else:
            top = top + lost / 2
    # log-uniform over a factor of 3, of which a third within a tracklet: a walk to the camera
    nearness = np.exp(
        rng.uniform(-0.37, 0.37) + rng.uniform(-0.18, 0.18) * np.linspace(-1, 1, frames)
    )
    pixels = size[0] / tall.mean() * nearness
    boxes = np.stack([center[:, 0] - width / 2, top, width, bottom - top], axis=1)
    sizes = np.rint(boxes[:, :1:-1] * pixels[:, None]).astype(int)
    return boxes, np.maximum(sizes, SMALLEST)


def crop(
    images: np.ndarray, joints: np.ndarray, drawn: tuple[np.ndarray, np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Cut the boxes out, and move the joints with the pixels.

    Args:
        images: uint8 [T, h, w, 3].
        joints: [T, 17, 3].
        drawn: of :func:`draw_boxes`.

    Returns:
        T crops, uint8 of their own sizes; the joints in them; and bool [T, 17], joints that are cut
        off. A pose network guesses those at the border, with a low score.
    """
    crops, moved = [], joints.copy()
    cut = np.zeros(joints.shape[:2], bool)
    for t, (box, (rows, columns)) in enumerate(zip(*drawn, strict=True)):
        scale = np.array([columns, rows]) / box[2:]
        # from the pixels of the crop to those of the picture, whose centers are whole numbers
        matrix = np.array([
            [1 / scale[0], 0, box[0] - 0.5 + 0.5 / scale[0]],
            [0, 1 / scale[1], box[1] - 0.5 + 0.5 / scale[1]],
        ])  # fmt: skip
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (int(columns), int(rows))
        crops.append(
            cv2.warpAffine(images[t], matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        )
        xy = (joints[t, :, :2] - matrix[:, 2]) * scale
        inside = np.clip(xy, 0, np.array([columns, rows]) - 1)
        found = joints[t].any(-1)
        cut[t] = found & (xy != inside).any(-1)
        moved[t, found, :2] = inside[found]
        moved[t, cut[t], 2] *= 0.4
    return crops, moved.astype(np.float32), cut
