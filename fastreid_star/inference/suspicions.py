"""What is suspicious about a tracklet that a program gives: the features exist, but mean little."""

from __future__ import annotations

import numpy as np

from fastreid_star.data.transforms import Clip
from fastreid_star.structures import Modality

# name -> how the warning goes on after "N of M tracklets"
SUSPICIONS = {
    "without_skeletons": "have no skeletons, but this model was trained with skeletons: without "
    "them it ranks no better than the baseline SAD; extract skeletons first, or use a SAD model",
    "wide": "have frames that are wider than high: a tracklet consists of crops of one person, not "
    "of whole scenes; cut the people out first, see `fastreid-star tracklets --help`",
    "colored": "are infrared, but their frames have colors: say which tracklets are visible",
    "sixteen_bits": "have frames of 16 bits, which are scaled by the percentiles of each tracklet: "
    "to give all the same scale, set INPUT.RANGE_16BIT in the config of training and search",
    "unscaled": "have skeletons that are not in pixels of their frames, or scores far above 1: "
    "give x and y in pixels and a score from 0 to 1",
}


def suspicions(clip: Clip, modality: Modality) -> dict[str, int]:
    """For each of SUSPICIONS 1 if it holds for a clip, else 0.

    Args:
        clip: before any transform.
        modality: as the program says.
    """
    known = clip.joints[clip.present]
    known = known[np.isfinite(known).all(-1)]
    found = {
        "without_skeletons": not clip.present.any(),
        "wide": all(frame.shape[1] > frame.shape[0] for frame in clip.frames),
        "colored": modality is Modality.INFRARED and all(map(_has_colors, clip.frames)),
        "sixteen_bits": any(frame.ndim == 2 for frame in clip.frames),
        # shares of the frame all lie in one pixel; some pose networks' scores are a little above 1
        "unscaled": known.size > 0 and (known[:, :2].max() <= 1 or known[:, 2].max() > 10),
    }
    return {name: int(value) for name, value in found.items()}


def _has_colors(frame: np.ndarray) -> bool:
    """Whether the channels of a frame differ by more than JPEG's rounding does."""
    return frame.ndim == 3 and float(np.ptp(frame.astype(np.int16), axis=-1).mean()) > 8
