"""The masks of a frame by their planes, and a frame corrector for frames of several views.

Shapes: B clips, T frames, N = B T frames, D feature width of the backbone, K views of a frame.
"""

from __future__ import annotations

from typing import Any

import torch

from fastreid_star.modeling.frame_correctors import FrameCorrectorBase

# The planes of the clip by which MaskDiversityLoss groups the positions: two masks for each. They
# are computed alike: a convolution of 1x1 does not see its neighbors.
PLANES = ("hw", "tw", "th")
MASKS_OF_PLANE = 2
VIEWS = len(PLANES) * MASKS_OF_PLANE


class ViewCorrector(FrameCorrectorBase):
    """A frame corrector of width D for frames of K views; ours.

    It corrects the mean X of the views to Y, and each view gets the correction Y - X.

    Args:
        corrector: of width D.
        views: K.
    """

    def __init__(self, corrector: FrameCorrectorBase, views: int = VIEWS):
        super().__init__()
        self.corrector, self.views = corrector, views
        self.reads_skeletons = corrector.reads_skeletons
        self.provides, self.corrects = corrector.provides, corrector.corrects

    def forward(
        self, frames: torch.Tensor, batch: dict[str, Any], explain: bool = False
    ) -> dict[str, Any]:
        """Frames ``[B, T, K D]``; see :class:`FrameCorrectorBase`."""
        views = frames.unflatten(2, (self.views, -1))
        mean = views.mean(2)
        found = self.corrector(mean, batch, explain)
        found["corrected"] = (views + (found["corrected"] - mean)[:, :, None]).flatten(2)
        return found
