"""Left and right over a tracklet: undo frames in which a pose network has confused the sides.

In infrared and from behind, pose networks swap left and right in single frames. A body moves
smoothly, so the right sides are those with which all joints accelerate least. Which of the two
solutions is meant, this one or its mirror image, the majority of the frames decides.
"""

from __future__ import annotations

import numpy as np

from fastreid_star.coco import LEFT_RIGHT

LEFT = tuple(v for v, w in enumerate(LEFT_RIGHT) if v < w)  # with LEFT_RIGHT[LEFT] on the right
CAP = 0.3  # of the person's height: a joint that is further off is an outlier
CHANGE = 0.02  # cost of two neighbors of which one is swapped: noise alone swaps nothing
SWAP = 0.01  # cost of a swapped frame: in single frames the network is right more often than not
RULE = f"smoothest over each tracklet: cap {CAP}, change {CHANGE}, swap {SWAP}"


def confused_frames(joints: np.ndarray) -> np.ndarray:
    """The frames of a tracklet in which left and right are to be swapped.

    For each frame t let s(t) be 1 if it is swapped, else 0. The sum over t of ::

        A(s(t-1), s(t), s(t+1)) + CHANGE * (s(t) != s(t+1)) + SWAP * s(t)

    is minimal, by dynamic programming. A is the mean length of x(t-1) - 2 x(t) + x(t+1) over the
    joints that have a side, capped at CAP and weighted by their scores. x is counted from the
    center of the person in shares of the person's height, neither of which depends on the sides.
    A frame without skeleton is left out, and so are tracklets with fewer than three skeletons.

    Args:
        joints: ``[n, V, 3]``: x, y, score; NaN for a frame without skeleton.

    Returns:
        bool ``[n]``.
    """
    confused = np.zeros(len(joints), bool)
    good = np.flatnonzero(np.isfinite(joints).all(axis=(1, 2)))
    if len(good) >= 3:
        costs = _accelerations(joints[good].astype(np.float64))
        confused[good] = _cheapest(costs)
    return confused


def settle_sides(joints: np.ndarray) -> tuple[np.ndarray, int]:
    """A tracklet's joints with the sides of :func:`confused_frames` swapped back; their number."""
    confused = confused_frames(joints)
    settled = np.where(confused[:, None, None], joints[:, LEFT_RIGHT], joints)
    return settled, int(confused.sum())


def _accelerations(joints: np.ndarray) -> np.ndarray:
    """A of :func:`confused_frames`, ``[n - 2, 2, 2]``: whether the frame before and the frame after
    have other sides than the frame in the middle."""
    xy, scores = joints[..., :2], np.clip(joints[..., 2], 0, 1)
    weights = np.maximum(scores, 1e-9)[..., None]
    center = (xy * weights).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    seen = np.where(scores > 0, xy[..., 1], np.nan)
    with np.errstate(invalid="ignore"):
        heights = np.nanmax(seen, axis=1, initial=-np.inf) - np.nanmin(seen, axis=1, initial=np.inf)
    height = max(float(np.median(heights[heights > 0], axis=0)) if (heights > 0).any() else 1, 1)
    x = (xy - center) / height
    left, right = list(LEFT), [LEFT_RIGHT[v] for v in LEFT]
    own, other = (
        (x[:, order], scores[:, order]) for order in (left + right, right + left)
    )  # [n, 2 P, 2] and [n, 2 P]
    costs = np.empty((len(x) - 2, 2, 2))
    for before, first in enumerate((own, other)):
        for after, last in enumerate((own, other)):
            lengths = np.linalg.norm(first[0][:-2] - 2 * own[0][1:-1] + last[0][2:], axis=-1)
            weights = np.minimum(np.minimum(first[1][:-2], own[1][1:-1]), last[1][2:])
            total = np.maximum(weights.sum(1), 1e-9)
            costs[:, before, after] = (weights * np.minimum(lengths, CAP)).sum(1) / total
    return costs


def _cheapest(costs: np.ndarray) -> np.ndarray:
    """s of :func:`confused_frames`, bool ``[n]``, for A as :func:`_accelerations` returns it."""
    states = np.arange(2)
    change = CHANGE * (states[:, None] != states)
    best = change + SWAP * (states[:, None] + states)  # [s(t-1), s(t)]
    choices = []
    for cost in costs:
        # [s(t-1), s(t), s(t+1)]
        relative = cost[states[:, None, None] ^ states[:, None], states[:, None] ^ states]
        total = best[:, :, None] + relative + change + SWAP * states
        choices.append(total.argmin(0))
        best = total.min(0)
    swapped = list(np.unravel_index(best.argmin(), best.shape))
    for choice in reversed(choices):
        swapped.insert(0, choice[swapped[0], swapped[1]])
    return np.array(swapped, bool)
