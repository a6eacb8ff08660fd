"""The losses of M3-ReID: alignment of the modalities, different frames, different masks.

Liang et al., "M3-ReID: unifying multi-view, granularity, and modality for video-based
visible-infrared person re-identification", TIFS 2025. All are computed in float32 or wider.

Shapes: B clips, T frames, N = B T frames, D feature width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable

from fastreid_star.methods.m3reid.layers import PLANES
from fastreid_star.modeling.layers.gather import all_rows
from fastreid_star.modeling.layers.pooling import at_least_float32
from fastreid_star.modeling.losses import LOSS_REGISTRY, Loss

EPS = 1e-8  # smallest length of a vector in a cosine


def alignment(
    features: torch.Tensor,
    targets: torch.Tensor,
    is_visible: torch.Tensor,
    *,
    all_ranks: bool = False,
) -> torch.Tensor:
    """Multi-modality alignment (MMA): a query is nearer to its identity in the other modality.

    ``mean softplus(d_p - d_n)`` over the queries of a modality, then the mean over both modalities.
    d = (1 - cos) / 2 to the rows of the other modality; d_p and d_n are its means over those of the
    query's identity and over the others. Queries that lack one of both are left out, and so is a
    modality without queries; the loss is 0 if none is left.

    Args:
        features: ``[R, D]``.
        targets: ``[R]``, identities.
        is_visible: bool ``[R]``.
        all_ranks: with several processes, over the whole batch and not over each process's share.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        is_visible = is_visible.to(features.device, non_blocking=True)
        if all_ranks:
            features, targets = all_rows(features.contiguous()), all_rows(targets)
            is_visible = all_rows(is_visible.to(torch.uint8)) > 0
        unit = F.normalize(features, dim=1, eps=EPS)
        distances = (1 - unit @ unit.T) / 2
        across = is_visible[:, None] != is_visible
        same = targets[:, None] == targets
        pairs = torch.stack([across & same, across & ~same]).to(distances.dtype)
        counts = pairs.sum(2)
        positive, negative = (distances * pairs).sum(2) / counts.clamp(min=1)
        usable = (counts > 0).all(0)
        losses = F.softplus(positive - negative)
        queries = torch.stack([usable & is_visible, usable & ~is_visible]).to(losses.dtype)
        means = (queries @ losses) / queries.sum(1).clamp(min=1)
        return means.sum() / (queries.sum(1) > 0).sum().clamp(min=1)


def separation(x: torch.Tensor) -> torch.Tensor:
    """Mean of cos^2 over all pairs of different vectors of a set, and over the sets; 0 for one.

    Args:
        x: ``[..., K, D]``: sets of K vectors.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(at_least_float32(x), dim=-1, eps=EPS)
        number = unit.shape[-2]
        others = 1 - torch.eye(number, dtype=unit.dtype, device=unit.device)
        squares = (unit @ unit.transpose(-1, -2)).square() * others
        return squares.sum((-1, -2)).mean() / max(number * (number - 1), 1)


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
class ModalityAlignmentLoss(Loss):
    """MMA: :func:`alignment` of the clips. Set ``MODEL.HEADS.NECK_FEAT after``, as the authors.

    Args:
        all_ranks: ``MODEL.LOSSES.TRI.ALL_RANKS``.
        kwargs: see :class:`Loss`.
    """

    needs = ("clip_features", "targets", "is_visible")
    log_name = "loss_align"
    compares_identities = True

    @configurable
    def __init__(self, *, all_ranks: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.all_ranks = all_ranks

    @classmethod
    def from_config(cls, cfg: CfgNode, *, feat_dim: int) -> dict[str, Any]:
        options = {"all_ranks": cfg.MODEL.LOSSES.TRI.ALL_RANKS}
        return {**super().from_config(cfg, feat_dim=feat_dim), **options}

    def forward(  # type: ignore[override]
        self, features: torch.Tensor, targets: torch.Tensor, is_visible: torch.Tensor
    ) -> torch.Tensor:
        """Features and targets of the R clips or frames, is_visible ``[N]`` of the frames."""
        features = features.flatten(0, -2)
        of_rows = is_visible.view(len(features), -1)[:, 0]
        return alignment(features, targets, of_rows, all_ranks=self.all_ranks)


@LOSS_REGISTRY.register()
class FrameModalityAlignmentLoss(ModalityAlignmentLoss):
    """MMA: :func:`alignment` of the frames after the neck."""

    needs = ("frame_embeddings", "frame_targets", "is_visible")
    log_name = "loss_align_frame"


@LOSS_REGISTRY.register()
class FrameOrthogonalityLoss(Loss):
    """Orthogonal frame regularizer (OFR): :func:`separation` of the frames of each clip."""

    needs = ("frame_embeddings",)
    log_name = "loss_orthogonal"

    def forward(self, frames: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return separation(frames)


@LOSS_REGISTRY.register()
class MaskDiversityLoss(Loss):
    """Diverse attention constraint (DAC): :func:`separation` of the masks of each plane, summed."""

    needs = ("masks",)
    log_name = "loss_masks"

    def forward(self, masks: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.stack([separation(plane) for plane in by_plane(masks)]).sum()
