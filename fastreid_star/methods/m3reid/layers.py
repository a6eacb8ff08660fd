"""Masks and the pooling under them, and a frame corrector for frames of several views.

Shapes: B clips, T frames, N = B T frames, D feature width of the backbone, K views of a frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastreid_star.modeling.frame_correctors import FrameCorrectorBase
from fastreid_star.modeling.layers.pooling import at_least_float32

# The planes of the clip by which MaskDiversityLoss groups the positions: two masks for each. They
# are computed alike: a convolution of 1x1 does not see its neighbors.
PLANES = ("hw", "tw", "th")
MASKS_OF_PLANE = 2
VIEWS = len(PLANES) * MASKS_OF_PLANE


class ViewMasks(nn.Module):
    """K masks of a frame: ``sigmoid(conv1x1(x))``, the bias starts at 0.

    Args:
        feat_dim: D.
        views: K, in the order of :data:`PLANES`.
    """

    def __init__(self, feat_dim: int, views: int = VIEWS):
        super().__init__()
        self.conv = nn.Conv2d(feat_dim, views, kernel_size=1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type] # there is a bias

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``[N, D, h, w]`` to masks ``[N, K, h, w]``, from 0 to 1."""
        return at_least_float32(self.conv(maps)).sigmoid()


def masked_gem(
    maps: torch.Tensor, masks: torch.Tensor, p: float = 3.0, eps: float = 1e-12
) -> torch.Tensor:
    """Generalized mean under each mask, ``(mean_hw((m_k x)^p) + eps)^(1/p)``.

    As (m x)^p = m^p x^p, it is one product of matrices. Computed in float32 or wider, also
    under autocast: a cube leaves the range of half types at once.

    Args:
        maps: x ``[N, D, h, w]``, non-negative.
        masks: m ``[N, K, h, w]``, non-negative.
        p: the exponent.
        eps: keeps the root differentiable at 0.

    Returns:
        ``[N, K, D]``.
    """
    with torch.autocast(maps.device.type, enabled=False):
        x, m = (at_least_float32(each).flatten(2).pow(p) for each in (maps, masks))
        return (m @ x.transpose(1, 2) / x.shape[2] + eps).pow(1 / p)


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
