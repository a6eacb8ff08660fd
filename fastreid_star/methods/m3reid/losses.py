"""The losses of M3-ReID: alignment of the modalities, different frames, different masks.

:mod:`fastreid_star.modeling.losses` has the first two, of any method.

Liang et al., "M3-ReID: unifying multi-view, granularity, and modality for video-based
visible-infrared person re-identification", TIFS 2025. All are computed in float32 or wider.

Shapes: B clips, T frames, N = B T frames, D feature width.
"""

from __future__ import annotations

import torch

from fastreid_star.methods.m3reid.layers import PLANES
from fastreid_star.modeling.losses import (
    LOSS_REGISTRY,
    Loss,
    ModalityAlignmentLoss,
    OrthogonalityLoss,
)
from fastreid_star.modeling.losses.orthogonality import separation


def by_plane(masks: torch.Tensor) -> list[torch.Tensor]:
    """Masks as vectors over the positions of their plane.

    Args:
        masks: ``[B, T, K, h, w]``, the masks of :data:`PLANES` in this order.

    Returns:
        for hw, the positions of a frame: ``[B, T, K/3, h w]``; for tw, an image row over time:
        ``[B, h, K/3, T w]``; for th, an image column over time: ``[B, w, K/3, T h]``.
    """
    hw, tw, th = masks.chunk(len(PLANES), dim=2)
    return [
        hw.flatten(3),
        tw.permute(0, 3, 2, 1, 4).flatten(3),
        th.permute(0, 4, 2, 1, 3).flatten(3),
    ]


@LOSS_REGISTRY.register()
class FrameModalityAlignmentLoss(ModalityAlignmentLoss):
    """MMA of the frames after the neck."""

    needs = ("frame_embeddings", "frame_targets", "is_visible")
    log_name = "loss_align_frame"
    equation = "MMA of the frames"
    source = "Liang et al., TIFS 2025 (M3-ReID)"


@LOSS_REGISTRY.register()
class FrameOrthogonalityLoss(OrthogonalityLoss):
    """Orthogonal frame regularizer (OFR): the frames of each clip differ, after the neck."""

    needs = ("frame_embeddings",)
    source = "Liang et al., TIFS 2025 (M3-ReID)"


@LOSS_REGISTRY.register()
class MaskDiversityLoss(Loss):
    """Diverse attention constraint (DAC): :func:`separation` of the masks of each plane, summed."""

    needs = ("masks",)
    log_name = "loss_masks"
    equation = "sum over three planes of the mean cos^2 of its masks"
    source = "Liang et al., TIFS 2025 (M3-ReID)"

    def forward(self, masks: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.stack([separation(plane) for plane in by_plane(masks)]).sum()
